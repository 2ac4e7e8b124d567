"""From the local vectors of a batch to what is kept of each photo."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.local_vectors import LocalVectors
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.aggregation import offline
from cwf_milvus.method.pooling import l2_normalize
from cwf_milvus.method.sending import fetched, sent


def encodings(
    local: LocalVectors,
    whitenings: Whitenings | None,
    settings: EncoderSettings,
    photos: Sequence[Prepared],
) -> Callable[[], list[Encoding]]:
    """Begin to make what is kept of the B photos of a batch; what is returned gives it.

    Until then nothing waits for a GPU.

    Args:
        local: their vectors before whitening.
        whitenings: None to go without.
        settings: as in `describe`.
        photos: in the order of `local`.
    """
    coming = fetched(on_device(local, whitenings, settings))
    counts = [len(boxes) for boxes in local.region_boxes]

    def arrived() -> list[Encoding]:
        descriptors, ids, scores, class_vectors, all_regions = (one.numpy() for one in coming())
        if settings.network_dtype == "float16" and not np.isfinite(descriptors).all():
            raise SettingsError(
                "network_dtype='float16' overflowed: this network's numbers go beyond 65,504; use "
                "bfloat16, which has float32's range"
            )
        region_vectors = np.split(all_regions, np.cumsum(counts)[:-1])
        return [
            Encoding(
                descriptors[i],
                ids[i],
                scores[i],
                class_vectors[i],
                in_pixels(local.region_boxes[i], local.cells, photo),
                region_vectors[i],
                photo.uri,
                photo.content,
                photo.width,
                photo.height,
                photo.keypoints,
            )
            for i, photo in enumerate(photos)
        ]

    return arrived


def on_device(
    local: LocalVectors, whitenings: Whitenings | None, settings: EncoderSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return descriptors (B, d), class ids and scores (B, N), class and all region vectors.

    All where the local vectors are; class vectors of shape (B, N, d), the region vectors of all
    photos one after the other, (sum of R, d), whitened both. Nothing waits for a GPU.
    """
    class_vectors = whiten(local.class_vectors, whitenings, "classes")
    counts = [len(vectors) for vectors in local.region_vectors]
    region_vectors = whiten(torch.cat(local.region_vectors), whitenings, "regions")
    descriptors = describe(class_vectors, torch.split(region_vectors, counts), settings)
    return descriptors, local.class_ids, local.class_scores, class_vectors, region_vectors


def whiten(vectors: Tensor, whitenings: Whitenings | None, kind: str) -> Tensor:
    """Whiten "classes" or "regions" vectors of shape (..., K) to (..., d), unit length."""
    if whitenings is None:
        return vectors
    return (
        whitenings.classes.transform(vectors)
        if kind == "classes"
        else (whitenings.regions.transform(vectors))
    )


def describe(
    class_vectors: Tensor, region_vectors: Sequence[Tensor], settings: EncoderSettings
) -> Tensor:
    """Return the descriptors of images: the sum that the settings ask for.

    In the sum of regions each weighs as much as its side is long, or the many small ones of a fine
    grid would drown the few large ones.

    Args:
        class_vectors: whitened, of shape (B, N, d).
        region_vectors: whitened, B of shape (R, d); not read where the descriptor is "classes".
        settings: `descriptor`, `class_share`, `n_pooled` and `classes` count.

    Returns:
        Of shape (B, d), unit.
    """
    n_pooled = None if settings.classes else settings.n_pooled
    of_classes = offline(class_vectors[:, :n_pooled])
    if settings.descriptor == "classes":
        return of_classes
    sides = {
        n: sent(_sides(settings.region_levels, n), class_vectors.device).to(class_vectors.dtype)
        for n in sorted({len(vectors) for vectors in region_vectors})
    }
    of_regions = torch.stack(
        [l2_normalize(sides[len(vectors)] @ vectors) for vectors in region_vectors]
    )
    if settings.descriptor == "regions":
        return of_regions
    return l2_normalize(settings.class_share * of_classes + of_regions)


def _sides(levels: Sequence[int], n: int) -> Tensor:
    """Return the sides of n regions, in shares of the image's; those of class maps as the least."""
    sides = torch.tensor([2 / (level + 1) for level in levels for _ in range(level * level)])
    return torch.cat([sides, sides.min().repeat(max(0, n - len(sides)))])[:n]


def in_pixels(boxes: Tensor, cells: tuple[int, int], photo: Prepared) -> np.ndarray:
    """Return boxes of cells (R, 4) in pixels of the upright photo, float32.

    Args:
        boxes: x1, y1, x2, y2 on the feature grid.
        cells: (H, W) of the grid.
        photo: whose grid it is.
    """
    scale = torch.tensor([photo.width / cells[1], photo.height / cells[0]]).repeat(2)
    return (boxes.cpu() * scale).numpy().astype(np.float32)
