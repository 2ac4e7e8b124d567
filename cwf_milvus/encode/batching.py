"""Lists of photos that can share a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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


def in_batches(
    items: Iterable[T],
    size: int,
    key: Callable[[T], Hashable],
    run: Callable[[list[T]], Iterable[R]],
) -> list[R]:
    """Return what `run` makes of each item, in the order of the items, a batch at a time."""
    made: dict[int, R] = {}
    for batch in batches(enumerate(items), size, lambda numbered: key(numbered[1])):
        places, given = zip(*batch, strict=True)
        made.update(zip(places, run(list(given)), strict=True))
    return [made[place] for place in sorted(made)]
