"""The optional collection ``<name>_classes``: each class vector as a row, to be searched by class.

A search such as ``client.search("photos_classes", [vector], filter="class_id == 5")`` runs in
Milvus itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pymilvus import CollectionSchema, DataType, MilvusClient

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import CollectionError
from cwf_milvus.store.client import MESSAGE_BYTES, Store
from cwf_milvus.store.side import SideCollection

_FIELDS = ("key", "uri", "class_id", "rank", "vector")
_URI_BYTES = 4096
_ROUNDED = 0.5  # how far, of its length, 4 bits a number take a vector at most


class ClassRows(SideCollection):
    """The class vectors of a collection's photos, a row each: uri, class_id, rank, vector.

    Args:
        store: the connection.
        collection: the main collection's name.
        dim: d, of every vector.
    """

    suffix = "classes"

    def __init__(self, store: Store, collection: str, dim: int) -> None:
        super().__init__(store, collection)
        self._dim = dim
        self._at_once = max(1, MESSAGE_BYTES // (4 * dim + 2 * _URI_BYTES))

    def schema(self) -> CollectionSchema:
        """Return its fields."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("uri", DataType.VARCHAR, max_length=_URI_BYTES)
        schema.add_field("class_id", DataType.INT64)
        schema.add_field("rank", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._dim)
        return schema

    def must_be_free(self) -> None:
        """Raise `CollectionError` where rows of an earlier collection of this name are left."""
        if self.exists():
            self.store.load(self.name)
            if self.count():
                raise CollectionError(
                    f"{self.name!r} in {self.store.uri} has rows of an earlier collection "
                    f"{self.collection!r}: drop it if nobody needs it, or choose another name"
                )

    def verify(self, n_vectors: int | None = None, n_unlike: int = 0) -> list[str]:
        """Return what is wrong with it.

        Args:
            n_vectors: how many class vectors the photos have; None where that is not known.
            n_unlike: of `unlike`, of all photos.
        """
        n_rows, wrong = self.count(), []
        if n_vectors is not None and n_rows != n_vectors:
            wrong.append(
                f"{n_rows} rows of class vectors, and the photos have {n_vectors} class vectors: "
                "`cwf-milvus repair` makes them anew"
            )
        if n_unlike:
            wrong.append(
                f"{n_unlike} rows of class vectors are missing, or other than in the photos' rows: "
                "`cwf-milvus repair` makes them anew"
            )
        return wrong

    def unlike(self, encodings: Sequence[Encoding]) -> int:
        """Return how many rows of photos are missing, or other than the photos' class vectors.

        Args:
            encodings: as the photos' rows have them, rounded.
        """
        wanted = {
            _key(encoding.uri, rank): (encoding.uri, int(class_id), np.asarray(vector, np.float32))
            for encoding in encodings
            for rank, (class_id, vector) in enumerate(
                zip(encoding.class_ids, encoding.class_vectors, strict=True)
            )
        }
        fields = ["uri", "class_id", "vector"]
        row_bytes = 4 * self._dim + 2 * _URI_BYTES
        found = self.store.fetch(self.name, "key", list(wanted), fields, row_bytes=row_bytes)
        n_unlike = len(wanted) - len(found)
        for key, row in found.items():
            uri, class_id, vector = wanted[key]
            kept = np.asarray(row["vector"], np.float32)
            is_near = (
                np.linalg.norm(kept - vector) <= _ROUNDED * float(np.linalg.norm(vector)) + 1e-6
            )
            n_unlike += (row["uri"], row["class_id"]) != (uri, class_id) or not is_near
        return n_unlike

    def replace(self, encodings: Sequence[Encoding], present: Collection[str]) -> None:
        """Store the class vectors of photos in place of those that `present` ones have."""
        self.delete([encoding.uri for encoding in encodings if encoding.uri in present])
        rows: list[dict[str, Any]] = []
        for encoding in encodings:
            rows += [
                {
                    "key": _key(encoding.uri, rank),
                    "uri": encoding.uri,
                    "class_id": int(class_id),
                    "rank": rank,
                    "vector": np.asarray(vector, np.float32),
                }
                for rank, (class_id, vector) in enumerate(
                    zip(encoding.class_ids, encoding.class_vectors, strict=True)
                )
            ]
        self.put(rows)

    def copy(self, pairs: Mapping[str, str], ranks: Mapping[str, int]) -> None:
        """Store the class vectors of photos under other uris too.

        Args:
            pairs: old uri to new.
            ranks: how many class vectors each old one has.
        """
        wanted = {_key(old, rank): new for old, new in pairs.items() for rank in range(ranks[old])}
        fields = ["class_id", "rank", "vector"]
        found = self.store.fetch(
            self.name, "key", list(wanted), fields, row_bytes=4 * self._dim + 2 * _URI_BYTES
        )
        self.put(
            [
                {**row, "key": _key(wanted[key], row["rank"]), "uri": wanted[key]}
                for key, row in found.items()
            ]
        )

    def of(self, ranks: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return the rows of photos, whole.

        Args:
            ranks: how many class vectors each photo has, by uri.
        """
        keys = [_key(uri, rank) for uri, n in ranks.items() for rank in range(n)]
        found = self.store.fetch(
            self.name, "key", keys, _FIELDS, row_bytes=4 * self._dim + 2 * _URI_BYTES
        )
        return [{name: found[key][name] for name in _FIELDS} for key in keys if key in found]

    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store whole rows."""
        for start in range(0, len(rows), self._at_once):
            self.store.write(self.name, rows[start : start + self._at_once])

    def delete(self, uris: Sequence[str]) -> None:
        """Delete the class vectors of photos."""
        self.store.delete(self.name, "uri", uris)


def _key(uri: str, rank: int) -> str:
    return f"{hashlib.sha256(uri.encode()).hexdigest()[:40]}-{rank}"
