"""Building the graph of a collection's photos, and letting it grow (docs/graph.md).

What was finished is stored as it goes: a run that was killed goes on where it stopped. First every
new photo gets its number; then photos are compared, some hundred at a time, and stored with their
edges; last come the rows of the diffusion of all photos whose edges changed. Edges that only one of
their two photos is stored with are taken for pairs that were compared, and so are sorted out again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from tqdm import tqdm

from cwf_milvus.checks import checked_count
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.index.comparing import CANDIDATES
from cwf_milvus.index.nearest import own_vectors, pairs_with_nearest
from cwf_milvus.index.pairs import (
    NONE,
    changed,
    ends,
    grown,
    joined,
    matrix,
    members,
    pairs_of,
)
from cwf_milvus.method import diffusion
from cwf_milvus.store.graph import (
    COMPARED,
    EDGE,
    NUMBERED,
    SETTLED,
    Graph,
    GraphRow,
    Head,
    settled,
)
from cwf_milvus.store.photo_rows import PhotoRows

_AT_ONCE = 16  # photos whose nearest are fetched together: some 100 MB of keypoints
_WAVE = 512  # photos between two times that edges are sorted out and stored
_LOOKUP = 1000


@dataclass
class GraphReport:
    """What `build_graph` did.

    Attributes:
        photos: in the graph.
        edges: between them.
        verified: whether keypoints were compared.
        compared: photos that were compared with their nearest.
        rows: of the diffusion that were computed.
        removed: photos that left, as they are gone from the collection or were changed.
        alone: photos without an edge: nothing resembles them, or no vectors are stored with them.
        seconds: wall-clock time.
    """

    photos: int = 0
    edges: int = 0
    verified: bool = False
    compared: int = 0
    rows: int = 0
    removed: int = 0
    alone: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kind = "verified " if self.verified else ""
        return (
            f"{self.photos} photos, {self.edges} {kind}edges, {self.alone} photos without; "
            f"{self.compared} compared, {self.rows} rows computed, {self.removed} removed in "
            f"{self.seconds:.1f} s"
        )


def build_graph(
    collection: PhotoRows,
    *,
    neighbours: int = diffusion.NEIGHBOURS,
    verify: bool = True,
    progress: bool = True,
) -> GraphReport:
    """Build or grow a collection's graph; see `InstanceCollection.build_graph`."""
    if checked_count("neighbours", neighbours) > CANDIDATES:
        raise SettingsError(
            f"neighbours={neighbours}: a photo is compared with {CANDIDATES}, give no more"
        )
    started = time.monotonic()
    wanted = Head(neighbours, bool(verify) and collection.layout.n_keypoints > 0)
    report = _Builder(collection, wanted, progress).run()
    report.seconds = time.monotonic() - started
    return report


class _Builder:
    """One run.

    Photos have places here, from 0, in the order of their numbers, so that the nearest of equals
    are the oldest.
    """

    def __init__(self, collection: PhotoRows, wanted: Head, progress: bool) -> None:
        self.collection, self.progress = collection, progress
        self.graph = Graph(collection.store, collection.name)
        self.head = self._claimed(wanted)
        self.report = GraphReport(verified=wanted.verified)
        self.uris: list[str] = []
        self.numbers = np.zeros(0, np.int64)
        self.edges = NONE
        self.dirty = np.zeros(0, bool)  # photos whose row of the diffusion is to be computed

    def run(self) -> GraphReport:
        """Bring the graph up to date with the collection."""
        todo = self._compared(self._scanned())
        self._compute()
        linked = members(self.edges, len(self.uris))
        self._check_claim()
        self.graph.write_head(replace(self.head, complete=True, rows=len(self.uris), builder=""))
        self.graph.warm()
        report = self.report
        report.photos, report.edges, report.compared = len(self.uris), len(self.edges), todo
        report.alone = int((~linked).sum())
        return report

    # What is there, and what is not

    def _claimed(self, wanted: Head) -> Head:
        """Return the head of a graph made with these settings, with our name on it."""
        self.graph.create()
        try:
            head = self.graph.head()
        except CollectionError:  # new, or damaged
            head = None
        same = head and (head.neighbours, head.verified) == (wanted.neighbours, wanted.verified)
        if head is None or not same:
            if self.graph.count() or head is not None:
                self.graph.drop()
                self.graph.create()
            head = wanted
        head = replace(head, builder=uuid.uuid4().hex, rows=None)
        self.graph.write_head(head)
        return head

    def _check_claim(self) -> None:
        if self.graph.head().builder != self.head.builder:
            raise CollectionError(
                f"another program builds the graph of {self.collection.name!r} since: let it end, "
                "or run this again"
            )

    def _scanned(self) -> np.ndarray:
        """Read all that is stored, remove what is gone, number what is new.

        Returns:
            The places of the photos to compare.
        """
        rows: dict[str, GraphRow] = {}
        gone: list[str] = []
        for stored in self.graph.scan():
            if isinstance(stored, GraphRow):
                rows[stored.uri] = stored
            else:
                gone.append(stored)  # damaged: computed anew as if it had never been there
        new: list[tuple[str, str, str]] = []
        told: dict[str, str] = {}  # photos with other metadata, or other vectors
        there: set[str] = set()
        for photo in self.collection.store.scan(
            self.collection.name, "uri", ["content", "checksum"]
        ):
            uri, row = photo["uri"], rows.get(photo["uri"])
            there.add(uri)
            if row is None or row.content != photo["content"]:
                new.append((uri, photo["content"], photo["checksum"]))
            elif row.photo != photo["checksum"]:
                told[uri] = photo["checksum"]
        new += self._other_vectors(rows, told)
        gone += [uri for uri in rows if uri not in there]
        gone += [uri for uri, _, _ in new if uri in rows]
        self.graph.delete(gone)
        self.report.removed = len(gone)
        kept = sorted((rows[uri] for uri in rows.keys() - set(gone)), key=lambda row: row.number)
        self._read_edges(kept)
        self._number(new)
        self.dirty = np.append(self.dirty, np.ones(len(new), bool))
        stale = np.array([row.state == NUMBERED for row in kept] + [True] * len(new), bool)
        stale[: len(kept)] |= self._widowed
        return np.flatnonzero(stale)

    def _other_vectors(
        self, rows: dict[str, GraphRow], told: dict[str, str]
    ) -> list[tuple[str, str, str]]:
        """Return those of some photos whose vectors are others; note the new checksums of the rest.

        Of a row whose metadata changed the checksum is another, and the edges are the same.
        """
        other = []
        for part in _parts(list(told), _AT_ONCE):
            own = own_vectors(self.collection, part)
            same = [uri for uri in part if uri in own and own[uri].digest == rows[uri].vectors]
            known = self.graph.get(same, rows=True)
            self.graph.write([replace(row, photo=told[uri]) for uri, row in known.items()])
            other += [(uri, rows[uri].content, told[uri]) for uri in part if uri not in known]
        return other

    def _read_edges(self, kept: Sequence[GraphRow]) -> None:
        """Take the stored edges; those of photos that are gone leave a photo to compare anew."""
        n = len(kept)
        self.uris = [row.uri for row in kept]
        self.numbers = np.array([row.number for row in kept], np.int64)
        every = np.concatenate([np.zeros(0, EDGE), *(row.edges for row in kept)])
        one = np.repeat(np.arange(n), [len(row.edges) for row in kept])
        other = np.searchsorted(self.numbers, every["number"])
        known = other < n
        known[known] = self.numbers[other[known]] == every["number"][known]
        self._widowed = np.zeros(n, bool)
        self._widowed[one[~known]] = True
        values = (every[name][known] for name in ("similarity", "inliers", "cover"))
        one, other = one[known], other[known]
        pairs = pairs_of(one, other, *values)
        keys, counts = np.unique(
            np.minimum(one, other) * 2**32 + np.maximum(one, other), return_counts=True
        )
        whole = np.isin(pairs["key"], keys[counts == 2])
        self.edges = grown(pairs[whole], pairs[~whole], n, self.head.neighbours)
        self.dirty = np.array([row.state != SETTLED for row in kept], bool)
        self.dirty |= self._widowed | members(pairs[~whole], n)

    def _number(self, new: Sequence[tuple[str, str, str]]) -> None:
        """Give numbers to new photos, after noting that these are given."""
        if not new:
            return
        first = self.head.next
        self.head = replace(self.head, next=first + len(new))
        self._check_claim()
        self.graph.write_head(self.head)
        numbered = [
            GraphRow(uri, number, NUMBERED, content, checksum, row={number: 1.0})
            for number, (uri, content, checksum) in enumerate(new, start=first)
        ]
        for start in range(0, len(numbered), _LOOKUP):
            self.graph.write(numbered[start : start + _LOOKUP])
        self.uris += [uri for uri, _, _ in new]
        self.numbers = np.append(self.numbers, np.arange(first, first + len(new)))

    # Pairs

    def _compared(self, todo: np.ndarray) -> int:
        """Compare photos with their nearest, and store them with their edges."""
        place_of = {uri: place for place, uri in enumerate(self.uris)}
        n = len(self.uris)
        with self._bar(len(todo), "photo", "comparing") as bar:
            for wave in _parts(todo.tolist(), _WAVE):
                digests: dict[str, str] = {}
                found = [NONE]
                for part in _parts([self.uris[place] for place in wave], _AT_ONCE):
                    own = own_vectors(self.collection, part)
                    digests |= {uri: photo.digest for uri, photo in own.items()}
                    found.append(
                        pairs_with_nearest(self.collection, own, place_of, self.head.verified)
                    )
                    bar.update(len(part))
                after = grown(self.edges, joined(*found), n, self.head.neighbours)
                self.dirty |= changed(self.edges, after, n)
                self.dirty[wave] = True
                self.edges = after
                self._check_claim()
                self._store(wave, digests)
        return len(todo)

    def _store(self, places: Sequence[int], digests: dict[str, str]) -> None:
        edges = self._edges_of(places)
        known = self.graph.get([self.uris[place] for place in places], rows=True)
        self.graph.write(
            [
                replace(
                    known[uri], state=COMPARED, edges=edges[place], vectors=digests.get(uri, "")
                )
                for place in places
                if (uri := self.uris[place]) in known
            ]
        )

    def _edges_of(self, places: Sequence[int]) -> dict[int, np.ndarray]:
        """Return the edges of some photos as they are stored, the surest first."""
        wanted = np.zeros(len(self.uris), bool)
        wanted[np.asarray(places, np.int64)] = True
        one, other = ends(self.edges)
        found = {place: np.zeros(0, EDGE) for place in places}
        owners, packed = [], []
        for own, far in ((one, other), (other, one)):
            chosen = wanted[own]
            edges = np.zeros(int(chosen.sum()), EDGE)
            edges["number"] = self.numbers[far[chosen]]
            for name in ("similarity", "inliers", "cover"):
                edges[name] = self.edges[name][chosen]
            owners.append(own[chosen])
            packed.append(edges)
        owner, every = np.concatenate(owners), np.concatenate(packed)
        weights = diffusion.verified(every["similarity"], every["inliers"])
        order = np.lexsort((-weights, owner))
        owner, every = owner[order], every[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        for own, edges in zip(owner[starts], np.split(every, starts)[1:], strict=True):
            found[int(own)] = edges
        return found

    # Rows

    def _compute(self) -> None:
        """Compute and store the rows of all photos whose edges changed."""
        todo = np.flatnonzero(self.dirty)
        if not len(todo):
            return
        gamma = diffusion.VERIFIED_GAMMA if self.head.verified else diffusion.GAMMA
        edges = matrix(self.edges, len(self.uris))
        walk = diffusion.normalised(diffusion.affinities(edges, self.head.neighbours, gamma))
        with self._bar(len(todo), "row", "rows") as bar:
            for part in _parts(todo.tolist(), _WAVE):
                amounts = diffusion.diffusion_rows(walk, np.array(part))
                edges_of = self._edges_of(part)
                known = self.graph.get([self.uris[place] for place in part])
                rows = []
                for i, place in enumerate(part):
                    if self.uris[place] in known:
                        own = slice(amounts.indptr[i], amounts.indptr[i + 1])
                        numbers = self.numbers[amounts.indices[own]].tolist()
                        row = dict(zip(numbers, amounts.data[own].tolist(), strict=True))
                        rows.append(settled(known[self.uris[place]], edges_of[place], row))
                self._check_claim()
                self.graph.write(rows)
                bar.update(len(part))
        self.report.rows = len(todo)

    def _bar(self, total: int, unit: str, doing: str) -> tqdm:
        return tqdm(
            total=total,
            unit=unit,
            desc=doing,
            disable=not self.progress or not total,
            dynamic_ncols=True,
        )


def _parts(items: Sequence, size: int) -> Iterator[list]:
    """Yield items some at a time."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part
