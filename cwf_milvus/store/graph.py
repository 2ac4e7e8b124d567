"""The side collection ``<name>_graph``: of each photo its edges, and its row of the diffusion.

A row's sparse vector has the photos' numbers as its dimensions, so that a search by weights of
numbers is one product with the graph (`method.diffusion`). A number is given once: rows may still
name photos that are gone. The row with the uri "" is the head, which says how the graph was made
and which number is next.

The collection bears the mark of the main one: a graph of an earlier collection of the same name is
none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pybase64
from pymilvus import CollectionSchema, DataType, MilvusClient

from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.client import MESSAGE_BYTES, METRIC, Store
from cwf_milvus.store.layout import URI_BYTES
from cwf_milvus.store.packing import FIELD_BYTES, Text, decoded
from cwf_milvus.store.side import SideCollection

FORMAT = 1
NUMBERED, COMPARED, SETTLED = range(3)
"""How far a photo's row is: it has a number; its edges; its row of the diffusion."""

EDGE = np.dtype([("number", "<u4"), ("similarity", "<f4"), ("inliers", "<u2"), ("cover", "u1")])
"""An edge as it is kept: to which photo, squared late interaction, keypoints that agree, and in
255ths the share of both photos that shows the same."""

MOST_EDGES = 1000
"""Of a photo, the surest ones: thousands of equal photos all have the same few as neighbours."""

_HEAD = ""  # no photo's uri
_HEAD_DIMENSION = 2**32 - 2  # the largest that Milvus takes, which no photo gets
_FIELDS = ("number", "state", "content", "photo", "vectors", "edges", "checksum")
_ROW_BYTES = 4096 + FIELD_BYTES // 4
_LEAST_VERSION = 2, 4
_AGAIN = "make it anew with `cwf-milvus graph --drop` and `cwf-milvus graph`"


@dataclass(frozen=True)
class Head:
    """How a graph was made.

    Attributes:
        neighbours: k.
        verified: whether edges have inliers in their weights.
        next: the first number that was never given.
        complete: whether it was finished once, so that it can be searched.
        rows: photos in it; None while it is being built.
        builder: who builds it: a second one takes over, and the first then stops.
        format: of the rows.
    """

    neighbours: int
    verified: bool
    next: int = 0
    complete: bool = False
    rows: int | None = None
    builder: str = ""
    format: int = FORMAT


@dataclass(frozen=True, eq=False)
class GraphRow:
    """A photo in the graph.

    Attributes:
        uri: of the photo.
        number: its dimension, its own for ever.
        state: `NUMBERED`, `COMPARED` or `SETTLED`.
        content: SHA-256 of the photo's bytes, in hex.
        photo: the checksum of the photo's row that this was computed from.
        vectors: SHA-256, in hex, of the vectors in it; metadata may change without them.
        edges: `EDGE`, the surest first.
        row: number to amount; None where it was not fetched.
    """

    uri: str
    number: int
    state: int
    content: str
    photo: str
    vectors: str = ""
    edges: np.ndarray = field(default_factory=lambda: np.zeros(0, EDGE))
    row: Mapping[int, float] | None = None


class Graph(SideCollection):
    """The graph of a collection's photos.

    Args:
        store: the connection.
        collection: the main collection's name.
    """

    suffix = "graph"
    vector = "row"

    def __init__(self, store: Store, collection: str) -> None:
        super().__init__(store, collection)
        self._loaded = False

    def schema(self) -> CollectionSchema:
        """Return its fields."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("uri", DataType.VARCHAR, is_primary=True, max_length=URI_BYTES)
        schema.add_field("number", DataType.INT64)
        schema.add_field("state", DataType.INT64)
        for name in ("content", "photo", "vectors", "checksum"):
            schema.add_field(name, DataType.VARCHAR, max_length=64)
        schema.add_field("edges", DataType.VARCHAR, max_length=FIELD_BYTES)
        schema.add_field("row", DataType.SPARSE_FLOAT_VECTOR)
        return schema

    def exists(self) -> bool:
        """Tell whether it is there, and of this collection."""
        return super().exists() and self.store.mark_of(self.name) == self._mark

    def create(self) -> None:
        """Load it, made where there is none; one of an earlier collection is dropped.

        Raises:
            StoreError: a server that has no sparse vectors; says which version it takes.
        """
        version = str(self.store.call("get_server_version"))
        if not self.store.is_lite and _numbers(version) < _LEAST_VERSION:
            raise StoreError(
                f"Milvus {version} at {self.store.uri} has no sparse vectors, which a graph is "
                "made of: it takes a server of version 2.4 or newer, or Milvus Lite"
            )
        if not self.exists():
            self.drop()
            index = {"index_type": "SPARSE_INVERTED_INDEX"}
            self.store.create(self.name, self.schema(), self.vector, index, mark=self._mark)
        self.store.ensure_index(self.name, self.vector, {"index_type": "SPARSE_INVERTED_INDEX"})
        self._load()

    def drop(self) -> bool:
        """Drop it, of whatever collection it is; returns whether it was there."""
        self._loaded = False
        if not super().exists():
            return False
        self.store.call("drop_collection", self.name)
        return True

    def ready(self) -> bool:
        """Tell whether it can be searched: it is there, and was finished once."""
        if not self.exists():
            return False
        try:
            return self.head().complete
        except CollectionError:
            return False

    def head(self) -> Head:
        """Return how it was made.

        Raises:
            CollectionError: that is not to be had: it was cut short, or damaged.
        """
        self._load()
        found = self.store.fetch(self.name, "uri", [_HEAD], ["edges"])
        try:
            head = Head(**json.loads(found[_HEAD]["edges"]))
        except (KeyError, ValueError, TypeError) as error:
            raise CollectionError(
                f"{self.name!r} in {self.store.uri} has lost its head, or it is damaged "
                f"({error!r}): {_AGAIN}"
            ) from error
        if head.format != FORMAT:
            raise CollectionError(
                f"{self.name!r} is of format {head.format!r}, this version reads {FORMAT}: {_AGAIN}"
            )
        return head

    def write_head(self, head: Head) -> None:
        """Store how it was made."""
        told = GraphRow(_HEAD, -1, SETTLED, "", "", row={_HEAD_DIMENSION: 1.0})
        self.store.write(self.name, [{**_packed(told), "edges": json.dumps(asdict(head))}])

    def write(self, rows: Sequence[GraphRow]) -> None:
        """Store photos, each in place of the row that its uri may have had."""
        at_once = MESSAGE_BYTES // _ROW_BYTES
        for start in range(0, len(rows), at_once):
            self.store.write(self.name, [_packed(row) for row in rows[start : start + at_once]])

    def delete(self, uris: Sequence[str]) -> None:
        """Delete photos; their numbers are not given again."""
        self.store.delete(self.name, "uri", uris)

    def scan(self) -> Iterator[GraphRow | str]:
        """Yield every photo without its row, or the uri of one that is damaged."""
        for raw in self.store.scan(self.name, "uri", _FIELDS):
            if raw["uri"] != _HEAD:
                yield _read(raw) or raw["uri"]

    def get(self, uris: Iterable[str], *, rows: bool = False) -> dict[str, GraphRow]:
        """Return those of some photos that are there and whole, with their rows or without."""
        fields = [*_FIELDS, *(["row"] if rows else [])]
        asked = [uri for uri in uris if uri != _HEAD]
        found = self.store.fetch(self.name, "uri", asked, fields, row_bytes=_ROW_BYTES)
        read = {uri: _read(raw) for uri, raw in found.items()}
        return {uri: row for uri, row in read.items() if row is not None}

    def uris_of(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return, by number, the uris of photos."""
        if not len(numbers):
            return {}
        asked = ", ".join(str(int(number)) for number in numbers)
        rows = self.store.call(
            "query", self.name, filter=f"number in [{asked}]", output_fields=["uri", "number"]
        )
        return {row["number"]: row["uri"] for row in rows}

    def places(self, contents: Mapping[str, str]) -> dict[str, int]:
        """Return the numbers of those photos that are in it.

        Args:
            contents: uri to SHA-256 of the bytes; photos that are in it with others are not.
        """
        self._load()
        found = self.store.fetch_vectors(
            self.name, "uri", list(contents), ["number", "content"], row_bytes=256
        )
        return {
            uri: int(row["number"])
            for uri, row in found.items()
            if row["content"] == contents[uri] and uri != _HEAD
        }

    def diffused(
        self, seeds: Sequence[Mapping[int, float]], limit: int
    ) -> list[dict[str, tuple[float, str]]]:
        """Return ``f = L y`` where it is largest, for several y in one call to Milvus.

        Args:
            seeds: of each y, the numbers of its photos with their weights, above 0.
            limit: photos of each.

        Returns:
            uri to its part of f and the SHA-256 of its bytes.

        Raises:
            StoreError: Milvus failed.
        """
        self._load()
        answers = self.store.search(
            self.name,
            None,
            data=[dict(one) for one in seeds],
            anns_field=self.vector,
            limit=limit,
            output_fields=["uri", "content"],
            search_params={"metric_type": METRIC, "params": {}},
        )
        return [
            {
                hit["entity"]["uri"]: (float(hit["distance"]), hit["entity"]["content"])
                for hit in one
            }
            for one in answers
        ]

    def warm(self) -> None:
        """Search once: Milvus Lite makes its lists at the first search after a write."""
        self.store.call("flush", self.name)
        self.diffused([{_HEAD_DIMENSION: 1.0}], 1)

    def count(self) -> int:
        """Return the number of photos in it."""
        self._load()
        return max(0, super().count() - 1)

    def verify(self) -> list[str]:
        """Return what is wrong with it, a line each; photos that it does not cover are no fault."""
        if not self.exists():
            return []
        try:
            head = self.head()
        except CollectionError as error:
            return [str(error)]
        damaged, seen = [], 0
        for raw in self.store.scan(self.name, "uri", [*_FIELDS, "row"]):
            if raw["uri"] != _HEAD:
                seen += 1
                if _read(raw) is None or _sum_of_row(raw["row"]) != raw["checksum"][32:]:
                    damaged.append(raw["uri"])
        wrong = [f"the graph's row of {uri!r} is damaged: {_AGAIN}" for uri in damaged[:_NAMED]]
        if len(damaged) > _NAMED:
            wrong.append(f"and {len(damaged) - _NAMED} more damaged rows of the graph")
        if head.rows is not None and seen < head.rows:
            wrong.append(
                f"{head.rows - seen} rows of the graph are lost: {head.rows} were stored; "
                "`cwf-milvus graph` makes them anew"
            )
        return wrong

    @property
    def _mark(self) -> str:
        return self.store.mark_of(self.collection) or "unmarked"  # of formats 1 and 2

    def _load(self) -> None:
        if not self._loaded:
            self.store.load(self.name)
            self._loaded = True


def settled(row: GraphRow, edges: np.ndarray, amounts: Mapping[int, float]) -> GraphRow:
    """Return a photo with its edges and its row of the diffusion."""
    return replace(row, state=SETTLED, edges=edges, row=amounts)


_NAMED = 20  # damaged rows that are told one by one


def _packed(row: GraphRow) -> dict[str, Any]:
    assert row.row is not None
    raw = {
        "uri": row.uri,
        "number": row.number,
        "state": row.state,
        "content": row.content,
        "photo": row.photo,
        "vectors": row.vectors,
        "edges": Text(pybase64.b64encode_as_string(row.edges.astype(EDGE).tobytes())),
    }
    amounts = {int(number): float(amount) for number, amount in row.row.items()}
    return {**raw, "row": amounts, "checksum": _sum_of_rest(raw) + _sum_of_row(amounts)}


def _read(raw: Mapping[str, Any]) -> GraphRow | None:
    """Return a fetched row; None for one that is damaged."""
    try:
        packed = decoded(raw["edges"])
    except CollectionError:
        return None
    if len(packed) % EDGE.itemsize or _sum_of_rest(raw) != raw["checksum"][:32]:
        return None
    plain = {name: raw[name] for name in ("uri", "content", "photo", "vectors")}
    number, state = int(raw["number"]), int(raw["state"])
    return GraphRow(
        **plain,
        number=number,
        state=state,
        edges=np.frombuffer(packed, EDGE),
        row=dict(raw["row"]) if "row" in raw else None,
    )


def _sum_of_rest(raw: Mapping[str, Any]) -> str:
    """Return half a SHA-256 of all but the sparse vector, which takes long to fetch."""
    names = ("uri", "number", "state", "content", "photo", "vectors", "edges")
    told = json.dumps([raw[name] for name in names]).encode()
    return hashlib.sha256(told).hexdigest()[:32]


def _sum_of_row(row: Mapping[int, float]) -> str:
    order = sorted(row)
    digest = hashlib.sha256(np.array(order, "<u4").tobytes())
    digest.update(np.array([row[number] for number in order], "<f4").tobytes())
    return digest.hexdigest()[:32]


def _numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, such as v2.3.5; (99, 0) for one without any."""
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (99, 0)
