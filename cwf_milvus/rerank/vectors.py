"""The stored vectors of hits, as stages use them: fetched once, decoded once, kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from cwf_milvus.garbage import no_garbage_collection
from cwf_milvus.hits import Hit
from cwf_milvus.packing import Int8Vectors, unpack_boxes

if TYPE_CHECKING:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.rows import Layout

Kind = Literal["descriptor", "classes", "regions"]
KINDS: tuple[Kind, ...] = ("descriptor", "classes", "regions")

_CACHE_BYTES = 256 * 2**20
_MESSAGE_BYTES = 4 * 2**20  # read at once; one answer of 48 MiB takes gRPC four times as long
_THREADS = 4
_LITE_THREADS = 1  # Milvus Lite is Python in this process: more only get into each other's way
_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Vectors:
    """A photo's stored vectors, or those of them that were asked for; all unit.

    Arrays are float32; vectors stored in int8 stay so, as `Int8Vectors`.

    Attributes:
        content: SHA-256 of the photo's bytes, in hex; "" where unknown.
        class_ids: of shape (N,), whether or not the class vectors are here.
        descriptor: of shape (d,), or None.
        class_vectors: of shape (N, d), or None.
        region_boxes: of shape (R, 4), pixels of the upright original, or None.
        region_vectors: of shape (R, d), or None.
        checksum: of the row that they are from; "" keeps them out of the cache.
    """

    content: str
    class_ids: np.ndarray
    descriptor: np.ndarray | None = None
    class_vectors: np.ndarray | Int8Vectors | None = None
    region_boxes: np.ndarray | None = None
    region_vectors: np.ndarray | Int8Vectors | None = None
    checksum: str = ""

    def of_kind(self, kind: Kind) -> np.ndarray | Int8Vectors | None:
        """Return the vectors of a kind, of shape (n, d); None where they were not fetched."""
        if kind == "descriptor":
            return None if self.descriptor is None else self.descriptor[None]
        return self.class_vectors if kind == "classes" else self.region_vectors

    def lacks(self, kinds: Iterable[Kind]) -> tuple[Kind, ...]:
        """Return those of some kinds that were not fetched."""
        return tuple(kind for kind in kinds if self.of_kind(kind) is None)


class LastUsed(Generic[_Value]):
    """Values by key, up to so many bytes; those used longest ago go first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0
        self._values: OrderedDict[Any, tuple[_Value, int]] = OrderedDict()

    @property
    def most_bytes(self) -> int:
        """How many bytes may be kept; to be changed at will."""
        return self._most_bytes

    @most_bytes.setter
    def most_bytes(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._let_go()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def clear(self) -> None:
        """Let go of all values."""
        self._values.clear()
        self.held_bytes = 0

    def get(self, key: Any) -> _Value | None:
        """Return a value, which now is the one used last; None where there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: _Value, n_bytes: int) -> None:
        """Keep a value, unless it is larger than all that may be kept."""
        if key in self._values:
            self.held_bytes -= self._values.pop(key)[1]
        if n_bytes > self.most_bytes:
            return
        self._values[key] = value, n_bytes
        self.held_bytes += n_bytes
        self._let_go()

    def _let_go(self) -> None:
        while self.held_bytes > self.most_bytes:
            _, (_, gone) = self._values.popitem(last=False)
            self.held_bytes -= gone


_Array = np.ndarray | Int8Vectors
_caches: WeakKeyDictionary[Any, LastUsed[_Array]] = WeakKeyDictionary()


def vector_cache(collection: InstanceCollection) -> LastUsed[_Array]:
    """Return the vectors that an open collection keeps of its last searches, 256 MiB at most.

    They are kept by the checksum of their row, so that a photo stored anew is fetched anew. Set
    `LastUsed.most_bytes` to keep more, or 0 for nothing.
    """
    return _caches.setdefault(collection, LastUsed(_CACHE_BYTES))


def fetch_vectors(
    collection: InstanceCollection, answers: Sequence[Sequence[Hit]], kinds: Collection[Kind]
) -> list[list[Hit]]:
    """Return the hits of some queries with their vectors, each photo's fetched once.

    Args:
        collection: an open collection.
        answers: the hits of each query.
        kinds: what is needed; kinds that a hit has already are not fetched.

    Returns:
        The same hits. One that was deleted since keeps what it had.

    Raises:
        StoreError: Milvus failed.
        CollectionError: stored vectors are damaged.
    """
    wanted: dict[str, Vectors] = {}
    for hits in answers:
        for hit in hits:
            if isinstance(hit.vectors, Vectors) and hit.vectors.lacks(kinds):
                wanted.setdefault(hit.uri, hit.vectors)
    if not wanted:
        return [list(hits) for hits in answers]
    with no_garbage_collection():
        found = _fetched(collection, wanted, [kind for kind in KINDS if kind in kinds])
        return [
            [
                hit.but(vectors=_joined(hit.vectors, found[hit.uri]))
                if hit.uri in found and isinstance(hit.vectors, Vectors)
                else hit
                for hit in hits
            ]
            for hits in answers
        ]


def _joined(had: Vectors, found: dict[str, _Array]) -> Vectors:
    new: dict[str, Any] = {n: array for n, array in found.items() if getattr(had, n) is None}
    return replace(had, **new)


def _fetched(
    collection: InstanceCollection, wanted: dict[str, Vectors], kinds: Sequence[Kind]
) -> dict[str, dict[str, _Array]]:
    """Return, by uri, the arrays of `Vectors` that the kinds are, from memory or from Milvus."""
    if not hasattr(collection, "store"):  # a collection in memory
        rows = collection.get(list(wanted), vectors=True)
        encodings = {row.uri: row.unpack() for row in rows if row is not None}
        return {
            uri: {name: getattr(one, name) for kind in kinds for name in _ARRAYS[kind]}
            for uri, one in encodings.items()
        }
    cache, layout = vector_cache(collection), collection.layout
    found: dict[str, dict[str, _Array]] = {uri: {} for uri in wanted}
    missing: dict[str, set[Kind]] = {}
    for uri, known in wanted.items():
        for kind in kinds:
            for name in _ARRAYS[kind]:
                kept = cache.get((uri, known.checksum, name)) if known.checksum else None
                if kept is None:
                    missing.setdefault(uri, set()).add(kind)
                else:
                    found[uri][name] = kept
    asked = [kind for kind in kinds if any(kind in needed for needed in missing.values())]
    stored = {
        "descriptor": ("descriptor",),
        "classes": layout.class_fields,
        "regions": ("region_boxes", *layout.region_fields),
    }
    names = [name for kind in asked for name in stored[kind]]
    row_bytes = sum(layout.bytes_of(name) for name in names)
    at_once = max(1, _MESSAGE_BYTES // max(1, row_bytes))

    def read(uris: list[str]) -> dict[str, dict[str, _Array]]:
        rows = collection.store.fetch_vectors(
            collection.name, "uri", uris, names, row_bytes=row_bytes
        )
        return {uri: _decoded(row, asked, stored, layout) for uri, row in rows.items()}

    uris = list(missing)
    parts = [uris[start : start + at_once] for start in range(0, len(uris), at_once)]
    with ThreadPoolExecutor(_LITE_THREADS if collection.store.is_lite else _THREADS) as threads:
        for part in threads.map(read, parts):
            for uri, arrays in part.items():
                found[uri] |= arrays
                for name, array in arrays.items():
                    if isinstance(array, np.ndarray):
                        array.flags.writeable = False  # shared by all who find it in the cache
                    if wanted[uri].checksum:
                        cache.put((uri, wanted[uri].checksum, name), array, array.nbytes)
    return found


_ARRAYS: dict[Kind, tuple[str, ...]] = {
    "descriptor": ("descriptor",),
    "classes": ("class_vectors",),
    "regions": ("region_boxes", "region_vectors"),
}


def _decoded(
    row: dict[str, Any], kinds: Sequence[Kind], stored: dict[str, tuple[str, ...]], layout: Layout
) -> dict[str, _Array]:
    arrays: dict[str, _Array] = {}
    for kind in kinds:
        if kind == "descriptor":
            arrays["descriptor"] = np.array(row["descriptor"], np.float32)
        elif kind == "classes":
            arrays["class_vectors"] = layout.read([row[n] for n in stored["classes"]])
        else:
            arrays["region_boxes"] = unpack_boxes(row["region_boxes"])
            arrays["region_vectors"] = layout.read([row[n] for n in stored["regions"][1:]])
    return arrays
