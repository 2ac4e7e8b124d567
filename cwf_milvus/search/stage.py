"""What a stage is: it takes a query and its hits, and gives better hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.encode.encoding import KINDS, Kind, Vectors
from cwf_milvus.method.late_interaction import VectorSet
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.garbage import no_garbage_collection


@dataclass(frozen=True, eq=False)
class Context:
    """Where a stage works.

    Attributes:
        gallery: the photos that are searched; None for hits of another's.
        find: makes a new search, from descriptors of shape (Q, d) and a number of hits to the
            hits of each; None where there is nothing to search.
        depth: how many hits a new search fetches.
        wanted: which of the hits' vectors the stages that follow read.
        look_up: from a query and uris to those of the photos that the search's filter lets in, as
            hits without a score; None where there is nothing to look in.
    """

    gallery: Gallery | None = None
    find: Callable[[Sequence[Query], np.ndarray, int], list[list[Hit]]] | None = None
    depth: int = 100
    wanted: frozenset[Kind] = frozenset(KINDS)
    look_up: Callable[[Query, Sequence[str]], list[Hit]] | None = None


class Stage:
    """Makes a query's hits better; to be subclassed.

    Attributes:
        name: what the hits record the stage's score under.
        needs: which of the hits' stored vectors it reads: "descriptor", "classes", "regions",
            "keypoints".
        fetches: it fetches them itself, of the hits that it looks at, as the large ones should be.
        brief: it takes milliseconds a query, so that Python's garbage collection may wait for it.
    """

    name: str = "stage"
    needs: ClassVar[tuple[Kind, ...]] = ()
    fetches: ClassVar[bool] = False
    brief: ClassVar[bool] = False

    @property
    def needed(self) -> tuple[Kind, ...]:
        """The kinds of vectors that this one needs, with its settings."""
        return self.needs

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits as they now are, best first.

        Args:
            query: what was asked.
            hits: the candidates, best first, with the vectors that the stage needs.
            context: where it works.
        """
        raise NotImplementedError

    def run(
        self, queries: Sequence[Query], answers: Sequence[Sequence[Hit]], context: Context
    ) -> list[list[Hit]]:
        """Answer several queries; a stage that can do so at once overrides it."""
        with no_garbage_collection() if self.brief else nullcontext():
            return [
                self(query, hits, context) for query, hits in zip(queries, answers, strict=True)
            ]


def reranked(
    stage: str,
    hits: Sequence[Hit],
    scores: np.ndarray,
    changes: Callable[[int], dict[str, Any]] = lambda index: {},
    why_not: Callable[[int], str] = lambda index: "",
) -> list[Hit]:
    """Return hits in the order of a stage's scores.

    Equal scores keep the order that they had. A hit without a score (NaN) keeps its place and its
    former score, and a note says why; the others are ordered among the places that are left.

    Args:
        stage: the stage's name.
        hits: best first.
        scores: of shape (H,), higher is better, NaN for none.
        changes: from a hit's index to the fields that the stage changes.
        why_not: from the index of a hit without a score to the reason.
    """
    ordered = list(hits)
    places = np.flatnonzero(~np.isnan(scores))
    for i in np.flatnonzero(np.isnan(scores)).tolist():
        damage = stored_of(hits[i]).damage
        why = f"its stored vectors are damaged ({damage})" if damage else why_not(i)
        ordered[i] = noted(hits[i], f"{stage}: {why or 'no score'}; it kept its place")
    best_first = places[np.argsort(-scores[places], kind="stable")]
    for place, i in zip(places.tolist(), best_first.tolist(), strict=True):
        ordered[place] = hits[i].scored(stage, float(scores[i]), place + 1, **changes(i))
    return ordered


def noted(hit: Hit, note: str) -> Hit:
    """Return a hit with a further note."""
    return replace(hit, note=f"{hit.note}; {note}" if hit.note else note)


def vectors_of(hit: Hit, kind: Kind) -> VectorSet:
    """Return a hit's vectors of a kind, of shape (n, d); (0, 0) where it has none."""
    found = stored_of(hit).of_kind(kind)
    return np.zeros((0, 0), np.float32) if found is None else found


def stored_of(hit: Hit) -> Vectors:
    """Return a hit's stored vectors; none of any kind where it has none."""
    return Vectors("", np.zeros(0, np.int64)) if hit.vectors is None else hit.vectors


def is_own(query: Query, hit: Hit) -> bool:
    """Tell whether a hit is the query's own photo."""
    content = query.encoding.content
    return bool(content) and stored_of(hit).content == content


def query_vectors(query: Query, kind: Kind) -> np.ndarray:
    """Return a query's vectors of a kind, of shape (n, d)."""
    if kind == "descriptor":
        return query.encoding.descriptor[None]
    return query.encoding.class_vectors if kind == "classes" else query.encoding.region_vectors
