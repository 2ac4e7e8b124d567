"""The stages `regions` and `classes`: late interaction of stored vectors, no network pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cwf_milvus.answers.hits import Hit, Match, Matches, Query
from cwf_milvus.checks import checked_share
from cwf_milvus.encode.encoding import Kind
from cwf_milvus.method.late_interaction import Interaction, checked_power, late_interaction
from cwf_milvus.photos.box import Box
from cwf_milvus.search.stage import (
    Context,
    Stage,
    query_vectors,
    reranked,
    stored_of,
    vectors_of,
)

_MATCHES = 3  # shown of a hit
_NONE_STORED = {
    "regions": "no region vectors are stored with it",
    "classes": "no class vectors are stored with it",
}


class Regions(Stage):
    """Score by the regions of the hits: for each of the query's the best cosine, squared, averaged.

    A hit's `box` becomes that of its regions which the query's largest one, the whole box,
    resembles most.

    Args:
        class_weight: share of the class vectors' late interaction in the score, from 0 to 1.
        descriptor_weight: share of the first search's score, from 0 to 1.
        power: of the cosines, at least 1: 2 squares them, 1 gives the scores of 0.1.0.

    Raises:
        SettingsError: a weight out of range, both together above 1, or a power below 1.
    """

    name = "regions"
    brief = True

    def __init__(
        self, *, class_weight: float = 0.0, descriptor_weight: float = 0.0, power: float = 2.0
    ) -> None:
        self.class_weight = checked_share("class_weight", class_weight)
        self.descriptor_weight = checked_share("descriptor_weight", descriptor_weight)
        checked_share("class_weight + descriptor_weight", class_weight + descriptor_weight)
        self.power = checked_power(power)

    @property
    def needed(self) -> tuple[Kind, ...]:
        """Region vectors, and class vectors where they count."""
        return ("regions", "classes") if self.class_weight else ("regions",)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`."""
        found, scores = _interact(query, hits, "regions", self.power)
        if self.class_weight:
            _, of_classes = _interact(query, hits, "classes", self.power)
            of_classes = np.where(np.isnan(of_classes), scores, of_classes)
            scores = scores + self.class_weight * (of_classes - scores)
        scores = _with_first_score(hits, scores, self.descriptor_weight)

        asked = [Box(*sides) for sides in query.encoding.region_boxes.tolist()]
        best = _best_matches(found)
        whole = max(range(len(asked)), key=lambda q: _area(asked[q]), default=0)

        def changes(i: int) -> dict[str, Any]:
            boxes = stored_of(hits[i]).region_boxes
            assert boxes is not None  # it has a score, so it has regions
            return {
                "box": Box(*boxes[found.matches[i, whole]].tolist()),
                "framed_by": "region",
                "matches": Matches(asked, boxes, best[i]),
            }

        return reranked(self.name, hits, scores, changes, lambda i: _NONE_STORED["regions"])


class Classes(Stage):
    """Score by the class vectors of the hits: the best cosine of each of the query's, squared.

    A hit's `classes` become those of its classes that answer to the query's best.

    Args:
        descriptor_weight: share of the first search's score, from 0 to 1; ``rerank="classes"``
            takes .3, since class vectors alone rank small things no better than the descriptor
            does (docs/decisions.md).
        power: of the cosines, as in `Regions`.

    Raises:
        SettingsError: a weight out of range, or a power below 1.
    """

    name = "classes"
    needs = ("classes",)
    brief = True

    def __init__(self, *, descriptor_weight: float = 0.0, power: float = 2.0) -> None:
        self.descriptor_weight = checked_share("descriptor_weight", descriptor_weight)
        self.power = checked_power(power)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`."""
        found, scores = _interact(query, hits, "classes", self.power)
        scores = _with_first_score(hits, scores, self.descriptor_weight)
        names = class_names(context)
        asked = [names(class_id) for class_id in query.encoding.class_ids]
        best = _best_matches(found)

        def changes(i: int) -> dict[str, Any]:
            own = stored_of(hits[i]).class_ids
            matches = tuple(Match(asked[q], names(own[v]), c) for q, v, c in best[i])
            return {
                "matches": matches,
                "classes": tuple(dict.fromkeys(str(match.hit) for match in matches)),
            }

        return reranked(self.name, hits, scores, changes, lambda i: _NONE_STORED["classes"])


def class_names(context: Context) -> Callable[[int], str]:
    """Return a function from a class id to its name, or to its number where names are unknown."""
    if context.gallery is None:
        return lambda class_id: f"class {class_id}"
    known = context.gallery.class_names
    return lambda class_id: known[class_id]


def _interact(
    query: Query, hits: Sequence[Hit], kind: Kind, power: float
) -> tuple[Interaction, np.ndarray]:
    """Return a late interaction, and its scores with NaN for hits that have no vectors."""
    stored = [vectors_of(hit, kind) for hit in hits]
    found = late_interaction(query_vectors(query, kind), stored, power)
    has_vectors = np.array([len(vectors) > 0 for vectors in stored], dtype=bool)
    return found, np.where(has_vectors, found.scores, np.nan)


def _with_first_score(hits: Sequence[Hit], scores: np.ndarray, weight: float) -> np.ndarray:
    if not weight:
        return scores
    first = np.array([hit.stages[0].score if hit.stages else hit.score for hit in hits])
    return (1 - weight) * scores + weight * first


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def _best_matches(found: Interaction) -> list[list[tuple[int, int, float]]]:
    """Return (the query's vector, the hit's vector, cosine) of each hit's best matches."""
    queries = np.argsort(-found.cosines, axis=1, kind="stable")[:, :_MATCHES]
    vectors = np.take_along_axis(found.matches, queries, axis=1)
    cosines = np.take_along_axis(found.cosines, queries, axis=1)
    return [
        list(zip(*one, strict=True))
        for one in zip(queries.tolist(), vectors.tolist(), cosines.tolist(), strict=True)
    ]
