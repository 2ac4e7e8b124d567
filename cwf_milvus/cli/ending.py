"""How a command ends early: within 2 seconds of a signal, and not before a server had its time."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = "interrupted: what was finished is kept; run the same command to go on"
_GRACE = 1.5  # seconds for what is in hand: a write, a report's last line
_said = threading.Event()


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Have SIGTERM end a command as SIGINT does, and both within 2 seconds.

    What is in hand then may be a photo of minutes, or an answer that does not come: a command that
    has not ended by itself is ended. That is safe, as a kill at any moment is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    _said.clear()

    def end(number: int, _: FrameType | None) -> None:
        last = threading.Timer(_GRACE, _end_now, (number,))
        last.daemon = True
        last.start()
        raise KeyboardInterrupt(number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as a job in the background has it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def patience(arguments: argparse.Namespace) -> Iterator[None]:
    """Have calls to a server wait for it as long as `--wait` says."""
    is_server = str(getattr(arguments, "uri", "")).startswith(("http://", "https://"))
    if not is_server or not hasattr(arguments, "wait"):
        yield
        return
    from cwf_milvus.store.client import Store  # pymilvus takes a while

    before, Store.wait = Store.wait, arguments.wait
    try:
        yield
    finally:
        Store.wait = before


def say_interrupted() -> None:
    """Print, once, that a command was interrupted."""
    if not _said.is_set():
        _said.set()
        print(_INTERRUPTED, file=sys.stderr, flush=True)


def _end_now(number: int) -> None:
    say_interrupted()
    os._exit(128 + number)
