"""Limits of a photo and of all that are decoded at once, settled before anything is decoded."""

from __future__ import annotations

import io
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cwf_milvus.errors import ImageError, quoted

MAX_BYTES = 512 * 2**20
"""Largest encoded photo that is read, in bytes."""
MAX_PIXELS = 178_956_970 // 2
"""Largest width x height that is decoded in full (Pillow's own warning level)."""
DECODED_BYTES = 2**30
"""Memory, in bytes, that all decodes of a process take together, as their headers foretell it."""
SECONDS = 10.0
"""Processor time that a decoder may take for one photo, where it reads step by step."""

_BYTES_A_PIXEL = 8  # of max_pixels; what takes more is refused at fewer pixels
_SMALL = 2**25  # pixels that every format may have, whatever memory it takes
_DECLARED = 4  # times max_pixels that a photo may have where its decoder reduces it
_STEPS = 50_000  # reads of a decoder, beyond one for each 100 bytes: an instant
_READ_AGAIN = 4  # times the length of a photo that its decoder may read in all


def check_size(
    size: tuple[int, int],
    name: str,
    max_pixels: int,
    *,
    reduced: int = 1,
    memory: float = 0,
    kind: str = "",
) -> None:
    """Refuse a photo by the width and height that its header declares.

    Args:
        size: declared width and height.
        name: of the photo, for the message.
        max_pixels: largest width x height that is decoded in full.
        reduced: the decoder gives one pixel for so many of a side.
        memory: bytes that decoding takes.
        kind: name of the format, for the message.

    Raises:
        ImageError: above the limit; names the number to raise it to.
    """
    width, height = size
    pixels = width * height
    # In whole numbers: a float of 2**62 is off by hundreds.
    needed = max(-(-pixels // reduced**2), -(-pixels // (1 if reduced == 1 else _DECLARED)))
    most = _BYTES_A_PIXEL * max(max_pixels, _SMALL)
    if needed <= max_pixels and memory <= most:
        return
    raised = max(needed, math.ceil(memory / _BYTES_A_PIXEL))
    why = f"above the limit of {max_pixels:,}"
    if needed <= max_pixels:
        why = (
            f"which take {memory / 2**20:,.0f} MiB to decode as {kind}, above the limit of "
            f"{most / 2**20:,.0f} MiB"
        )
    raise ImageError(
        f"{quoted(name)} has {width} x {height} = {pixels:,} pixels, {why}; save it smaller, or "
        f"give max_pixels={raised} (--max-pixels {raised}) if you trust it"
    )


class Budget:
    """An amount of memory that threads take parts of, each waiting for its turn.

    Args:
        total: in bytes. A part that is larger waits until nobody else holds any.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._reset()
        os.register_at_fork(after_in_child=self._reset)  # its threads are not in the child

    def _reset(self) -> None:
        self._free = self.total
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # held by who waits, lest small parts overtake it for ever

    @contextmanager
    def held(self, amount: float) -> Iterator[None]:
        """Hold a part, given back at the end; waits for it."""
        part = min(int(amount), self.total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= part)
            self._free -= part
        try:
            yield
        finally:
            with self._changed:
                self._free += part
                self._changed.notify_all()


DECODING = Budget(DECODED_BYTES)
READING = Budget(2 * MAX_BYTES)  # what an indexing run holds of encoded photos


class Stream(io.BytesIO):
    """The bytes of a photo as its decoder reads them: in few steps, in time, to no early end.

    Pillow's parsers read byte by byte where they look for a mark, and again and again where an
    index says so: a damaged photo must not make that last. Nor may it end early, even where the
    host program lets Pillow be lenient.

    Args:
        data: of the photo.
        whole: reading on at its end is an error; of OpenJPEG it is not, which finds its end so.
    """

    def __init__(self, data: bytes, *, whole: bool = True) -> None:
        super().__init__(data)
        self._whole = whole
        self._length = len(data)
        self._steps = 0
        self._read = 0
        self._end = time.thread_time() + SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on. Raises OSError at the end, and beyond the limits."""
        data = super().read(size)
        if not data and size != 0 and self._whole:
            raise OSError("it is truncated")
        self._steps += 1
        self._read += len(data)
        if self._steps > _STEPS + self.tell() / 100:
            raise OSError("its decoder finds its way in too many small steps")
        if self._read > _READ_AGAIN * self._length + 2**20:
            raise OSError("it has its decoder read the same bytes again and again")
        if time.thread_time() > self._end:
            raise OSError(f"it takes more than {SECONDS:g} seconds to decode")
        return data
