"""The service as a process: its socket, its signals, its last requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import h11
import torch
import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits
from uvicorn.protocols.http.h11_impl import H11Protocol

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.web.app import create_app
from cwf_milvus.web.settings import TOKEN, ServeSettings

_LAST_REQUESTS = 10  # seconds that open requests have once the process is told to end
_IDLE = 15  # seconds that a connection may take for its headers, or between requests
_HEADERS_BYTES = 2**16
_CONNECTIONS = 1000
_BACKLOG = 128


def serve(
    collections: Mapping[str, InstanceCollection],
    settings: ServeSettings | None = None,
    *,
    say: Callable[[str], None] = print,
    open_browser: bool = False,
) -> None:
    """Serve until the process is told to end by SIGINT or SIGTERM.

    Requests that are open then are answered, for ten seconds; new ones are not taken.

    Args:
        collections: as in `create_app`.
        settings: as in `create_app`.
        say: told the address, once requests are taken.
        open_browser: show the page.

    Raises:
        SettingsError: the address cannot be had.
    """
    chosen = settings or ServeSettings()
    listener = _listen(chosen)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(f"serving {', '.join(collections)} at {address}")
                if chosen.token:
                    say(f"open it once as {address}?token=... with the value of {TOKEN}")
                elif open_browser:
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    # uvicorn ends by the signal that ended it; the collections are still to be closed.
    with _ended_by_signals(), threadpool_limits(1, "blas"):
        # Beside each other, searches have the cores; threads of one would wait for one another.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        Server(config_of(create_app(collections, chosen))).run(sockets=[listener])


def config_of(app: FastAPI) -> uvicorn.Config:
    """Return how uvicorn runs the application: what is slow or endless is cut off."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses may hold a token
        server_header=False,
        timeout_graceful_shutdown=_LAST_REQUESTS,
        timeout_keep_alive=_IDLE,
        h11_max_incomplete_event_size=_HEADERS_BYTES,
        limit_concurrency=_CONNECTIONS,
        http=Patient,
        ws="none",
    )


class Patient(H11Protocol):
    """HTTP/1.1 of which the headers must have come within some seconds of the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, for as long as it says soon what it wants."""
        super().connection_made(transport)
        self._late = self.loop.call_later(_IDLE, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        self._late.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; the application may be at an answer, which nobody hears then."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer has begun, and there is no other
            self.transport.close()

    def _give_up(self) -> None:
        if self.cycle is None:  # no request has come yet
            self.transport.close()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {settings.host}:{settings.port} ({error.strerror}): give another "
            "--port, or 0 for a free one"
        ) from error
