"""Rows on their way to another uri, noted in the side collection until they have arrived.

The new row is written before the old one is removed. A run that is killed between the two leaves
both, and the note of it, by which the next run ends the move.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from cwf_milvus.errors import CollectionError, quoted
from cwf_milvus.store.client import MESSAGE_BYTES, TOP_K
from cwf_milvus.store.fields import fields_of
from cwf_milvus.store.filters import one_of
from cwf_milvus.store.layout import checked_uri
from cwf_milvus.store.names import prefixes
from cwf_milvus.store.packing import Text
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.sidecar import Sidecar

_MOVE = "move/"
_AT_ONCE = 256


class MovableRows(PhotoRows):
    """Photos whose names change while they are stored; the arguments are those of `PhotoRows`."""

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: a connection belongs to one process.

        Raises:
            CollectionError: always.
        """
        raise CollectionError(
            f"{self!r} holds a connection, which cannot be copied or sent to another process: call "
            "InstanceCollection.open there (Milvus Lite lets one process at a time open a .db)"
        )

    def move(self, pairs: Mapping[str, str]) -> None:
        """Give stored photos other uris; vectors and the user's fields stay as they are.

        A row that has the new uri is replaced; an old uri that is not stored is passed over.

        Args:
            pairs: old uri to new.

        Raises:
            StoreError: Milvus failed; `end_moves` goes on from there.
            ImageError: a uri that Milvus cannot hold.
        """
        at_once = max(1, MESSAGE_BYTES // self.layout.row_bytes)
        asked, pending = list(pairs), PendingMoves(self.sidecar)
        with self._lock:
            for start in range(0, len(asked), at_once):
                old = self.raw_rows(asked[start : start + at_once])
                part = {uri: checked_uri(pairs[uri]) for uri in old if pairs[uri] != uri}
                if not part:
                    continue
                pending.note(part)
                with self.ledger.storing(list(part.values())):
                    if self.class_rows is not None:
                        self.class_rows.delete(list(self.known(list(part.values()))))
                        n_classes = {uri: len(old[uri]["class_ids"]) for uri in part}
                        self.class_rows.copy(part, n_classes)
                    self.store.write(
                        self.name, [self.layout.renamed(old[uri], new) for uri, new in part.items()]
                    )
                self._absent.difference_update(part.values())
                self.remove(list(part))
                pending.done(part)

    def end_moves(self, ours: Callable[[str], bool] | None = None) -> None:
        """End the moves that an earlier run was killed in.

        Args:
            ours: tells by a photo's new uri whether its move is ours to end, where others may be at
                work; None for all.

        Raises:
            StoreError: Milvus failed.
        """
        with self._lock:
            pending = PendingMoves(self.sidecar)
            begun = pending.read()
            pairs = {old: new for old, new in begun.items() if ours is None or ours(new)}
            if not pairs:
                return
            there = self.known([*pairs, *pairs.values()])
            for old, new in pairs.items():
                if new in there and there.get(old) == there[new]:
                    self.remove(old)
                elif new not in there and self.class_rows is not None:
                    self.class_rows.delete([new])
            pending.done(pairs)

    def under(self, folder: str | os.PathLike[str]) -> list[str]:
        """Return the uris of stored photos under a folder, by their names alone."""
        begin = prefixes(folder)
        return [uri for uri in self.uris() if uri.startswith(begin)]

    def alike(self, contents: Iterable[str]) -> list[str]:
        """Return the uris of stored photos with these bytes.

        Args:
            contents: SHA-256 of each, in hex.

        Raises:
            StoreError: Milvus failed.
        """
        found: list[str] = []
        asked = list(dict.fromkeys(contents))
        for start in range(0, len(asked), _AT_ONCE):
            rows = self.store.call(
                "query",
                self.name,
                filter=one_of("content", asked[start : start + _AT_ONCE]),
                output_fields=["uri"],
                limit=TOP_K,
                consistency_level="Strong",
            )
            found += [row["uri"] for row in rows]
        return found

    def relocate(self, old: str | Path, new: str | Path) -> int:
        """Give a photo, or all of a folder, the name of where it is now; returns how many.

        Nothing is read: for folders and stores that `add` cannot see now. Where it can, it finds
        moved photos by itself.

        Args:
            old: a folder's or photo's name, as it was added.
            new: its name now.

        Raises:
            CollectionError: nothing is stored under the old name, or another photo has the new one.
            StoreError: Milvus failed.
        """
        pairs = relocated(self, old, new)
        self.move(pairs)
        return len(pairs)

    def fields(self) -> dict[str, dict[str, int]]:
        """Return your own fields: how many photos have each, by the type of its value.

        Raises:
            StoreError: Milvus failed.
        """
        return fields_of(self)

    def info(self, *, fields: bool = True) -> dict[str, Any]:
        """Return what the collection holds and how it was made, as plain JSON values.

        Args:
            fields: the user's own with their counts too, for which every row is read.
        """
        return {**super().info(), **({"fields": self.fields()} if fields else {})}


def relocated(
    collection: MovableRows, old: str | os.PathLike[str], new: str | os.PathLike[str]
) -> dict[str, str]:
    """Return old uri to new, of a photo or of all that are stored under a folder.

    Raises:
        CollectionError: nothing is stored under the old name, or another photo has the new one.
    """
    (uri,), ends = collection.named(old), list(zip(prefixes(old), prefixes(new), strict=False))
    pairs = {uri: ends[0][1].rstrip("/")} if uri in collection.known([uri]) else {}
    for uri in collection.under(old):
        begin, end = next(pair for pair in ends if uri.startswith(pair[0]))
        pairs[uri] = end + uri.removeprefix(begin)
    if not pairs:
        raise CollectionError(
            f"nothing is stored of {quoted(os.fspath(old))} in {collection.name!r}: give the name "
            "that it was indexed under"
        )
    taken = sorted(collection.known(list(pairs.values())).keys() - pairs.keys())
    if taken:
        raise CollectionError(
            f"{quoted(taken[0])} is stored already ({len(taken)} of {len(pairs)} are): remove "
            "these first, or give another new name"
        )
    return pairs


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
