"""The bodies of requests as they come: none too large or too slow, nor all of them too much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from cwf_milvus.web.settings import ServeSettings

MOST_ADDED = 256
"""Photos that a request may bring to be stored."""
_ADDING = "/api/photos"  # whose files wait on the disk
_AT_ONCE = 16  # times the bytes of a photo: those stored by one request, those all may hold
_PACE = 64 * 2**10  # bytes a second that a sender must keep, after _GRACE
_GRACE = 5.0  # seconds
_BESIDE = 2**20  # bytes of a form beside its photo
_DRAINED_BYTES, _DRAINED_SECONDS = 64 * 2**20, 5.0  # of what is refused as too large


class Refused(Exception):
    """A request that gets no further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Bodies:
    """Counts what is received.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held = 0

    @contextmanager
    def bounded(self, path: str, headers: Headers, receive: Receive) -> Iterator[Receive]:
        """Yield what receives a body within its bounds, for as long as the request lasts.

        Raises:
            Refused: at once for a body that is declared too large; else when it is received.
        """
        adding = path == _ADDING
        most = self._settings.max_bytes * (_AT_ONCE if adding else 1)
        seconds = self._settings.body_seconds * (_AT_ONCE if adding else 1)
        too_large = Refused(413, f"the request is above the limit of {most:,} bytes: send less")
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > most + _BESIDE:
            raise too_large
        started, received, held, is_whole = time.monotonic(), 0, 0, False

        async def receive_some() -> Message:
            nonlocal received, held, is_whole
            if is_whole:  # what is waited for now is the end of the connection
                return await receive()
            spent = time.monotonic() - started
            left = min(seconds, _GRACE + received / _PACE) - spent
            with anyio.move_on_after(max(0.0, left)):
                message = await receive()
                part = len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
                received += part
                if received > most + _BESIDE:
                    raise too_large
                if not adding:
                    held += part
                    self._held += part
                    if self._held > _AT_ONCE * (most + _BESIDE):
                        raise Refused(503, "too much is being sent at once: try again in a moment")
                return message
            raise Refused(408, "the request came too slowly: send it again on a better connection")

        try:
            yield receive_some
        finally:
            self._held -= held


async def drained(receive: Receive) -> None:
    """Take what still comes, within bounds: a browser reads no answer before it has sent all."""
    left = _DRAINED_BYTES
    with anyio.move_on_after(_DRAINED_SECONDS):
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                return
