"""How certain the answers of a search are, and whether what was asked for is there at all."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_share
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.certainty import CertaintyModel, certainties, is_found
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.stage import Stage
from cwf_milvus.search.stored import Regions
from cwf_milvus.store.calibration import model_of, shipped_model
from cwf_milvus.store.photo_rows import PhotoRows


class Judge:
    """Tells the certainty of hits whose regions were compared.

    Args:
        gallery: the photos that are searched.
        stages: of the search.
        least: certainty below which hits are dropped, from 0 to 1; None to drop none.

    Raises:
        SettingsError: `least` out of range, or where no certainty can be told.
        CollectionError: a damaged calibration.
    """

    def __init__(
        self, gallery: Gallery, stages: Sequence[Stage], least: float | None = None
    ) -> None:
        self._least = None if least is None else checked_share("min_certainty", least)
        compared = any(map(_as_fitted, stages))
        self._model = certainty_model(gallery) if compared else None
        if least is not None and self._model is None:
            why = "re-rank by regions" if not compared else "calibrate it by `cwf-milvus calibrate`"
            raise SettingsError(
                f"min_certainty={least!r}: how certain a hit of {gallery.name!r} is cannot be "
                f"told: {why}, or leave it out"
            )

    def __call__(self, query: Query, hits: Sequence[Hit]) -> tuple[list[Hit], bool | None]:
        """Return hits with their certainty, without those below the least.

        The query's own photo, of the same bytes, has 1 already. A hit that has no score by regions
        has none, and nor have those of a query that was made of several photos.

        Returns:
            The hits, and whether the thing is there; None where it cannot be told.
        """
        judged, found = list(hits), None
        if self._model is not None and query.encoding.content:
            scores, inliers = np.array([evidence(hit) for hit in hits]).reshape(-1, 2).T
            if not np.isnan(scores).all() or not hits:
                found = is_found(scores, inliers, self._model)
            told = certainties(scores, inliers, self._model).tolist()
            judged = [
                hit if hit.certainty is not None or chance != chance else hit.but(certainty=chance)
                for hit, chance in zip(hits, told, strict=True)
            ]
        if any(hit.certainty == 1 for hit in judged):
            found = True
        if self._least is not None:
            judged = [hit for hit in judged if (hit.certainty or 0) >= self._least]
        return judged, found


def certainty_model(gallery: Gallery) -> CertaintyModel | None:
    """Return the model by which certainty is told; None where there is none.

    Raises:
        CollectionError: the collection's own is damaged.
    """
    if isinstance(gallery, PhotoRows):
        return model_of(gallery.sidecar)
    return shipped_model(gallery.encoder.fingerprint)


def evidence(hit: Hit) -> tuple[float, float]:
    """Return a hit's score by regions and its inliers, NaN for what there is not."""
    scores = [stage.score for stage in hit.stages if stage.stage == Regions.name]
    return scores[-1] if scores else nan, nan if hit.inliers is None else hit.inliers


def _as_fitted(stage: Stage) -> bool:
    """Tell whether a stage gives the scores that models are fitted on."""
    return isinstance(stage, Regions) and (
        stage.power == 2 and not stage.class_weight and not stage.descriptor_weight
    )
