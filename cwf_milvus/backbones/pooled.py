"""Every classifier that averages its last maps and hands the mean to a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cwf_milvus.backbones.base import Backbone, Head
from cwf_milvus.backbones.layers import fold_norms, keep_output, kept_outputs
from cwf_milvus.errors import ImageError, SettingsError

_SAME = 1e-4  # of the largest value: what two ways to the same numbers may differ by
# Pixels: a height, and how much wider, which is whole strides of 1 to 64 and of 7 and 14.
_PROBE = (96, 448)


@dataclass(frozen=True)
class Split:
    """How a network is cut in two at its global average pooling.

    Both functions are given the network and hold none, so that a copy of it is cut alike.

    Attributes:
        body: network and images of shape (B, 3, h, w), normalised, to G of shape (B, M, H', W').
        head: network and the mean of G, of shape (B, M), to logits of shape (B, C).
        linear: the head's module by name, where it is linear and nothing else.
    """

    body: Callable[[nn.Module, Tensor], Tensor]
    head: Callable[[nn.Module, Tensor], Tensor]
    linear: str | None


class PooledClassifier(Backbone):
    """A network with ``logits = head(mean_hw(G))``; X is G, or an earlier layer's output.

    With a linear head the class weights w are its rows (Zhou et al., CVPR 2016). With any other,
    such as ConvNeXt's norm between pooling and head, they are the gradients that Grad-CAM
    averages over the cells, ``w_c[m] = mean_hw(d logit_c / d G[m])`` (Selvaraju et al., ICCV
    2017); as G enters through its mean alone, the backward pass is one through the head, for all
    classes of all images at once. For a linear head both give the same maps.

    X is clamped from below at 0, where a network's features are signed. Batch norms are folded
    into the convolutions before them. Forward passes may run in several threads at once.

    Args:
        name: the registry's name.
        network: with its weights; it may be changed.
        split: how it is cut.
        mean: of RGB in 0..255, to subtract.
        std: of RGB in 0..255, to divide by.
        native_size: side of the training images in pixels.
        class_names: C names; where the network has another number of classes, from the user's own
            training, they are numbered.
        layer: a module's name, whose output of shape (B, K, H, W) is X; None for G.
        gradient: take gradients though the head is linear; for tests.

    Raises:
        SettingsError: a layer that there is not or that gives no maps, or a network whose logits
            do not come from the mean of its maps.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
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
        self.network = network.eval().requires_grad_(False)
        self.native_size = native_size
        self.class_names = class_names
        self._split = split
        self._linear = None if gradient else split.linear
        self._layer = layer
        self._any_size = True
        self._turned = False
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        if layer is not None:
            names = [key for key, _ in network.named_modules() if key]
            if layer not in names:
                raise SettingsError(
                    f"layer {layer!r} of {name!r}: there is none; its last are "
                    f"{', '.join(names[-8:])}"
                )
            keep_output(network, layer)
        self._digest = super().digest()
        self.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU
        self._probe()

    @property
    def linear(self) -> bool:
        """Whether class weights are the rows of a linear head."""
        return self._linear is not None

    def digest(self) -> str:
        """SHA-256 over the weights as they were loaded, before batch norms were folded."""
        return self._digest

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, K, H, W)."""
        return self.maps(images)[0]

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self._split.head(self.network, self._body(images).mean((2, 3)))

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X and G; see `Backbone.maps`.

        Raises:
            ImageError: images of another size than the only one that the network takes.
        """
        if self._layer is None:
            class_source = self._body(images)
            return class_source.clamp(min=0), class_source
        with kept_outputs() as kept:
            class_source = self._body(images)
        features = kept.get(self.network.get_submodule(self._layer))
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise self._no_maps()
        if self._turned:
            features = features.permute(0, 3, 1, 2)
        return features.clamp(min=0), class_source

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights; see `Backbone.head`."""
        pooled = class_source.mean((2, 3))
        cells = class_source.shape[2] * class_source.shape[3]
        return (
            self._split.head(self.network, pooled),
            lambda class_ids: self._class_weights(pooled, cells, class_ids),
        )

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows and biases of a linear head; see `Backbone.linear_head`."""
        if self._linear is None:
            return None
        head = self.network.get_submodule(self._linear)
        weight, bias = head.get_parameter("weight"), head.bias
        return weight, weight.new_zeros(len(weight)) if bias is None else bias  # type: ignore[return-value]

    @property
    def any_size(self) -> bool:
        """Whether it takes images of any size; else squares of `native_size` alone."""
        return self._any_size

    def _body(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if not self._any_size and not height == width == self.native_size:
            raise ImageError(
                f"{self.name!r} takes images of {self.native_size}x{self.native_size} pixels "
                f"alone, not {width}x{height}: choose a network that takes any size"
            )
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        return self._split.body(self.network, normalised)

    def _class_weights(self, pooled: Tensor, cells: int, class_ids: Tensor) -> Tensor:
        if self._linear is not None:
            return self.network.get_submodule(self._linear).get_parameter("weight")[class_ids]
        batch, n = class_ids.shape
        with torch.inference_mode(False), torch.enable_grad():
            rows = pooled.detach().repeat_interleave(n, dim=0).requires_grad_()
            # A copy, as autograd refuses what inference mode made.
            chosen = self._split.head(self.network, rows).gather(
                1, class_ids.clone().reshape(-1, 1)
            )
            (gradients,) = torch.autograd.grad(chosen.sum(), rows)
        return gradients.view(batch, n, -1) / cells

    @torch.no_grad()
    def _probe(self) -> None:
        """Check that head(mean(G)) is the network's answer, find K and the stride, fold norms."""
        images, expected = self._answered()
        try:
            maps = self(images)
        except (RuntimeError, IndexError) as error:
            raise no_pooling(self.name) from error
        if not _same(maps.logits, expected):
            raise no_pooling(self.name)
        fits = []
        for turned in (False, True) if self._layer else (False,):  # Swin has its channels last
            grid = maps.features.shape[1:3] if turned else maps.features.shape[2:]
            misfit, stride = _fit(images, *grid)
            fits.append((misfit, turned, stride))
        misfit, self._turned, stride = min(fits)
        if misfit > 2:  # cells; one for images of any size, for example
            raise self._no_maps()
        features = maps.features.permute(0, 3, 1, 2) if self._turned else maps.features
        n_classes = maps.logits.shape[1]
        if len(self.class_names) != n_classes:
            self.class_names = tuple(f"class {i}" for i in range(n_classes))
        self.n_features = features.shape[1]
        self.stride = max(1, round(stride))

        network = self.network
        self.network = fold_norms(network, (images - self.mean) / self.std)
        self.network.to(memory_format=torch.channels_last)
        folded = self(images)
        if not (
            _same(folded.features, features)
            and _same(folded.class_source, maps.class_source)
            and _same(folded.logits, maps.logits)
        ):
            self.network = network  # a convolution's output was used without its norm, too

    def _answered(self) -> tuple[Tensor, Tensor]:
        """Return the first images that the network takes, wide ones if it can, and its logits."""
        side = self.native_size
        for height, wider in (_PROBE, (side, 64), (side, 56), (side, 0)):
            generator = torch.Generator().manual_seed(0)
            images = torch.rand((1, 3, height, height + wider), generator=generator) * 255
            try:
                expected = self.network((images - self.mean) / self.std)
                break
            except (RuntimeError, AssertionError, ValueError):
                if not wider:
                    raise
        self._any_size = wider > 0
        return images, expected

    def _no_maps(self) -> SettingsError:
        return SettingsError(
            f"layer {self._layer!r} of {self.name!r} gives no maps of shape (B, K, H, W): "
            "name a convolution, norm, activation or block"
        )


def _fit(images: Tensor, height: int, width: int) -> tuple[float, float]:
    """Return by how many cells a grid misses that of the images, and its stride in pixels.

    The stride is what the width gains from more pixels: padding, or none, does not change that.
    """
    side, wide = images.shape[2:]
    if side == wide:
        return abs(width - height), side / height
    stride = (wide - side) / max(width - height, 1e-9)
    return abs(height - side / stride) + 1e9 * (width <= height), stride


def _same(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max()) or 1.0
    return one.shape == other.shape and float((one - other).abs().max()) <= _SAME * scale


def no_pooling(name: str) -> SettingsError:
    """Return the error for a network whose classes do not come from the mean of its maps."""
    return SettingsError(
        f"the classes of {name!r} do not come from the mean of its last maps (global average "
        "pooling), so it has no class activation maps: choose another network; "
        "`cwf-milvus backbones` lists some"
    )
