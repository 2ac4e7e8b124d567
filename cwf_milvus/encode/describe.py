"""From the local vectors of a batch to what is kept of each photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.local_vectors import LocalVectors
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.method.aggregation import offline
from cwf_milvus.method.pooling import l2_normalize


def encodings(
    local: LocalVectors,
    whitenings: Whitenings | None,
    settings: EncoderSettings,
    photos: Sequence[Prepared],
) -> list[Encoding]:
    """Return what is kept of the B photos of a batch.

    Args:
        local: their vectors before whitening.
        whitenings: None to go without.
        settings: as in `describe`.
        photos: in the order of `local`.
    """
    class_vectors = whiten(local.class_vectors, whitenings, "classes")
    counts = [len(vectors) for vectors in local.region_vectors]
    region_vectors = whiten(torch.cat(local.region_vectors), whitenings, "regions")
    region_lists = torch.split(region_vectors, counts)
    descriptors = describe(class_vectors, region_lists, settings).cpu().numpy()
    ids, scores = local.class_ids.cpu().numpy(), local.class_scores.cpu().numpy()
    class_arrays = class_vectors.cpu().numpy()
    return [
        Encoding(
            descriptors[i],
            ids[i],
            scores[i],
            class_arrays[i],
            in_pixels(local.region_boxes[i], local.cells, photo),
            region_lists[i].cpu().numpy(),
            photo.uri,
            photo.content,
            photo.width,
            photo.height,
            photo.keypoints,
        )
        for i, photo in enumerate(photos)
    ]


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
    of_regions = torch.stack(
        [
            l2_normalize(_sides(settings.region_levels, len(vectors)).to(vectors) @ vectors)
            for vectors in region_vectors
        ]
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
