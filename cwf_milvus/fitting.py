"""Fits the whitenings of an encoder on photos, streaming."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cwf_milvus.batching import batches
from cwf_milvus.errors import ImageError, WhiteningError
from cwf_milvus.sources import list_photos
from cwf_milvus.views import Prepared
from cwf_milvus.whitening import (
    FEWEST_DIMENSIONS,
    SAMPLES_PER_DIMENSION,
    ReducedDimensionWarning,
    Whitening,
)
from cwf_milvus.whitenings import Whitenings, fit_conditions

if TYPE_CHECKING:
    from cwf_milvus.encoder import Encoder


def fit_whitenings(
    encoder: Encoder,
    items: Sequence[object],
    origin: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Whitenings:
    """Fit a whitening of class vectors and one of region vectors; see `Encoder.fit`.

    Raises:
        WhiteningError: too few photos for any whitening.
    """
    settings = encoder.settings
    wanted = min(settings.dim, encoder.backbone.n_features)
    of_classes, of_regions = Whitening(wanted), Whitening(wanted)
    failed: list[str] = []
    done = 0

    def readable() -> Iterable[Prepared]:
        for item in items:
            try:
                yield encoder.prepare(encoder.read(item))
            except ImageError as error:
                failed.append(str(error))

    for batch in batches(readable(), encoder.batch_size, lambda prepared: prepared.grid):
        local = encoder.local_vectors(batch)
        of_classes.partial_fit(local.class_vectors[:, : settings.n_fit_classes])
        of_regions.partial_fit(torch.cat(local.region_vectors))
        done += len(batch)
        if progress is not None:
            progress(done + len(failed), len(items))
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(items)} photos were not fitted on; the first: {failed[0]}",
            stacklevel=3,
        )
    if not done:
        fewest = -(-FEWEST_DIMENSIONS * SAMPLES_PER_DIMENSION // settings.n_fit_classes)
        raise WhiteningError(
            f"none of the {len(items)} photos to fit on could be read: give at least {fewest} "
            "readable ones"
        )
    samples = min(of_classes.n_samples_, of_regions.n_samples_)
    dim = min(wanted, samples // SAMPLES_PER_DIMENSION)
    if dim < wanted and dim >= FEWEST_DIMENSIONS:
        warnings.warn(
            f"whitening reduced from {wanted} to {dim} dimensions: {done} photos gave {samples} "
            f"vectors, {SAMPLES_PER_DIMENSION} are needed for each dimension",
            ReducedDimensionWarning,
            stacklevel=3,
        )
        of_classes.dim = of_regions.dim = dim
    used = f"fitted on {done} photos"
    return Whitenings(of_classes, of_regions, origin or used, fit_conditions(settings))


def photo_items(photos: object) -> list[object]:
    """Return the photos that `photos` names: files, folders, globs, urls, or images as such."""
    one = isinstance(photos, str | Path | bytes) or getattr(photos, "ndim", 4) < 4
    items = list(photos) if isinstance(photos, Iterable) and not one else [photos]
    named = [item for item in items if isinstance(item, str | Path)]
    return list(list_photos(named)) if named and len(named) == len(items) else items
