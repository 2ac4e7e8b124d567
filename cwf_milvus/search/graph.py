"""The stage `graph`: what resembles the best hits is an answer too (docs/graph.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_count
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.diffusion import (
    GAMMA,
    SEEDS,
    VERIFIED_GAMMA,
    VERIFIED_SEEDS,
    fused,
    seed_weights,
)
from cwf_milvus.search.gallery import Diffusion
from cwf_milvus.search.stage import Context, Stage, is_own, reranked, stored_of

_REACHED = 1000  # photos that the graph may tell of; ten seeds reach some hundred


class GraphExpansion(Stage):
    """Diffuse the scores of the best hits on the graph of the stored photos: one sparse search.

    ``f / max f + .1 · score / best score`` (METHOD §11), with f = L y and the scores of the best
    hits as y. Photos that no search found come in, if the filter lets them. A hit that is not in
    the graph, added since it was built, keeps its place, unless it is one of the best.

    The query's own photo (its bytes are the query's) gives nothing: its neighbours are known to be
    like the photo, and not like the thing in the box.

    Args:
        hits: how many of the best give their scores; 0 for 10 after `spatial`, else 5.

    Raises:
        SettingsError: hits under 0.
    """

    name = "graph"

    def __init__(self, hits: int = 0) -> None:
        self.hits = checked_count("hits", hits, 0)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`."""
        return self.run([query], [hits], context)[0]

    def run(
        self, queries: Sequence[Query], answers: Sequence[Sequence[Hit]], context: Context
    ) -> list[list[Hit]]:
        """Answer several queries, with one call to Milvus for all.

        Raises:
            SettingsError: no collection to search.
            CollectionError: it has no graph.
        """
        graph = _graph(context)
        contents = {hit.uri: stored_of(hit).content for hits in answers for hit in hits}
        places = graph.places(contents)
        seeds = [self._seeds(*asked) for asked in zip(queries, answers, strict=True)]
        known = [
            {places[uri]: weight for uri, weight in one.items() if uri in places} for one in seeds
        ]
        asked = [i for i, one in enumerate(known) if one]
        reached: list[dict[str, tuple[float, str]]] = [{} for _ in queries]
        if asked:
            found = graph.diffused([known[i] for i in asked], max(_REACHED, context.depth))
            for i, one in zip(asked, found, strict=True):
                reached[i] = one
        changed = []
        for i, (query, hits) in enumerate(zip(queries, answers, strict=True)):
            amounts = {uri: weight for uri, weight in seeds[i].items() if uri not in places}
            amounts |= {uri: f for uri, (f, _) in reached[i].items() if uri in places}
            new = {uri: f for uri, f in reached[i].items() if uri not in contents}
            brought = _brought(query, new, context) if amounts else []
            amounts |= {hit.uri: new[hit.uri][0] for hit in brought}
            every = [*hits, *brought]
            scores = fused(
                np.array([amounts.get(hit.uri, 0.0) for hit in every]),
                np.array([hit.score for hit in hits] + [0.0] * len(brought)),
            )
            known_to_graph = [hit.uri in places or hit.uri in amounts for hit in every]
            scores = np.where(known_to_graph, scores, np.nan)
            changed.append(reranked(self.name, every, scores, why_not=lambda _: _OUTSIDE))
        return changed

    def _seeds(self, query: Query, hits: Sequence[Hit]) -> dict[str, float]:
        """Return the weights of the best hits."""
        verified = any(hit.inliers is not None for hit in hits)
        scores = np.array([np.nan if is_own(query, hit) else hit.score for hit in hits])
        count = self.hits or (VERIFIED_SEEDS if verified else SEEDS)
        weights = seed_weights(scores, count, VERIFIED_GAMMA if verified else GAMMA)
        return {hits[i].uri: float(weights[i]) for i in np.flatnonzero(weights).tolist()}


_OUTSIDE = "it is not in the graph, which is older"


def _graph(context: Context) -> Diffusion:
    if context.gallery is None:
        raise SettingsError("graph searches the graph of a collection, which takes a collection")
    if not context.gallery.has_graph():
        raise CollectionError(
            f"the collection {context.gallery.name!r} has no graph: build it with "
            "`cwf-milvus graph`, or `build_graph()`, first"
        )
    return context.gallery.graph


def _brought(query: Query, new: dict[str, tuple[float, str]], context: Context) -> list[Hit]:
    """Return photos that no search found; those that were changed or removed since are left out."""
    if context.look_up is None:
        return []
    best = sorted(new, key=lambda uri: -new[uri][0])[: context.depth]
    found = context.look_up(query, best)
    return [hit for hit in found if stored_of(hit).content == new[hit.uri][1]]
