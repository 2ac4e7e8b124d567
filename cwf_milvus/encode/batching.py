"""Lists of photos that can share a forward pass."""

from __future__ import annotations

from collections import deque
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
    return in_order(items, size, key, lambda lists: map(run, lists))


def in_order(
    items: Iterable[T],
    size: int,
    key: Callable[[T], Hashable],
    run: Callable[[Iterator[list[T]]], Iterable[Iterable[R]]],
) -> list[R]:
    """Return what `run` makes of each item, in the order of the items.

    Args:
        items: as in `batches`, as are size and key.
        size: most items of a batch.
        key: equal for those that may share a batch.
        run: makes of the batches, in their order, one result an item each; it may take further
            batches before it gives a result.
    """
    taken: deque[list[int]] = deque()

    def lists() -> Iterator[list[T]]:
        for batch in batches(enumerate(items), size, lambda numbered: key(numbered[1])):
            taken.append([place for place, _ in batch])
            yield [item for _, item in batch]

    made: dict[int, R] = {}
    for results in run(lists()):
        made.update(zip(taken.popleft(), results, strict=True))
    return [made[place] for place in sorted(made)]
