"""Database-side augmentation: each descriptor replaced by a weighted sum over its neighbours.

The augmented descriptors are in a collection of their own, ``<name>_augmented``, beside the
untouched ones: dropping it undoes all (Turcot and Lowe, 2009; weights of Radenovic et al., 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from pymilvus import CollectionSchema, DataType

from cwf_milvus.checks import checked_alpha, checked_count
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.expansion import alpha_expand
from cwf_milvus.store.client import METRIC, TOP_K, check_limit
from cwf_milvus.store.layout import PLAIN_FIELDS
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import Row, as_row
from cwf_milvus.store.side import SideCollection

_AT_ONCE = 64
_UNEQUAL = 1e-3  # a length that is not 1
_LOOK = 100  # rows around a new one that may gain it as a neighbour
_SHOWN = ("uri", *PLAIN_FIELDS, "checksum", "$meta")
_OWN = ("_augmented_by", "_reach")


@dataclass(frozen=True)
class Augmentation:
    """What `augment` did.

    Attributes:
        added: rows that are new in it.
        renewed: rows whose photo, metadata or neighbours changed.
        removed: rows of photos that are no longer in the collection.
        unchanged: the others.
    """

    added: int
    renewed: int
    removed: int
    unchanged: int

    def __str__(self) -> str:
        return (
            f"{self.added} added, {self.renewed} renewed, {self.removed} removed, "
            f"{self.unchanged} unchanged"
        )


class Augmented(SideCollection):
    """The augmented descriptors of a collection's photos.

    Args:
        collection: an open collection.
    """

    suffix = "augmented"
    vector = "descriptor"

    def __init__(self, collection: PhotoRows) -> None:
        super().__init__(collection.store, collection.name)
        self._rows = collection

    def schema(self) -> CollectionSchema:
        """Return its fields: the main collection's without the packed vectors, and its own."""
        schema = self._rows.layout.schema_without_vectors()
        schema.add_field(_OWN[0], DataType.VARCHAR, max_length=64)
        schema.add_field(_OWN[1], DataType.DOUBLE)
        return schema

    def uris(self) -> Iterator[str]:
        """Yield the uri of every photo in it, sorted."""
        for row in self.store.scan(self.name, "uri"):
            yield row["uri"]

    def verify(self) -> list[str]:
        """Return what is wrong with it: descriptors that are damaged.

        Those of photos that are gone or changed are no fault: the next `augment` finds them.
        """
        self.store.load(self.name)
        damaged = 0
        for row in self.store.scan(self.name, "uri", ["descriptor"]):
            length = float(np.linalg.norm(np.asarray(row["descriptor"], np.float32)))
            damaged += not (abs(length - 1) < _UNEQUAL or length == 0)
        if not damaged:
            return []
        return [
            f"{damaged} augmented descriptors are damaged: `cwf-milvus augment --undo`, then "
            "`cwf-milvus augment`, makes them anew"
        ]


def augment(collection: PhotoRows, *, neighbours: int = 10, alpha: float = 3.0) -> Augmentation:
    """Augment every descriptor by its neighbours; see `InstanceCollection.augment`."""
    checked_count("neighbours", neighbours)
    if neighbours >= TOP_K:
        raise SettingsError(f"neighbours={neighbours}: Milvus gives at most {TOP_K} at once")
    setting = f"{neighbours} {checked_alpha(alpha)}"
    side = Augmented(collection)
    side.create()
    store, name = side.store, side.name
    made = {
        row["uri"]: row
        for row in store.scan(name, "uri", ["checksum", *_OWN])
        if row.get("_augmented_by") == setting
    }
    stale: set[str] = set()
    seen: set[str] = set()
    for rows in _rows(collection):
        seen.update(rows)
        stale |= {
            uri
            for uri, row in rows.items()
            if uri not in made or made[uri]["checksum"] != row["checksum"]
        }
    todo = stale | _gaining(collection, [uri for uri in stale if uri in seen], made)
    known = set(side.uris())
    for rows in _rows(collection, todo):
        _write(side, collection, rows, neighbours, float(alpha), setting)
    gone = sorted(known - seen)
    if gone:
        store.delete(name, "uri", gone)
    return Augmentation(len(todo - known), len(todo & known), len(gone), len(seen - todo))


def augmented_search(
    collection: PhotoRows,
    descriptors: np.ndarray,
    *,
    limit: int,
    filter: str | None = None,
) -> list[list[Row]]:
    """Return the photos whose augmented descriptors are nearest; see `search_vectors`.

    Photos added since `augment` are not found, and a filter sees the metadata as it was then.

    Raises:
        CollectionError: `augment` was never run.
    """
    check_limit(limit)
    side = Augmented(collection)
    store, name = side.store, side.name
    if not side.exists():
        raise CollectionError(
            f"the collection {collection.name!r} has no augmented descriptors: run "
            "`cwf-milvus augment`, or `augment()`, first"
        )
    store.load(name)
    answers = store.search(
        name,
        filter,
        data=list(np.asarray(descriptors, np.float32)),
        anns_field="descriptor",
        limit=limit,
        output_fields=["uri"],
        search_params={"metric_type": METRIC, "params": {}},
    )
    scores = [{hit["entity"]["uri"]: float(hit["distance"]) for hit in one} for one in answers]
    wanted = list(dict.fromkeys(uri for one in scores for uri in one))
    raw = store.fetch(collection.name, "uri", wanted, _SHOWN[1:], row_bytes=4096)
    return [
        [as_row(collection.layout, raw[uri], score) for uri, score in one.items() if uri in raw]
        for one in scores
    ]


def _rows(
    collection: PhotoRows, only: set[str] | None = None
) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield the main collection's rows by uri, some at a time; without vectors but for `only`."""
    uris = collection.uris() if only is None else iter(sorted(only))
    fields = ["checksum"] if only is None else ["descriptor", *_SHOWN[1:]]
    at_once = 1000 if only is None else _AT_ONCE
    while part := list(islice(uris, at_once)):
        yield collection.store.fetch(collection.name, "uri", part, fields, row_bytes=8192)


def _nearest(
    collection: PhotoRows, uris: Sequence[str], descriptors: np.ndarray, n: int
) -> list[list[tuple[str, float, np.ndarray]]]:
    """Return, for each photo, uri, cosine and descriptor of its n nearest others."""
    answers = collection.store.search(
        collection.name,
        None,
        data=list(descriptors),
        anns_field="descriptor",
        limit=min(n + 1, TOP_K),
        output_fields=["uri"],
        search_params={"metric_type": METRIC, "params": {}},
    )
    near = [
        [(h["entity"]["uri"], float(h["distance"])) for h in one if h["entity"]["uri"] != uri][:n]
        for uri, one in zip(uris, answers, strict=True)
    ]
    wanted = list(dict.fromkeys(uri for one in near for uri, _ in one))
    found = collection.store.fetch(
        collection.name, "uri", wanted, ["descriptor"], row_bytes=8 * collection.layout.dim
    )
    return [
        [
            (uri, cosine, np.asarray(found[uri]["descriptor"], np.float32))
            for uri, cosine in one
            if uri in found
        ]
        for one in near
    ]


def _gaining(
    collection: PhotoRows, stale: Sequence[str], made: dict[str, dict[str, Any]]
) -> set[str]:
    """Return the rows made before that a new or changed photo is now nearer to than their last."""
    gaining: set[str] = set()
    if not made:
        return gaining
    for start in range(0, len(stale), _AT_ONCE):
        part = list(stale[start : start + _AT_ONCE])
        rows = collection.store.fetch(collection.name, "uri", part, ["descriptor"], row_bytes=8192)
        uris = [uri for uri in part if uri in rows]
        descriptors = np.array([rows[uri]["descriptor"] for uri in uris], np.float32)
        for near in _nearest(collection, uris, descriptors, _LOOK):
            gaining |= {uri for uri, cos, _ in near if uri in made and cos > made[uri]["_reach"]}
    return gaining


def _write(
    side: Augmented,
    collection: PhotoRows,
    rows: dict[str, dict[str, Any]],
    neighbours: int,
    alpha: float,
    setting: str,
) -> None:
    """Augment some photos and store them."""
    uris = list(rows)
    descriptors = np.array([rows[uri]["descriptor"] for uri in uris], np.float32)
    augmented = []
    for i, near in enumerate(_nearest(collection, uris, descriptors, neighbours)):
        own = descriptors[i]
        vector = own
        if near and own.any():
            cosines = np.array([cosine for _, cosine, _ in near], np.float32)
            vector = alpha_expand(own, np.stack([v for _, _, v in near]), cosines, alpha)
        reach = near[-1][1] if len(near) == neighbours else -2.0  # below any cosine
        augmented.append(
            {
                **{name: value for name, value in rows[uris[i]].items() if name != "$meta"},
                "descriptor": vector,
                _OWN[0]: setting,
                _OWN[1]: reach,
            }
        )
    side.store.write(side.name, augmented)
