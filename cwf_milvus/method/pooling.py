"""From feature maps to vectors: class vectors (Eq. 2-4), region vectors, and the baselines'.

Every function takes features X of shape (B, K, H, W), non-negative, and gives unit vectors on X's
device; what has nothing to pool gives a zero vector, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cwf_milvus.errors import BoxError
from cwf_milvus.method.regions import CellBox, rmac_boxes


def l2_normalize(x: Tensor, dim: int = -1) -> Tensor:
    """Return x at unit length along `dim`; zero vectors stay zero."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


def channel_weights(features: Tensor) -> Tensor:
    """Return CroW's channel weights ``CW_k = log(sum_n Q_n / Q_k)``, Eq. 3.

    Q_k is the share of cells where channel k is above 0; CW_k is 0 where Q_k is 0.

    Args:
        features: X of shape (B, K, H, W).

    Returns:
        Of shape (B, K), not negative.
    """
    # Written as floats at once: a quarter of the time of a mask and its conversion.
    share = torch.gt(features.detach(), 0, out=torch.empty_like(features)).mean(dim=(2, 3))
    total = share.sum(dim=1, keepdim=True)
    return torch.where(share > 0, total / share, 1).log()


def class_vectors(
    features: Tensor, class_maps: Tensor, channel_weights: Tensor | None = None
) -> Tensor:
    """Return the class vectors ``F^c_k = CW_k * sum_ij X[k, i, j] * CAM_c[i, j]``, Eq. 2-4.

    Args:
        features: X of shape (B, K, H, W).
        class_maps: of shape (B, N, H, W), from `class_activation_maps`. For a query box, crop
            both to the box.
        channel_weights: CW of shape (B, K); None to compute them from `features`.

    Returns:
        Unit vectors of shape (B, N, K); the vector of an all-zero map is zero.
    """
    weights = _channel_weights(features) if channel_weights is None else channel_weights
    sums = torch.bmm(class_maps.flatten(2), features.flatten(2).transpose(1, 2))
    return l2_normalize(sums * weights.unsqueeze(1))


# `class_vectors` has an argument of the same name.
_channel_weights = channel_weights


def region_vectors(features: Tensor, boxes: Tensor) -> Tensor:
    """Return the max-pooled vector of each region.

    Args:
        features: X of shape (B, K, H, W).
        boxes: of shape (R, 4) for all images alike, or (B, R, 4); int64, x1, y1, x2, y2 in
            cells, half open.

    Returns:
        Unit vectors of shape (B, R, K).

    Raises:
        BoxError: a box without a cell, or that leaves the grid.
    """
    height, width = features.shape[2:]
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    wrong = (x1 < 0) | (y1 < 0) | (x2 <= x1) | (y2 <= y1) | (x2 > width) | (y2 > height)
    if wrong.any():
        raise BoxError(
            f"region {tuple(boxes[wrong][0].tolist())} is empty or leaves the feature grid of "
            f"{width} x {height} cells: give x1, y1, x2, y2 in cells, half open"
        )
    if boxes.ndim == 3:
        pooled = torch.stack(
            [_max_pool(image[None], own)[0] for image, own in zip(features, boxes, strict=True)]
        )
    else:
        pooled = _max_pool(features, boxes)
    return l2_normalize(pooled)


def raw_sum(features: Tensor) -> Tensor:
    """Return the sum over all cells, of shape (B, K), unit; SPoC without its centre prior."""
    return l2_normalize(features.sum(dim=(2, 3)))


def spoc(features: Tensor) -> Tensor:
    """Return SPoC (Babenko and Lempitsky 2015, Eq. 1-3), of shape (B, K), unit.

    A sum weighted by a Gaussian around the middle of the grid, its sigma being one third of the
    distance from the middle to the closest border.
    """
    height, width = features.shape[2:]
    sigma = min(height, width) / 2 / 3
    y = torch.arange(height, device=features.device, dtype=features.dtype) + 0.5 - height / 2
    x = torch.arange(width, device=features.device, dtype=features.dtype) + 0.5 - width / 2
    prior = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2))
    return _weighted_sum(features, prior.expand(len(features), -1, -1))


def crow_spatial_weights(features: Tensor) -> Tensor:
    """Return CroW's spatial weights ``(S / (sum S^2)^(1/2))^(1/2)``, of shape (B, H, W).

    S is the sum over channels (Kalantidis, Mellina, Osindero 2016, Eq. 2 with a = b = 2).
    """
    sums = features.sum(dim=1)
    return l2_normalize(sums.flatten(1)).view_as(sums).clamp_min(0).sqrt()


def crow(features: Tensor) -> Tensor:
    """Return CroW (Kalantidis, Mellina, Osindero 2016), of shape (B, K), unit.

    The sum weighted by `crow_spatial_weights`, each channel by `channel_weights`.
    """
    sums = _weighted_sum(features, crow_spatial_weights(features))
    return l2_normalize(sums * channel_weights(features))


def mac(features: Tensor) -> Tensor:
    """Return MAC, the maximum of each channel (Tolias et al. 2016), of shape (B, K), unit."""
    return l2_normalize(features.amax(dim=(2, 3)))


def rmac(
    features: Tensor, levels: int = 3, whiten: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return R-MAC (Tolias, Sicre, Jégou 2016), of shape (B, K), unit.

    The sum of the unit max-pooled vectors of `rmac_boxes`.

    Args:
        features: X of shape (B, K, H, W).
        levels: scales of regions (L).
        whiten: applied to the region vectors of shape (B, R, K) before the sum, as in the paper;
            gives unit vectors of shape (B, R, d), and so a result of shape (B, d).
    """
    height, width = features.shape[2:]
    vectors = region_vectors(features, rmac_boxes(height, width, levels))
    return l2_normalize((whiten(vectors) if whiten else vectors).sum(dim=1))


def gem(features: Tensor, p: float = 3.0) -> Tensor:
    """Return GeM ``(mean x^p)^(1/p)`` (Radenović, Tolias, Chum 2018), of shape (B, K), unit."""
    return l2_normalize(features.clamp_min(0).pow(p).mean(dim=(2, 3)).pow(1 / p))


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": raw_sum,
    "spoc": spoc,
    # "uCroW" is CroW's own baseline: its pipeline with all weights equal, which is the plain sum.
    "ucrow": raw_sum,
    "crow": crow,
    "mac": mac,
    "rmac": rmac,
    "gem": gem,
}
"""The baselines by name, each from X of shape (B, K, H, W) to unit vectors of shape (B, K)."""


def _weighted_sum(features: Tensor, spatial_weights: Tensor) -> Tensor:
    sums = torch.bmm(features.flatten(2), spatial_weights.reshape(len(features), -1, 1))
    return l2_normalize(sums[..., 0])


def _max_pool(features: Tensor, boxes: Tensor) -> Tensor:
    """Max-pool (B, K, H, W) over boxes (R, 4), to (B, R, K)."""
    # With channels last, and one axis at a time, each step is a maximum of whole rows of memory.
    cells = features.permute(0, 2, 3, 1).contiguous()
    return torch.stack(
        [cells[:, y1:y2, x1:x2].amax(dim=1).amax(dim=1) for x1, y1, x2, y2 in boxes.tolist()],
        dim=1,
    )


def class_vectors_in_boxes(
    features: Tensor, maps: Tensor, boxes: Sequence[CellBox], weighting: str | None
) -> Tensor:
    """Return the class vectors (R, N, K) of the boxes of one photo, Eq. 2-4 over each crop.

    All boxes at once: a box is a mask of 0 and 1 on the grid, and a crop's sum is a product with
    its mask.

    Args:
        features: X of shape (K, H, W).
        maps: of shape (N, H, W).
        boxes: R boxes in cells.
        weighting: as `EncoderSettings.feature_weighting`.
    """
    masks = features.new_zeros(len(boxes), *features.shape[1:])
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    cells = features.flatten(1).T
    share = masks.flatten(1) @ (cells > 0).to(cells.dtype) / masks.sum((1, 2))[:, None]
    total = share.sum(dim=1, keepdim=True)
    channel_weights = torch.where(share > 0, total / share, 1).log()
    masked = maps[None] * masks[:, None]
    if weighting == "crow":  # its weights are normalised over each crop
        crops = features[None] * masks[:, None]
        masked = masked * crow_spatial_weights(crops)[:, None]
    sums = masked.flatten(2) @ cells
    return l2_normalize(sums * channel_weights[:, None])
