"""Class and region vectors of a batch, from its features and class maps, before whitening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.method import pooling, regions

CellBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class LocalVectors:
    """Vectors of a batch before whitening.

    Attributes:
        class_ids: of shape (B, N).
        class_scores: of shape (B, N).
        class_vectors: of shape (B, N, K).
        region_boxes: B tensors of shape (R, 4), cells of the feature grid.
        region_vectors: B tensors of shape (R, K).
        cells: (H, W) of the feature grid.
    """

    class_ids: Tensor
    class_scores: Tensor
    class_vectors: Tensor
    region_boxes: list[Tensor]
    region_vectors: list[Tensor]
    cells: tuple[int, int]


def pool_local(
    features: Tensor,
    class_maps: Tensor,
    class_ids: Tensor,
    class_scores: Tensor,
    boxes: Sequence[CellBox | None],
    settings: EncoderSettings,
) -> LocalVectors:
    """Pool features by class maps (Eq. 2-4) and by regions.

    Args:
        features: X of shape (B, K, H, W).
        class_maps: of shape (B, N, H, W), already normalised by their whole maps' maxima.
        class_ids: of shape (B, N).
        class_scores: of shape (B, N).
        boxes: for each image the cells that count, x1, y1, x2, y2, or None for all.
        settings: `feature_weighting`, `region_levels` and `cam_regions` count.
    """
    if any(boxes):  # queries: every box crops its own grid
        parts = [
            _pool(features[i : i + 1], class_maps[i : i + 1], box, settings)
            for i, box in enumerate(boxes)
        ]
    else:
        parts = [_pool(features, class_maps, None, settings)]
    return LocalVectors(
        class_ids,
        class_scores,
        torch.cat([part[0] for part in parts]),
        [region_boxes for part in parts for region_boxes in part[1]],
        [vectors for part in parts for vectors in part[2]],
        (features.shape[-2], features.shape[-1]),
    )


def _pool(
    features: Tensor, class_maps: Tensor, box: CellBox | None, settings: EncoderSettings
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x1, y1, x2, y2 = box or (0, 0, features.shape[-1], features.shape[-2])
    features = features[..., y1:y2, x1:x2]
    class_maps = class_maps[..., y1:y2, x1:x2]
    channel_weights = pooling.channel_weights(features)
    weighted = features
    if settings.feature_weighting == "crow":
        weighted = features * pooling.crow_spatial_weights(features)[:, None]
    class_vectors = pooling.class_vectors(weighted, class_maps, channel_weights=channel_weights)
    height, width = features.shape[-2:]
    grid = regions.grid_boxes(height, width, settings.region_levels)
    region_boxes = [grid] * len(features)
    region_vectors = list(pooling.region_vectors(features, grid))
    if settings.cam_regions:
        extra = regions.heat_boxes(class_maps[:, :2].mean(1))
        region_boxes = [torch.cat([grid, torch.tensor(found)]) for found in extra]
        region_vectors = [
            pooling.region_vectors(features[i : i + 1], boxes)[0]
            for i, boxes in enumerate(region_boxes)
        ]
    if settings.region_channel_weights:
        region_vectors = [
            pooling.l2_normalize(vectors * weights)
            for vectors, weights in zip(region_vectors, channel_weights, strict=True)
        ]
    corner = torch.tensor([x1, y1, x1, y1])
    return class_vectors, [boxes + corner for boxes in region_boxes], region_vectors
