"""What the graph tells of the stored photos themselves: neighbours, and duplicates in groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cwf_milvus.checks import checked_count, checked_share
from cwf_milvus.errors import CollectionError
from cwf_milvus.store.graph import Graph
from cwf_milvus.store.photo_rows import PhotoRows

INLIERS = 25
"""Keypoints that agree in two photos of one scene: what counts in full (METHOD §10)."""
COVER = 0.5
"""Share of both photos that shows the same, at least, for two photos of one scene."""


@dataclass(frozen=True)
class Neighbour:
    """A photo that resembles another.

    Attributes:
        uri: of the photo.
        similarity: squared late interaction, from 0 to 1.
        inliers: keypoints that agree; 0 where none were compared.
        cover: share of both photos that the same scene takes, the smaller one, from 0 to 1.
    """

    uri: str
    similarity: float
    inliers: int
    cover: float


@dataclass(frozen=True)
class Duplicates:
    """Photos that show one scene.

    Attributes:
        representative: the largest of them, in pixels.
        copies: those with the same bytes as another of the group, all but the first of each.
        others: the rest: other pictures of the scene.
    """

    representative: str
    copies: tuple[str, ...]
    others: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return asdict(self)


def neighbours(collection: PhotoRows, uri: str, limit: int = 10) -> list[Neighbour]:
    """Return the photos that resemble a stored one; see `InstanceCollection.neighbours`."""
    checked_count("limit", limit)
    row = built_graph(collection).get([uri]).get(uri)
    if row is None:
        raise CollectionError(
            f"{uri!r} is not in the graph of {collection.name!r}: add it, then run "
            "`cwf-milvus graph`"
        )
    names = collection.graph.uris_of(row.edges["number"].tolist())
    there = collection.contents(list(names.values()))
    near = [
        _neighbour(names[int(edge["number"])], edge)
        for edge in row.edges
        if int(edge["number"]) in names
    ]
    return [one for one in near if one.uri in there][:limit]


def duplicates(
    collection: PhotoRows, *, inliers: int = INLIERS, cover: float = COVER
) -> list[Duplicates]:
    """Return groups of photos of one scene; see `InstanceCollection.duplicates`."""
    checked_count("inliers", inliers)
    checked_share("cover", cover)
    groups = _Groups()
    sizes: dict[str, int] = {}
    first_of: dict[str, str] = {}
    copies: set[str] = set()
    rows = collection.store.scan(collection.name, "uri", ["content", "width", "height"])
    for row in rows:
        sizes[row["uri"]] = row["width"] * row["height"]
        first = first_of.setdefault(row["content"], row["uri"])
        if first != row["uri"]:
            copies.add(row["uri"])
            groups.join(first, row["uri"])
    if collection.has_graph():
        for one, other in _same_scene(collection.graph, inliers, cover):
            if one in sizes and other in sizes:  # not removed since
                groups.join(one, other)
    return [_group(members, sizes, copies) for members in groups.several()]


def same_scene(collection: PhotoRows) -> list[list[str]]:
    """Return the uris of each group of `duplicates`, the representative first."""
    return [
        [group.representative, *group.copies, *group.others] for group in duplicates(collection)
    ]


def built_graph(collection: PhotoRows) -> Graph:
    """Return a collection's graph; raises `CollectionError` where there is none."""
    if not collection.has_graph():
        raise CollectionError(
            f"the collection {collection.name!r} has no graph: build it with `cwf-milvus graph`, "
            "or `build_graph()`, first"
        )
    return collection.graph


class _Groups:
    """Which photos belong together, as a forest in which each names another of its group."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def _root(self, uri: str) -> str:
        parents = self._parent
        while (parent := parents.setdefault(uri, uri)) != uri:
            parents[uri] = parents[parent]
            uri = parent
        return uri

    def join(self, one: str, other: str) -> None:
        self._parent[self._root(other)] = self._root(one)

    def several(self) -> list[list[str]]:
        """Return the groups, the largest first, their photos sorted."""
        groups: dict[str, list[str]] = defaultdict(list)
        for uri in sorted(self._parent):
            groups[self._root(uri)].append(uri)
        return sorted(groups.values(), key=lambda group: (-len(group), group))


def _same_scene(graph: Graph, inliers: int, cover: float) -> Iterator[tuple[str, str]]:
    """Yield pairs of photos that the graph verified."""
    uri_of: dict[int, str] = {}
    found: list[tuple[str, int]] = []
    for row in graph.scan():
        if isinstance(row, str):  # damaged; verify tells
            continue
        uri_of[row.number] = row.uri
        edges = row.edges
        sure = (edges["inliers"] >= inliers) & (edges["cover"] >= 255 * cover)
        found += [(row.uri, int(number)) for number in edges["number"][sure]]
    for uri, number in found:
        if number in uri_of:
            yield uri, uri_of[number]


def _neighbour(uri: str, edge: np.void) -> Neighbour:
    return Neighbour(uri, float(edge["similarity"]), int(edge["inliers"]), int(edge["cover"]) / 255)


def _group(members: list[str], sizes: Mapping[str, int], copies: set[str]) -> Duplicates:
    representative = max(members, key=lambda uri: (sizes[uri], uri not in copies))
    rest = [uri for uri in members if uri != representative]
    return Duplicates(
        representative,
        tuple(uri for uri in rest if uri in copies),
        tuple(uri for uri in rest if uri not in copies),
    )
