"""Every classifier that averages its last maps and hands the mean to a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cwf_milvus.backbones.base import Backbone, FeatureMaps
from cwf_milvus.errors import SettingsError

_SAME = 1e-4  # of the largest logit: what two ways to the same logits may differ by


@dataclass(frozen=True)
class Split:
    """A network cut in two at its global average pooling.

    Attributes:
        network: the whole network, which holds the weights.
        body: images of shape (B, 3, h, w), normalised, to G of shape (B, M, H', W').
        head: the mean of G, of shape (B, M), to logits of shape (B, C).
        linear: the head, where it is linear and nothing else.
    """

    network: nn.Module
    body: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    linear: nn.Linear | None


class PooledClassifier(Backbone):
    """A network with ``logits = head(mean_hw(G))``; X is G, or an earlier layer's output.

    With a linear head the class weights w are its rows (Zhou et al., CVPR 2016). With any other,
    such as ConvNeXt's norm between pooling and head, they are the gradients that Grad-CAM
    averages over the cells, ``w_c[m] = mean_hw(d logit_c / d G[m])`` (Selvaraju et al., ICCV
    2017); as G enters through its mean alone, the backward pass is one through the head, for all
    classes of all images at once. For a linear head both give the same maps.

    X is clamped from below at 0, where a network's features are signed.

    Args:
        name: the registry's name.
        split: the network.
        mean: of RGB in 0..255, to subtract.
        std: of RGB in 0..255, to divide by.
        native_size: side of the training images in pixels.
        class_names: C names.
        layer: a module's name, whose output of shape (B, K, H, W) is X; None for G.
        gradient: take gradients though the head is linear; for tests.

    Raises:
        SettingsError: a layer that there is not or that gives no maps, or a network whose logits
            do not come from the mean of its maps.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        native_size: int,
        class_names: Sequence[str],
        layer: str | None = None,
        gradient: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.network = split.network.eval().requires_grad_(False)
        self._split = split
        self._linear = None if gradient else split.linear
        self._layer = layer
        self.native_size = native_size
        self.class_names = class_names
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        if layer is not None and layer not in dict(split.network.named_modules()):
            raise SettingsError(
                f"layer {layer!r} of {name!r}: there is none; its last are "
                f"{', '.join(list(dict(split.network.named_modules()))[-8:])}"
            )
        self.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU
        self._probe()

    @property
    def linear(self) -> bool:
        """Whether class weights are the rows of a linear head."""
        return self._linear is not None

    def forward(self, images: Tensor) -> FeatureMaps:
        """Run the network once; see `Backbone.forward`."""
        features, class_source = self._maps(images)
        pooled = class_source.mean((2, 3))
        cells = class_source.shape[2] * class_source.shape[3]
        return FeatureMaps(
            features,
            class_source,
            self._logits(pooled),
            lambda class_ids: self._class_weights(pooled, cells, class_ids),
        )

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, K, H, W)."""
        return self._maps(images)[0]

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self._logits(self._body(images).mean((2, 3)))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._layer is None:
            class_source = self._body(images)
            return class_source.clamp(min=0), class_source
        with outputs_of(self.network, self._layer) as found:
            class_source = self._body(images)
        features = found[-1] if found else None
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise SettingsError(
                f"layer {self._layer!r} of {self.name!r} gives no maps of shape (B, K, H, W): "
                "name a convolution, norm, activation or block"
            )
        return features.clamp(min=0), class_source

    def _body(self, images: Tensor) -> Tensor:
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        return self._split.body(normalised.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def _logits(self, pooled: Tensor) -> Tensor:
        return self._split.head(pooled)

    def _class_weights(self, pooled: Tensor, cells: int, class_ids: Tensor) -> Tensor:
        if self._linear is not None:
            return self._linear.weight[class_ids]
        batch, n = class_ids.shape
        with torch.enable_grad():
            rows = pooled.detach().repeat_interleave(n, dim=0).requires_grad_()
            chosen = self._split.head(rows).gather(1, class_ids.reshape(-1, 1))
            (gradients,) = torch.autograd.grad(chosen.sum(), rows)
        return gradients.view(batch, n, -1) / cells

    @torch.no_grad()
    def _probe(self) -> None:
        """Find K and the stride, and check that head(mean(G)) is what the network answers."""
        side = self.native_size
        generator = torch.Generator().manual_seed(0)
        images = torch.rand((1, 3, side, side), generator=generator) * 255
        normalised = (images - self.mean) / self.std
        expected = self.network(normalised.contiguous(memory_format=torch.channels_last))
        try:
            features, class_source = self._maps(images)
            found = self._logits(class_source.mean((2, 3)))
        except (RuntimeError, IndexError) as error:
            raise no_pooling(self.name) from error
        scale = float(expected.abs().max()) or 1.0
        if found.shape != expected.shape or float((found - expected).abs().max()) > _SAME * scale:
            raise no_pooling(self.name)
        self.n_features = features.shape[1]
        self.stride = max(1, round(side / features.shape[2]))


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

    def forward(self, images: Tensor) -> FeatureMaps:
        """Run both networks once; see `Backbone.forward`."""
        maps = self.of_classes(images)
        return FeatureMaps(
            self.of_features.features_only(images),
            maps.class_source,
            maps.logits,
            maps.class_weights,
        )

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, K, H, W)."""
        return self.of_features.features_only(images)

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self.of_classes.predict(images)


@contextmanager
def outputs_of(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collect what a layer gives while the network runs inside."""
    found: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: found.append(output)
    )
    try:
        yield found
    finally:
        handle.remove()


def no_pooling(name: str) -> SettingsError:
    """Return the error for a network whose classes do not come from the mean of its maps."""
    return SettingsError(
        f"the classes of {name!r} do not come from the mean of its last maps (global average "
        "pooling), so it has no class activation maps: choose another network, or let another one "
        "supply the maps with cams_from=BACKBONE (--cams-from BACKBONE)"
    )
