"""The stages `qe`, `aqe` and `local`: query expansion on what the first search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_alpha, checked_count, checked_share
from cwf_milvus.encode.encoding import Kind
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.expansion import alpha_expand, local_expand, query_expand
from cwf_milvus.method.late_interaction import late_interaction
from cwf_milvus.search.fetch import fetch_vectors
from cwf_milvus.search.stage import Context, Stage, is_own, query_vectors, reranked, vectors_of


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
                lends=[not is_own(query, hits[i]) for i in can],
            )
        return reranked(self.name, hits, scores, why_not=lambda _: "no vectors are stored with it")

    def _with_new_candidates(
        self, query: Query, hits: Sequence[Hit], context: Context
    ) -> Sequence[Hit]:
        found = AlphaExpansion(self.hits).run([query], [hits], context)[0]
        there = {hit.uri for hit in hits}
        new = [hit for hit in found if hit.uri not in there]
        if not new or context.gallery is None:
            return hits
        new = fetch_vectors(context.gallery, [new], self.needed)[0]
        scores = late_interaction(
            query_vectors(query, self.kind), [vectors_of(hit, self.kind) for hit in new]
        ).scores
        return [
            *hits,
            *(replace(hit, score=float(one)) for hit, one in zip(new, scores, strict=True)),
        ]


def _with_history(stage: str, before: Sequence[Hit], found: Sequence[Hit]) -> list[Hit]:
    """Return the hits of a new search; those that were there before keep what was known of them."""
    known = {hit.uri: hit for hit in before}
    return [
        known.get(hit.uri, replace(hit, stages=())).scored(stage, hit.score, rank)
        for rank, hit in enumerate(found, start=1)
    ]
