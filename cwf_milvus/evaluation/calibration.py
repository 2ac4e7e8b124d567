"""Fit a collection's certainty on ground truth of its own photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.truth import Dataset
from cwf_milvus.evaluation.features import Progress
from cwf_milvus.method.certainty import FIRST_HITS, CertaintyModel, fit_certainty
from cwf_milvus.photos.sources import uri_of
from cwf_milvus.search.certainty import evidence
from cwf_milvus.store.calibration import keep_model

_QUERIES_AT_ONCE = 16


@dataclass(frozen=True)
class Calibration:
    """What a calibration was fitted on, and what came of it.

    Attributes:
        model: that the collection now tells certainty by.
        queries: that were asked.
        right: hits that the ground truth calls right.
        wrong: hits that it calls wrong.
        verified: whether keypoints count in it.
    """

    model: CertaintyModel
    queries: int
    right: int
    wrong: int
    verified: bool

    def __str__(self) -> str:
        counted = "score and keypoints" if self.verified else "score alone"
        curve = self.model.verified or self.model.score_alone
        return (
            f"calibrated by {self.queries} queries with {self.right} right and {self.wrong} wrong "
            f"hits, on {counted}: a thing is there from a certainty of {curve.threshold:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        curve = self.model.verified or self.model.score_alone
        return {**vars(self), "model": self.model.origin, "threshold": curve.threshold}


def calibrate(
    collection: InstanceCollection, dataset: Dataset, progress: Progress | None = None
) -> Calibration:
    """Fit certainty on the first hits of a dataset's queries, and keep it with the collection.

    Photos of the collection that the ground truth does not name, junk and each query's own photo
    do not count.

    Args:
        collection: holds the dataset's photos, under the paths that the dataset has them.
        dataset: what is asked and what is right.
        progress: called with (queries done, queries in all).

    Raises:
        SettingsError: none of the dataset's photos are in the collection, too few hits are right or
            wrong, or the scores do not tell them apart.
        ImageError: a query that cannot be read.
        CollectionError: the collection's calibration is damaged.
        StoreError: Milvus failed.
    """
    names = {uri_of(str(dataset.path(name))): name for name in dataset.images}
    if not collection.contents(names):
        raise SettingsError(
            f"none of the {len(names)} photos of {dataset.name} is in {collection.name!r}: index "
            "them by the path that they have now, or say where they were with --root"
        )
    found: list[tuple[float, float]] = []
    right: list[bool] = []
    for start in range(0, len(dataset.queries), _QUERIES_AT_ONCE):
        queries = dataset.queries[start : start + _QUERIES_AT_ONCE]
        answers = collection.search(
            [str(dataset.path(query.image)) for query in queries],
            box=[query.box for query in queries],
            limit=FIRST_HITS,
            expand="none",
        )
        for query, hits in zip(queries, answers, strict=True):
            for hit in hits:
                name = names.get(hit.uri)
                if name in query.junk | {query.image, None} or hit.certainty == 1:
                    continue
                found.append(evidence(hit))
                right.append(name in query.positives)
        if progress is not None:
            progress(start + len(queries), len(dataset.queries))
    scores, inliers = np.array(found).reshape(-1, 2).T
    model = fit_certainty(
        scores, inliers, np.array(right), f"{len(dataset.queries)} queries of {dataset.name}"
    )
    keep_model(collection.sidecar, model)
    return Calibration(
        model,
        len(dataset.queries),
        sum(right),
        len(right) - sum(right),
        model.verified is not None,
    )
