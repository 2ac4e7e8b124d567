"""Python's search for garbage, put off while many objects are made that are none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python from looking through all its objects while an answer's are made.

    Rows by the thousand set it off, each time 0.3 s in a process that holds PyTorch, and find
    nothing: they hold no cycles. For short work only. Threads may be in here side by side: it goes
    on again when the one that stopped it is done.
    """
    was_on = gc.isenabled()
    if was_on:  # or another thread has stopped it, and may set it going between these two lines
        gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
