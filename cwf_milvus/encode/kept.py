"""Values that are kept for a while, up to so many bytes; safe for threads."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

_Value = TypeVar("_Value")


class LastUsed(Generic[_Value]):
    """Values by key, up to so many bytes; those used longest ago go first.

    Args:
        most_bytes: how many bytes may be kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._lock = threading.RLock()
        self._values = self._empty(most_bytes)

    @staticmethod
    def _empty(most_bytes: int) -> LRUCache[Hashable, tuple[_Value, int]]:
        return LRUCache(most_bytes, getsizeof=lambda kept: kept[1])

    def __getstate__(self) -> int:
        """Return what a copy or another process needs: the values stay here."""
        return self.most_bytes

    def __setstate__(self, most_bytes: int) -> None:
        LastUsed.__init__(self, most_bytes)

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept."""
        return int(self._values.currsize)

    @property
    def most_bytes(self) -> int:
        """How many bytes may be kept; to be changed at will."""
        return int(self._values.maxsize)

    @most_bytes.setter
    def most_bytes(self, most_bytes: int) -> None:
        with self._lock:
            before, self._values = self._values, self._empty(most_bytes)
            while before:
                key, (value, n_bytes) = before.popitem()  # the one used longest ago
                self.put(key, value, n_bytes)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[Hashable]:
        """Return the keys of what is kept."""
        with self._lock:
            return list(self._values)

    def clear(self) -> None:
        """Let go of all values."""
        with self._lock:
            self._values.clear()

    def get(self, key: Hashable) -> _Value | None:
        """Return a value, which now is the one used last; None where there is none."""
        with self._lock:
            kept = self._values.get(key)
        return None if kept is None else kept[0]

    def put(self, key: Hashable, value: _Value, n_bytes: int) -> None:
        """Keep a value, unless it is larger than all that may be kept."""
        with self._lock:
            self._values.pop(key, None)
            if n_bytes <= self.most_bytes:
                self._values[key] = value, n_bytes
