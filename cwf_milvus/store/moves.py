"""Rows on their way to another uri, noted in the side collection until they have arrived.

The new row is written before the old one is removed. A run that is killed between the two leaves
both, and the note of it, by which the next run ends the move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from cwf_milvus.store.packing import Text
from cwf_milvus.store.sidecar import Sidecar

_MOVE = "move/"


class PendingMoves:
    """The moves of a collection that have begun.

    Args:
        sidecar: where they are noted.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._prefix = f"{sidecar.prefix}{_MOVE}"

    def note(self, pairs: Mapping[str, str]) -> None:
        """Note moves, from old uri to new, that are about to begin."""
        rows = [
            {"key": self._key(old), "value": Text(json.dumps([old, new])), "vector": [0.0, 0.0]}
            for old, new in pairs.items()
        ]
        self._sidecar.store.write(self._sidecar.name, rows)

    def read(self) -> dict[str, str]:
        """Return the moves that have begun, from old uri to new."""
        store, name = self._sidecar.store, self._sidecar.name
        keys = [row["key"] for row in store.scan(name, "key")]
        ours = [key for key in keys if key.startswith(self._prefix)]
        found = store.fetch(name, "key", ours, ["value"], row_bytes=16_384)
        return dict(json.loads(row["value"]) for row in found.values())

    def done(self, old: Iterable[str]) -> None:
        """Forget moves that have ended."""
        self._sidecar.store.delete(self._sidecar.name, "key", [self._key(uri) for uri in old])

    def _key(self, old: str) -> str:
        return self._prefix + hashlib.sha256(old.encode()).hexdigest()
