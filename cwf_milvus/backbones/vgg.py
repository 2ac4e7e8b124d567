"""VGG-16 twice: torchvision's, with class maps by gradients, and the paper's, with a CAM head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VGG16_Weights, vgg16

from cwf_milvus.backbones.base import Backbone, Head
from cwf_milvus.backbones.weights import RANDOM, fill, find_weights, load_state_dict, seeded
from cwf_milvus.errors import ImageError, SettingsError, WeightsError

CONVOLUTIONS = {
    **{"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7},
    **{"conv3_1": 10, "conv3_2": 12, "conv3_3": 14, "conv4_1": 17, "conv4_2": 19, "conv4_3": 21},
    **{"conv5_1": 24, "conv5_2": 26, "conv5_3": 28},
}
"""The paper's names of the convolutions, and their places in torchvision's ``features``."""

CAFFE_INPUT = {"mean": torch.tensor([123.68, 116.779, 103.939]), "std": torch.ones(3)}
"""What the original VGG-16 subtracts from RGB in 0..255, and what it divides by."""

TORCHVISION_INPUT = {
    "mean": 255 * torch.tensor([0.485, 0.456, 0.406]),
    "std": 255 * torch.tensor([0.229, 0.224, 0.225]),
}
"""The same for torchvision's own training."""

_LAYERS = ("conv5_1", "conv5_2", "conv5_3")
_CAM_CHANNELS = 1024
_Network = TypeVar("_Network", bound="_Vgg")


class _Vgg(Backbone):
    """conv1_1 to relu5_3, shared by both networks. X is one of the last three layers' output.

    ``mean`` and ``std`` are part of the weights, and so of the digest: the same convolutions
    want another input when Caffe trained them than when torchvision did.
    """

    n_features = 512
    stride = 16
    native_size = 224
    class_names = tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
    head_names: str
    min_size: int

    def __init__(self, layer: str) -> None:
        if layer not in _LAYERS:
            raise SettingsError(f"layer {layer!r} of {self.name!r}: choose one of {_LAYERS}")
        super().__init__()
        # The last of the 31 modules is pool5, which neither network's G has behind it.
        self.features = vgg16(init_weights=False).features[:30]
        self._depth = CONVOLUTIONS[layer] + 2
        self.register_buffer("mean", torch.empty(3))
        self.register_buffer("std", torch.empty(3))
        self.mean: Tensor
        self.std: Tensor

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone, of shape (B, 512, H, W), which needs no head.

        Raises:
            ImageError: a side of the images is too short to leave a cell.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise ImageError(
                f"images of {width}x{height} pixels are too small for {self.name!r}: "
                f"resize them to at least {self.min_size} pixels a side"
            )
        images = (images.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]
        return self.features[: self._depth](images)

    def _convolve(self, images: Tensor, head: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Return X and the output of relu5_3, or raise `WeightsError` when there is no head."""
        if head is None:
            raise WeightsError(
                f"the weights given for {self.name!r} are the convolutions alone; classes need a "
                f"head ({self.head_names}), which is missing: pass weights that hold one, or let "
                "another network supply the class maps with cams_from=BACKBONE "
                "(--cams-from BACKBONE)"
            )
        features = self.features_only(images)
        return features, self.features[self._depth :](features)


class Vgg16(_Vgg):
    """torchvision's VGG-16: G is relu5_3 before pool5 (M = 512), class weights are gradients.

    As in Grad-CAM, w_c[m] is the mean over the H'W' cells of ``d logit_c / d G[m]``. Max pooling
    hands each gradient to one cell and average pooling shares it out, so neither changes its sum
    over the cells: it is the sum over the 7x7 cells of the gradient at fc6's input. All classes
    of all images are therefore three matrix products behind the masks of the two ReLUs,

        w = ((W8[c] * (h7 > 0)) W7 * (h6 > 0)) sum_cells(W6) / H'W',

    and neither autograd nor the convolutions' backward pass is needed.
    """

    name = "vgg16"
    head_names = "classifier"
    min_size = 32

    def __init__(self, layer: str, *, head: bool = True) -> None:
        super().__init__(layer)
        self.classifier = vgg16(init_weights=False).classifier if head else None
        self.register_buffer("fc6_sums", torch.empty(4096 if head else 0, 512), persistent=False)
        self.fc6_sums: Tensor
        self.register_load_state_dict_post_hook(Vgg16._sum_cells)

    def _sum_cells(self, _: object = None) -> None:
        """Sum fc6's weights (4096, 512 * 49) over the 49 cells, whenever weights are loaded."""
        if self.classifier is not None:
            weight: Tensor = self.classifier[0].weight
            self.fc6_sums = weight.detach().view(4096, 512, 49).sum(-1)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X and relu5_3; see `Backbone.maps`.

        Raises:
            WeightsError: the weights were the convolutions alone.
            ImageError: images of less than 32 pixels a side.
        """
        return self._convolve(images, self.classifier)

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights; see `Backbone.head`."""
        fc6, _, _, fc7, _, _, fc8 = self.classifier  # type: ignore[misc]
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(class_source, 2), 7).flatten(1)
        hidden6 = F.relu(fc6(pooled))
        hidden7 = F.relu(fc7(hidden6))
        cells = class_source.shape[-2] * class_source.shape[-1]

        def class_weights(ids: Tensor) -> Tensor:
            gradients = fc8.weight[ids] * (hidden7 > 0)[:, None]
            gradients = (gradients @ fc7.weight) * (hidden6 > 0)[:, None]
            return gradients @ self.fc6_sums / cells

        return fc8(hidden7), class_weights


class Vgg16Cam(_Vgg):
    """The paper's network: relu5_3, CAM_conv, ReLU (this is G, M = 1024), mean, CAM_fc."""

    name = "vgg16_cam"
    head_names = "CAM_conv, CAM_fc"
    min_size = 16

    def __init__(self, layer: str, *, groups: int | None) -> None:
        super().__init__(layer)
        self.CAM_conv = self.CAM_fc = None
        if groups is not None:
            self.CAM_conv = nn.Conv2d(512, _CAM_CHANNELS, 3, padding=1, groups=groups)
            self.CAM_fc = nn.Linear(_CAM_CHANNELS, len(self.class_names))

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X and G; see `Backbone.maps`.

        Raises:
            WeightsError: the weights were the convolutions alone.
            ImageError: images of less than 16 pixels a side.
        """
        features, last = self._convolve(images, self.CAM_conv)
        return features, F.relu(self.CAM_conv(last))  # type: ignore[misc]

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights; see `Backbone.head`."""
        fc: nn.Linear = self.CAM_fc  # type: ignore[assignment]
        return fc(class_source.mean((2, 3))), lambda ids: fc.weight[ids]

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows and biases of CAM_fc; see `Backbone.linear_head`."""
        fc: nn.Linear = self.CAM_fc  # type: ignore[assignment]
        return fc.weight, fc.bias


def build_vgg16(layer: str = "conv5_1", weights: str | Path | None = None) -> Vgg16:
    """Build torchvision's VGG-16.

    Args:
        layer: where X is taken, behind its ReLU: ``"conv5_1"``, ``"conv5_2"`` or ``"conv5_3"``.
        weights: a checkpoint; None for the one in the hub's cache; ``"random"`` for seeded ones.
            Convolutions alone give features, and raise where classes are asked for.

    Raises:
        WeightsError: no weights, or those of another network.
        SettingsError: an unknown layer.
    """
    state = _state("vgg16", weights)
    with torch.device("meta"):
        network = Vgg16(layer, head=state is None or any("classifier." in name for name in state))
    return _filled(network, state)


def build_vgg16_cam(
    layer: str = "conv5_1", weights: str | Path | None = None, groups: int | None = None
) -> Vgg16Cam:
    """Build the paper's network. Its published weights come through `convert_weights`.

    Args:
        layer: where X is taken, behind its ReLU: ``"conv5_1"``, ``"conv5_2"`` or ``"conv5_3"``.
        weights: a checkpoint; None for ``vgg16_cam.safetensors`` in the hub's cache; ``"random"``
            for seeded ones. Convolutions alone give features, and raise where classes are asked
            for: torchvision's names (``features.0.weight``) are taken to want torchvision's
            input, Caffe's names (``conv1_1.weight``) Caffe's BGR, unless ``mean`` and ``std``
            among the weights say otherwise.
        groups: of CAM_conv: 2 in the Caffe original, 1 in Keras; None reads it from the weights.

    Raises:
        WeightsError: no weights, those of another network, or of another number of groups.
        SettingsError: an unknown layer, or groups that divide no 512 channels.
    """
    if groups is not None and (groups < 1 or 512 % groups):
        raise SettingsError(f"groups {groups} of CAM_conv: a divisor of 512, or None to read it")
    state = _state("vgg16_cam", weights)
    if state is None:
        found: int | None = groups or 1
    else:
        state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
        found = _groups(state)
        if groups not in (None, found) and found is not None:
            raise WeightsError(
                f"CAM_conv of these weights has {found} groups, not {groups}: leave groups out"
            )
    with torch.device("meta"):
        network = Vgg16Cam(layer, groups=found)
    return _filled(network, state)


def _groups(state: Mapping[str, Tensor]) -> int | None:
    """Read the groups from CAM_conv's shape; None where there is no head at all."""
    if not any(name.startswith("CAM_") for name in state):
        return None
    weight = state.get("CAM_conv.weight")
    inputs = weight.shape[1] if weight is not None and weight.ndim == 4 else 0
    if not inputs or 512 % inputs:
        shape = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise WeightsError(
            f"CAM_conv.weight is {shape}, not (1024, 512, 3, 3) or, with two groups, "
            "(1024, 256, 3, 3): pass weights of the paper's network"
        )
    return 512 // inputs


def _state(name: str, weights: str | Path | None) -> dict[str, Tensor] | None:
    """Return weights under this module's names with the input they want; None for random."""
    if weights == RANDOM:
        return None
    state = load_state_dict(find_weights(name, weights))
    caffe = "conv1_1.weight" in state
    own_input = "mean" in state and "std" in state
    for layer, index in CONVOLUTIONS.items():
        for part in ("weight", "bias"):
            if caffe and f"{layer}.{part}" in state:
                state[f"features.{index}.{part}"] = state.pop(f"{layer}.{part}")
    first = state.get("features.0.weight")
    if caffe and not own_input and first is not None and first.ndim == 4:
        state["features.0.weight"] = first.flip(1)  # Caffe reads BGR, this module RGB
    state = (CAFFE_INPUT if caffe else TORCHVISION_INPUT) | state
    if not (state["std"] > 0).all():
        raise WeightsError(
            f"the weights for {name!r} divide their input by std = {state['std'].tolist()[:3]}, "
            "which must be positive: the file is damaged; convert or fetch it again"
        )
    return state


def _filled(network: _Network, state: Mapping[str, Tensor] | None) -> _Network:
    """Give a network made on the meta device its weights."""
    network.to_empty(device="cpu")
    if state is None:
        with seeded():
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    nn.init.normal_(module.get_parameter("bias"), std=0.01)
        state = network.state_dict() | TORCHVISION_INPUT
    fill(network, state, network.name)
    return network.eval().requires_grad_(False)
