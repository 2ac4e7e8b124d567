"""What every network gives: features, class-map source, class weights and logits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cwf_milvus.errors import WeightsError


@dataclass(frozen=True)
class FeatureMaps:
    """One forward pass over a batch of B images of equal size.

    Attributes:
        features: X of shape (B, K, H, W), non-negative.
        class_source: G of shape (B, M, H', W'), the maps that the classifier sees.
        logits: of shape (B, C).
        class_weights: maps class ids of shape (B, N), int64, to w of shape (B, N, M), so that
            the class activation map of Eq. 1 is ``sum_m w[m] * G[m]``.
    """

    features: Tensor
    class_source: Tensor
    logits: Tensor
    class_weights: Callable[[Tensor], Tensor]


Head: TypeAlias = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Logits, and the function from class ids to class weights."""


class Backbone(nn.Module, ABC):
    """A classifier seen as Eq. 1 sees it. Input is RGB in 0..255; it normalises by itself.

    Attributes:
        name: the registry's name, for example ``"efficientnet_lite0"``.
        n_features: K, the channels of X.
        stride: pixels of the input for one cell of X.
        native_size: side in pixels of the images that the network was trained on.
        class_names: C names in the order of the logits.
    """

    name: str
    n_features: int
    stride: int
    native_size: int
    class_names: Sequence[str]

    @abstractmethod
    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X of shape (B, K, H, W) and G of shape (B, M, H', W'); images as in `forward`."""

    @abstractmethod
    def head(self, class_source: Tensor) -> Head:
        """Return the logits of shape (B, C), and ids to class weights, as in `FeatureMaps`.

        Args:
            class_source: G of shape (B, M, H', W').
        """

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return W (C, M) and b (C,) where the logits are ``W mean_hw(G) + b``; None elsewhere."""
        return None

    def forward(self, images: Tensor) -> FeatureMaps:
        """Run the network once.

        Args:
            images: RGB in 0..255 of shape (B, 3, h, w), uint8 or float, on the module's device.
        """
        features, class_source = self.maps(images)
        return FeatureMaps(features, class_source, *self.head(class_source))

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, K, H, W)."""
        return self.forward(images).features

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self.forward(images).logits

    @property
    def any_size(self) -> bool:
        """Whether it takes images of any size; else squares of `native_size` alone."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    def digest(self) -> str:
        """SHA-256, as 64 hex digits, over the names, shapes, types and values of all weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_finite(self) -> None:
        """Raise `WeightsError` naming the first weight that holds NaN or infinity."""
        for name, value in self.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise WeightsError(
                    f"weight {name!r} of {self.name!r} holds NaN or infinity: the checkpoint is "
                    "damaged; fetch it again or pass another file with weights=FILE"
                )


class ClassMapsFrom(Backbone):
    """Features of one network, class maps and logits of another; both see the same images.

    Args:
        features: gives X.
        classes: gives G, w and the logits; its maps are resized to X's grid when they are made.
    """

    def __init__(self, features: Backbone, classes: Backbone) -> None:
        super().__init__()
        self.name = f"{features.name}+{classes.name}"
        self.of_features = features
        self.of_classes = classes
        self.n_features = features.n_features
        self.stride = features.stride
        self.native_size = classes.native_size
        self.class_names = classes.class_names

    def digest(self) -> str:
        """SHA-256 over the digests of both networks."""
        both = self.of_features.digest() + self.of_classes.digest()
        return hashlib.sha256(both.encode()).hexdigest()

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run both networks once; see `Backbone.maps`."""
        return self.of_features.features_only(images), self.of_classes.maps(images)[1]

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights of `classes`; see `Backbone.head`."""
        return self.of_classes.head(class_source)

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, K, H, W)."""
        return self.of_features.features_only(images)

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self.of_classes.predict(images)
