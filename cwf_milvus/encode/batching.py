"""Lists of photos that can share a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], size: int, key: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """Group items of equal key into lists of at most `size`, full ones first, in order.

    Which items share a list depends on the sequence of items of one key alone, so that a run
    that skips whole lists of an earlier one forms the same lists from the rest.
    """
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == size:
            del waiting[key(item)]
            yield group
    yield from waiting.values()
