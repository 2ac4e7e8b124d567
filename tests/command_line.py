"""`cwf-milvus` as a process of its own, started in an instant, to be killed at any moment.

A process that has imported everything forks one for each command, which saves each the seconds
that the imports take.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

_FORKING = """
import json, os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts ignoring it
import cwf_milvus.cli, cwf_milvus.collection, cwf_milvus.encode.encoder
import cwf_milvus.index.indexing

while line := sys.stdin.readline():
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["environ"])
        if asked["file_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_bytes"],) * 2)
        status = 70
        try:
            status = cwf_milvus.cli.main(asked["arguments"])
        except SystemExit as end:
            status = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    sys.stdin.readline()  # till then its id is nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Command:
    """One command, running."""

    def __init__(self, programs: subprocess.Popen[str], output: Path) -> None:
        self._programs, self._output = programs, output
        self.pid = int(self._line())
        self._status: int | None = None

    def wait(self) -> int:
        """Return the exit status; -9 when killed."""
        if self._status is None:
            assert self._programs.stdin is not None
            self._programs.stdin.write("wait\n")
            self._programs.stdin.flush()
            self._status = int(self._line())
        return self._status

    def send(self, number: signal.Signals) -> None:
        """Send a signal, which does nothing to a command that has ended and was not waited for."""
        os.kill(self.pid, number)

    def text(self) -> str:
        """Return all that it wrote, to the standard output and error."""
        return self._output.read_text() if self._output.exists() else ""

    def _line(self) -> str:
        assert self._programs.stdout is not None
        return self._programs.stdout.readline()


class Programs:
    """Starts one command after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKING],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, *arguments: object, environ: dict[str, str] | None = None, file_bytes: int = 0
    ) -> Command:
        """Start a command; `file_bytes` is the most that it may write to one file."""
        self._count += 1
        output = self._folder / f"output-{self._count}.txt"
        asked: dict[str, Any] = {
            "arguments": [str(argument) for argument in arguments],
            "output": str(output),
            "environ": environ or {},
            "file_bytes": file_bytes,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Command(self._process, output)

    def run(self, *arguments: object, **options: Any) -> tuple[int, str]:
        """Run a command to its end; returns its exit status and all that it wrote."""
        command = self.start(*arguments, **options)
        return command.wait(), command.text()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    started = Programs(folder)
    try:
        yield started
    finally:
        started.close()


TINY: Sequence[str] = (
    *("--backbone", "timm:test_resnet", "--weights", "random", "--no-whitening"),
    *("--image-size", "64", "--class-image-size", "32", "--store-classes", "4", "--quiet"),
)
"""Options of `index` for a network of 96 channels with random weights, built in an instant."""
