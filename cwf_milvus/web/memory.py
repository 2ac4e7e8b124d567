"""Memory kept between the batches of a network, in a process that serves."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of mallopt(3)


def keep_memory() -> None:
    """Have the C library keep memory that was freed; to be called before any thread is made.

    Else the feature maps of a batch are given back to the system after each layer, and had anew,
    page by page: in batches of 8 that is a third of the network's time (docs/serve.md).
    """
    with suppress(OSError, AttributeError):  # another C library than GNU's
        set_option = ctypes.CDLL(None).mallopt
        set_option(_ARENA_MAX, 1)
        set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
