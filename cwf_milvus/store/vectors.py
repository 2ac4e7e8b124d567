"""The stored vectors of photos, for stages: fetched once, decoded once, kept for a while."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from cwf_milvus.encode.encoding import ARRAYS, KINDS, Kind, Stored, Vectors
from cwf_milvus.encode.kept import LastUsed
from cwf_milvus.errors import CollectionError
from cwf_milvus.store.client import Store
from cwf_milvus.store.layout import Layout

_CACHE_BYTES = 256 * 2**20
_MESSAGE_BYTES = 4 * 2**20  # read at once; one answer of 48 MiB takes gRPC four times as long
_THREADS = 4
_LITE_THREADS = 1  # Milvus Lite is Python in this process: more only get into each other's way


class VectorReader:
    """Reads the vectors of a collection's photos; several threads may use one.

    Args:
        store: the connection.
        collection: its name.
        layout: of its rows.

    Attributes:
        cache: the arrays of the last searches, 256 MiB at most, by uri, checksum of the row and
            name, so that a photo stored anew is fetched anew. Set its `most_bytes` to keep more,
            or 0 for nothing.
    """

    def __init__(self, store: Store, collection: str, layout: Layout) -> None:
        self._store, self._collection, self._layout = store, collection, layout
        self.cache: LastUsed[Stored] = LastUsed(_CACHE_BYTES)

    def read(self, wanted: Mapping[str, Vectors], kinds: Collection[Kind]) -> dict[str, Vectors]:
        """Return photos' vectors with those of some kinds, each fetched once.

        Args:
            wanted: uri to what is there already.
            kinds: what is needed; kinds that are there are not fetched.

        Returns:
            By uri. One that was deleted since keeps what it had, and so does one whose vectors are
            damaged: its `damage` says how.

        Raises:
            StoreError: Milvus failed.
        """
        damage: dict[str, str] = {}
        kinds = [kind for kind in KINDS if kind in kinds and self._layout.fields_of([kind])]
        found: dict[str, dict[str, Any]] = {uri: {} for uri in wanted}
        missing: dict[str, set[Kind]] = {}
        for uri, known in wanted.items():
            for kind in known.lacks(kinds):
                for name in ARRAYS[kind]:
                    key = (uri, known.checksum, name)
                    kept = self.cache.get(key) if known.checksum else None
                    if kept is None:
                        missing.setdefault(uri, set()).add(kind)
                    else:
                        found[uri][name] = kept
        asked = [kind for kind in KINDS if any(kind in needed for needed in missing.values())]
        row_bytes = self._layout.bytes_of(asked)
        at_once = max(1, _MESSAGE_BYTES // max(1, row_bytes))
        uris = list(missing)

        def fetch(start: int) -> dict[str, dict[str, Stored]]:
            rows = self._store.fetch_vectors(
                self._collection,
                "uri",
                uris[start : start + at_once],
                self._layout.fields_of(asked),
                row_bytes=row_bytes,
            )
            return {uri: read_row(uri, row) for uri, row in rows.items()}

        def read_row(uri: str, row: Mapping[str, Any]) -> dict[str, Stored]:
            arrays: dict[str, Stored] = {}
            for kind in asked:
                try:
                    arrays |= self._whole(row, kind, len(wanted[uri].class_ids))
                except CollectionError as error:
                    damage[uri] = str(error)
            return arrays

        n_threads = _LITE_THREADS if self._store.is_lite else _THREADS
        with ThreadPoolExecutor(n_threads) as threads:
            for part in threads.map(fetch, range(0, len(uris), at_once)):
                for uri, arrays in part.items():
                    found[uri] |= self._kept(uri, wanted[uri].checksum, arrays)
        return {
            uri: replace(
                had,
                damage=damage.get(uri, had.damage),
                **{n: a for n, a in found[uri].items() if getattr(had, n) is None},
            )
            for uri, had in wanted.items()
        }

    def _whole(self, row: Mapping[str, Any], kind: Kind, n_classes: int) -> dict[str, Stored]:
        """Return the arrays of a kind; raises `CollectionError` where they are damaged."""
        arrays = self._layout.read(row, [kind])
        vectors, boxes = arrays.get("region_vectors"), arrays.get("region_boxes")
        counts = [
            ("class", arrays.get("class_vectors"), n_classes, "classes"),
            ("region", vectors, 0 if boxes is None else len(boxes), "boxes"),
        ]
        for what, found, n, others in counts:
            if found is not None and len(found) != n:
                raise CollectionError(f"{len(found)} {what} vectors are stored for {n} {others}")
        return arrays

    def _kept(self, uri: str, checksum: str, arrays: Mapping[str, Stored]) -> Mapping[str, Stored]:
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False  # shared by all who find it in the cache
            if checksum:
                self.cache.put((uri, checksum, name), array, array.nbytes)
        return arrays
