"""A real Milvus 2.3.5 server, from the PyPI package `milvus`, for tests marked `server`.

The server listens on every interface and knows no password, so it runs in a network namespace of
its own. A relay carries its one port out over a Unix socket to 127.0.0.1, where tests reach it.
Run as a program, this file is the part inside the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

SERVER_PORT = 29530
_UNSHARE = ["unshare", "--map-root-user", "--net"]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def why_not() -> str | None:
    """Return why the server cannot run here, or None when it can."""
    if importlib.util.find_spec("milvus") is None:
        return "the PyPI package `milvus` is missing: pip install --no-deps milvus==2.3.5"
    try:
        subprocess.run([*_UNSHARE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"a network namespace cannot be made here ({error})"
    return None


class MilvusServer:
    """Start, kill and start again one server with its data under `folder`.

    `uri` stays the same over restarts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # a Unix socket's path may have 107 bytes, and pytest's folders are long
        self._socket = Path("/tmp") / f"milvus-{os.getpid()}-{id(self):x}.sock"
        self._process: subprocess.Popen[str] | None = None
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connect = _relay_to(lambda: asyncio.open_unix_connection(self._socket))
        self._loop.create_task(asyncio.start_server(connect, sock=listener))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "launcher.log").open("a")
        self._process = subprocess.Popen(
            [*_UNSHARE, sys.executable, __file__, str(self.folder), str(self._socket)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            process_group=0,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.kill()
            raise RuntimeError(f"the Milvus server did not start: see {log.name}")

    def kill(self) -> None:
        """End the server at once, as `kill -9` or a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        """Kill the server and stop the relay."""
        self.kill()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _relay_to(connect: Callable[[], Awaitable[Streams]]) -> Callable[..., Awaitable[None]]:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return relay


def _bring_loopback_up() -> None:
    set_flags, up_and_running = 0x8914, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", up_and_running))


def _end_with_tests() -> None:
    """End this process, and the server with it, when the tests' process ends, killed or not."""
    set_signal = 1  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(set_signal, signal.SIGTERM)


async def _inside(folder: str, socket_path: str) -> None:
    from milvus import MilvusServer as Packaged
    from milvus import MilvusServerConfig

    server = Packaged(MilvusServerConfig(data_dir=folder, proxy_port=SERVER_PORT))
    server.start()
    connect = _relay_to(lambda: asyncio.open_connection("127.0.0.1", SERVER_PORT))
    await asyncio.start_unix_server(connect, socket_path)
    print("ready", flush=True)
    while server.server_proc.poll() is None:
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    _end_with_tests()
    _bring_loopback_up()
    asyncio.run(_inside(sys.argv[1], sys.argv[2]))
