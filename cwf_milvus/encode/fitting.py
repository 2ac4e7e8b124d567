"""Fitting the whitenings of an encoder on the local vectors of many photos."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from cwf_milvus.encode.local_vectors import LocalVectors
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import Whitenings, fit_conditions
from cwf_milvus.errors import ImageError, WhiteningError
from cwf_milvus.method.whitening import (
    FEWEST_DIMENSIONS,
    SAMPLES_PER_DIMENSION,
    ReducedDimensionWarning,
    Whitening,
)


def fit_whitenings(
    local: Iterable[LocalVectors],
    settings: EncoderSettings,
    n_features: int,
    *,
    origin: str | None = None,
    n_photos: int = 0,
) -> Whitenings:
    """Fit a whitening of class vectors and one of region vectors, streaming.

    Args:
        local: of batches of photos, before whitening.
        settings: `dim`, `n_fit_classes`, and the powers and conditions of the whitenings count.
        n_features: K, of the vectors.
        origin: the words that `info` shows; None to say on how many photos they were fitted.
        n_photos: how many were to be read, for an error.

    Raises:
        WhiteningError: too few photos for any whitening.
    """
    wanted = min(settings.dim, n_features)
    of_classes, of_regions = Whitening(wanted), Whitening(wanted)
    done = 0
    for batch in local:
        of_classes.partial_fit(batch.class_vectors[:, : settings.n_fit_classes])
        of_regions.partial_fit(torch.cat(batch.region_vectors))
        done += len(batch.class_ids)
    if not done:
        fewest = -(-FEWEST_DIMENSIONS * SAMPLES_PER_DIMENSION // settings.n_fit_classes)
        raise WhiteningError(
            f"none of the {n_photos} photos to fit on could be read: give at least {fewest} "
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


def readable(
    photos: Sequence[object],
    prepare: Callable[[object], Prepared],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Prepared]:
    """Yield photos made ready for the network; those that cannot be read are told in a warning.

    Args:
        photos: anything that `prepare` takes.
        prepare: reads and resizes one; an `ImageError` of it passes the photo over.
        progress: called with (photos done, photos in all).
    """
    failed: list[str] = []
    for done, photo in enumerate(photos, start=1):
        try:
            yield prepare(photo)
        except ImageError as error:
            failed.append(str(error))
        if progress is not None:
            progress(done, len(photos))
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(photos)} photos were not fitted on; the first: {failed[0]}",
            stacklevel=4,
        )
