"""Feature maps to test the mathematics on: random ones, and a real network's on a real photo."""

from __future__ import annotations

from functools import cache

import numpy as np
import skimage.data
import torch
from torch import Tensor

from cwf_milvus.backbones import create_backbone

# height, width, channels: even, odd, a row, a column and a single cell
SHAPES = [(6, 8, 20), (7, 5, 33), (1, 9, 12), (5, 1, 12), (1, 1, 16)]


def random_features(height: int, width: int, channels: int, batch: int = 2) -> Tensor:
    """Sparse and non-negative as after a ReLU, with one channel that is never active."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    features = torch.randn(batch, channels, height, width, generator=generator).clamp_min(0)
    features[:, 3] = 0
    features[:, 4] = 0.5
    return features


@cache
def real_maps(photo: str = "chelsea", step: int = 2) -> dict[str, Tensor]:
    """X, G, w of the 5 likeliest classes, and their ids, for a photo and its mirror image."""
    pixels = torch.from_numpy(getattr(skimage.data, photo)()).permute(2, 0, 1)[None]
    images = torch.cat([pixels, pixels.flip(3)])[:, :, ::step, ::step].contiguous()
    with torch.inference_mode():
        maps = create_backbone("efficientnet_lite0")(images)
        ids = maps.logits.argsort(dim=1, descending=True)[:, :5]
        weights = maps.class_weights(ids)
    return {
        "features": maps.features.clone(),
        "class_source": maps.class_source.clone(),
        "logits": maps.logits.clone(),
        "weights": weights.clone(),
        "ids": ids.clone(),
    }


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.sum(vector**2))
    return vector / length if length > 0 else vector


def reference_class_maps(class_source: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Eq. 1 for one image, class by class: G (M, H, W), w (N, M) -> (N, H, W)."""
    maps = []
    for row in weights:
        summed = np.zeros(class_source.shape[1:])
        for weight, channel in zip(row, class_source, strict=True):
            summed += weight * channel
        peak = summed.max()
        maps.append(np.maximum(summed / peak, 0) if peak > 0 else np.zeros_like(summed))
    return np.stack(maps)


def reference_channel_weights(features: np.ndarray) -> np.ndarray:
    """Eq. 3 for one image: X (K, H, W) -> (K,)."""
    shares = [np.count_nonzero(channel > 0) / channel.size for channel in features]
    return np.array([np.log(sum(shares) / share) if share > 0 else 0.0 for share in shares])
