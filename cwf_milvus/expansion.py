"""Query expansion: a better query out of what the first one found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.hits import Hit, Query
from cwf_milvus.packing import Int8Vectors
from cwf_milvus.rerank.base import (
    Context,
    Stage,
    checked_count,
    checked_share,
    query_vectors,
    reranked,
    vectors_of,
)
from cwf_milvus.rerank.late_interaction import late_interaction
from cwf_milvus.rerank.vectors import Kind, Vectors, fetch_vectors


def query_expand(descriptors: np.ndarray) -> np.ndarray:
    """Return the new query ``l2(sum of the top n)`` (Chum et al., ICCV 2007; METHOD of the paper).

    Args:
        descriptors: of the top n hits, unit, of shape (n, d). The query is not among them.

    Returns:
        Of shape (d,), unit.

    Raises:
        SettingsError: no descriptors.
    """
    return _unit(np.asarray(descriptors, dtype=np.float32).sum(axis=0), len(descriptors))


def alpha_expand(
    query: np.ndarray, descriptors: np.ndarray, scores: np.ndarray | None = None, alpha: float = 3.0
) -> np.ndarray:
    """Return the alpha-weighted query ``l2(q + sum max(0, cos_i)^alpha d_i)``.

    The query is included with weight 1 (Radenovic, Tolias and Chum, TPAMI 2019).

    Args:
        query: unit, of shape (d,).
        descriptors: of the top n hits, unit, of shape (n, d).
        scores: their cosines with the query, of shape (n,); None to compute them.
        alpha: 0 weights all alike, a large one only the nearest.

    Returns:
        Of shape (d,), unit.

    Raises:
        SettingsError: no descriptors, or scores of another number.
    """
    if scores is None:
        scores = descriptors @ query
    if len(scores) != len(descriptors):
        raise SettingsError(
            f"{len(scores)} scores for {len(descriptors)} descriptors: give each one"
        )
    weights = np.maximum(np.asarray(scores, dtype=np.float32), 0) ** alpha
    return _unit(query + weights @ descriptors, len(descriptors))


def steer(like: np.ndarray, unlike: np.ndarray | None = None) -> np.ndarray:
    """Return a query towards some descriptors and away from others (Rocchio, 1971).

    Args:
        like: unit, of shape (n, d).
        unlike: unit, of shape (m, d), each with half the weight of one in `like`.

    Raises:
        SettingsError: nothing to steer towards, or what is left is zero.
    """
    towards = np.asarray(like, dtype=np.float32).sum(axis=0) / max(len(like), 1)
    if unlike is not None and len(unlike):
        towards = towards - 0.5 * np.asarray(unlike, dtype=np.float32).mean(axis=0)
    return _unit(towards, len(like))


def local_matches(
    query_vectors: np.ndarray, hit_vectors: Sequence[np.ndarray | Int8Vectors], per_hit: int
) -> np.ndarray:
    """Return the stored vectors that answer a query best, to grow its set by.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: of the top n hits, n arrays of shape (R_i, d).
        per_hit: how many of each hit's vectors, those with the best cosine to any of the query's.

    Returns:
        Of shape (at most n * per_hit, d).
    """
    chosen = []
    for vectors in map(np.asarray, hit_vectors):
        if len(vectors):
            best = (vectors @ query_vectors.T).max(axis=1)
            chosen.append(vectors[np.argsort(-best, kind="stable")[:per_hit]])
    if not chosen:
        return np.zeros((0, query_vectors.shape[1]), dtype=np.float32)
    return np.concatenate(chosen)


def local_expand(
    query_vectors: np.ndarray,
    hit_vectors: Sequence[np.ndarray | Int8Vectors],
    scores: np.ndarray,
    *,
    hits: int,
    per_hit: int,
    share: float,
    rounds: int = 1,
    lends: Sequence[bool] | None = None,
) -> np.ndarray:
    """Score candidates anew with a query grown by the best-matching vectors of its top hits.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: of the H candidates, H arrays of shape (R_i, d).
        scores: their late-interaction scores so far, of shape (H,), higher is better.
        hits: how many of the best lend vectors; a hit more in every further round.
        per_hit: how many vectors each lends.
        share: weight of the lent vectors' score, from 0 to 1; the rest is that of `scores`.
        rounds: how often.
        lends: of shape (H,), False for candidates that lend nothing, such as the query's own
            photo; None for all to lend.

    Returns:
        Of shape (H,).
    """
    may = np.ones(len(scores), bool) if lends is None else np.asarray(lends, bool)
    first = now = np.asarray(scores, dtype=np.float32)
    for extra in range(rounds):
        order = np.argsort(-now, kind="stable")
        top = order[may[order]][: hits + extra]
        lent = local_matches(query_vectors, [hit_vectors[i] for i in top], per_hit)
        if not len(lent):
            return now
        found = late_interaction(lent, hit_vectors).scores
        now = np.asarray((1 - share) * first + share * found, dtype=np.float32)
    return now


def _unit(vector: np.ndarray, n: int) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not n or length < 1e-12:
        raise SettingsError(
            f"nothing to expand a query with: {n} descriptors that sum to {length:g}; give at "
            "least one that differs"
        )
    return (vector / length).astype(np.float32)


# The stages


class QueryExpansion(Stage):
    """Search anew with the sum of the descriptors of the top hits (METHOD: QE).

    The query itself is not in the sum. The answer is that of the new search, filter and all.
    Where there is nothing to sum the hits stay as they are.

    Args:
        hits: how many of the best are summed.

    Raises:
        SettingsError: hits under 1.
    """

    name = "qe"
    needs = ("descriptor",)

    def __init__(self, hits: int = 5) -> None:
        self.hits = checked_count("hits", hits)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits of the new search; see `Stage`."""
        return self.run([query], [hits], context)[0]

    def run(
        self, queries: Sequence[Query], answers: Sequence[Sequence[Hit]], context: Context
    ) -> list[list[Hit]]:
        """Answer several queries, with one call to Milvus.

        Raises:
            SettingsError: no collection to search anew.
        """
        if context.find is None:
            raise SettingsError(f"{self.name} searches anew, which takes a collection")
        expanded = {}
        for i, (query, hits) in enumerate(zip(queries, answers, strict=True)):
            stored = [np.asarray(vectors_of(hit, "descriptor")) for hit in hits[: self.hits]]
            descriptors = [vectors for vectors in stored if vectors.any()]
            new = self.expand(query, np.concatenate(descriptors)) if descriptors else None
            if new is not None:
                expanded[i] = new
        changed = list(answers)
        if expanded:
            asked = [queries[i] for i in expanded]
            found = context.find(asked, np.stack(list(expanded.values())), context.depth)
            for i, new_hits in zip(expanded, found, strict=True):
                changed[i] = _with_history(self.name, answers[i], new_hits)
        return [list(hits) for hits in changed]

    def expand(self, query: Query, descriptors: np.ndarray) -> np.ndarray | None:
        """Return the new query's descriptor, of shape (d,); None where it would be zero."""
        try:
            return query_expand(descriptors)
        except SettingsError:
            return None


class AlphaExpansion(QueryExpansion):
    """Search anew with the query and its top hits, each with weight max(0, cosine)^alpha.

    Args:
        hits: how many of the best are summed.
        alpha: 0 weights all alike, a large one only the nearest. Whitened vectors of different
            photos of a thing have cosines of .2 to .5, whose cubes, the usual choice for trained
            networks, leave almost nothing of the hits.

    Raises:
        SettingsError: hits under 1, or alpha under 0.
    """

    name = "aqe"

    def __init__(self, hits: int = 5, alpha: float = 1.0) -> None:
        super().__init__(hits)
        self.alpha = checked_alpha(alpha)

    def expand(self, query: Query, descriptors: np.ndarray) -> np.ndarray | None:
        """Return the new query's descriptor, of shape (d,); None where it would be zero."""
        try:
            return alpha_expand(query.encoding.descriptor, descriptors, alpha=self.alpha)
        except SettingsError:
            return None


class LocalExpansion(Stage):
    """Score again with the query's vectors and those of its top hits that answer to it best.

    To follow `regions` or `classes`, whose scores it goes on from; after another stage, or none,
    it goes on from what that gave. No network pass. The query's own photo, should it be in the
    collection (its bytes are the query's), lends nothing: its vectors are in the query already.

    Args:
        hits: how many of the best lend vectors; a hit more in every further round.
        per_hit: how many vectors each lends.
        share: weight of the lent vectors' score, from 0 to 1; the rest is that of the scores so
            far.
        rounds: how often.
        kind: "regions" or "classes", which stored vectors.
        refetch: first search anew with the alpha-expanded descriptor of the top hits; candidates
            that were not there before are scored by the query's own vectors, then by those lent.

    Raises:
        SettingsError: a number out of range, or an unknown kind.
    """

    name = "local"
    brief = True

    def __init__(
        self,
        hits: int = 1,
        per_hit: int = 10,
        share: float = 0.7,
        rounds: int = 2,
        *,
        kind: Literal["regions", "classes"] = "regions",
        refetch: bool = False,
    ) -> None:
        self.hits = checked_count("hits", hits)
        self.per_hit = checked_count("per_hit", per_hit)
        self.share = checked_share("share", share)
        self.rounds = checked_count("rounds", rounds)
        if kind not in ("regions", "classes"):
            raise SettingsError(f"kind={kind!r}: give 'regions' or 'classes'")
        self.kind: Kind = kind
        self.refetch = refetch

    @property
    def needed(self) -> tuple[Kind, ...]:
        """The kind of vectors that are lent, and descriptors for a new search."""
        return (self.kind, "descriptor") if self.refetch else (self.kind,)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their new scores; see `Stage`."""
        if self.refetch:
            hits = self._with_new_candidates(query, hits, context)
        stored = [vectors_of(hit, self.kind) for hit in hits]
        can = [i for i, vectors in enumerate(stored) if len(vectors)]
        scores = np.full(len(hits), np.nan)
        if can:
            scores[can] = local_expand(
                query_vectors(query, self.kind),
                [stored[i] for i in can],
                np.array([hits[i].score for i in can]),
                hits=self.hits,
                per_hit=self.per_hit,
                share=self.share,
                rounds=self.rounds,
                lends=[not _is_own(query, hits[i]) for i in can],
            )
        return reranked(self.name, hits, scores, why_not=lambda _: "no vectors are stored with it")

    def _with_new_candidates(
        self, query: Query, hits: Sequence[Hit], context: Context
    ) -> Sequence[Hit]:
        found = AlphaExpansion(self.hits).run([query], [hits], context)[0]
        there = {hit.uri for hit in hits}
        new = [hit for hit in found if hit.uri not in there]
        if not new or context.collection is None:
            return hits
        new = fetch_vectors(context.collection, [new], self.needed)[0]
        scores = late_interaction(
            query_vectors(query, self.kind), [vectors_of(hit, self.kind) for hit in new]
        ).scores
        return [
            *hits,
            *(replace(hit, score=float(one)) for hit, one in zip(new, scores, strict=True)),
        ]


def checked_alpha(alpha: float) -> float:
    """Return alpha; raises `SettingsError` unless it is a number of at least 0."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < 1000:
        raise SettingsError(f"alpha={alpha!r}: give a number of at least 0, such as 3")
    return float(alpha)


def _is_own(query: Query, hit: Hit) -> bool:
    """Tell whether a hit is the query's own photo."""
    content = query.encoding.content
    return bool(content) and isinstance(hit.vectors, Vectors) and hit.vectors.content == content


def _with_history(stage: str, before: Sequence[Hit], found: Sequence[Hit]) -> list[Hit]:
    """Return the hits of a new search; those that were there before keep what was known of them."""
    known = {hit.uri: hit for hit in before}
    return [
        known.get(hit.uri, replace(hit, stages=())).scored(stage, hit.score, rank)
        for rank, hit in enumerate(found, start=1)
    ]
