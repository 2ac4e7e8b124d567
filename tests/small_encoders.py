"""Encoders at a small size, and crops of real photos to fit them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest
from skimage import data as photos

from cwf_milvus.backbones import create_backbone
from cwf_milvus.encode import network as network_module
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding

CHELSEA, COFFEE, ROCKET = photos.chelsea(), photos.coffee(), photos.rocket()
HUBBLE = photos.hubble_deep_field()  # 1000 x 872
ARRAYS = [field.name for field in fields(Encoding)][:6]
SMALL: dict[str, Any] = {
    "image_size": 160,
    "class_image_size": 96,
    "n_classes": 16,
    "n_pooled": 16,
    "region_levels": (1, 2, 3),
    "descriptor": "classes",
}


@contextmanager
def network_built_once() -> Iterator[None]:
    """Let the encoders of a test file share one network, which takes most of a second to build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "create_backbone", cache(create_backbone))
        yield


def small(**settings: Any) -> Encoder:
    """Return the default network with its real weights."""
    return Encoder(**{**SMALL, **settings})


def tiny(**settings: Any) -> Encoder:
    """Return a network of 96 channels with random weights, for all but what is seen."""
    return Encoder("timm:test_resnet", **{"weights": "random", **SMALL, **settings})


def crops(n: int) -> list[np.ndarray]:
    """n different pieces of real photos, in grids of two shapes."""
    pieces = [
        photo[top : top + height, left : left + 160]
        for height in (160, 100)
        for photo in (CHELSEA, COFFEE, ROCKET, photos.astronaut())
        for top in range(0, photo.shape[0] - 160, 45)
        for left in range(0, photo.shape[1] - 160, 45)
    ]
    step = len(pieces) // n
    return pieces[::step][:n]


def with_settings(encoder: Encoder, **changes: object) -> Encoder:
    """Make an encoder anew, of the same network and whitening, with some settings changed."""
    settings = {**encoder.settings.to_dict(), **changes}
    return Encoder(weights=encoder.weights, whitening=encoder.whitenings, **settings)


def alike(a: Encoding, b: Encoding, tolerance: float = 0) -> bool:
    """Say whether all arrays of two encodings are equal, to a tolerance."""
    return all(np.abs(getattr(a, name) - getattr(b, name)).max() <= tolerance for name in ARRAYS)
