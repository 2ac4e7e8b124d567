"""From a name to a network of PyTorch with its weights; timm and torchvision take seconds each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import timm
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
from cwf_milvus.backbones.pooled import PooledClassifier
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


def build_network(name: str, weights: str | Path | None, layer: str | None) -> Backbone:
    """Build a network in PyTorch; the arguments are those of `create_backbone`.

    Raises:
        SettingsError: a name or layer that there is not.
        WeightsError: weights that are missing, unsafe, damaged, or of another network.
    """
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


def checkpoint_of(name: str, weights: str | Path | None) -> Path:
    """Return the file of a network's weights; not those of "random".

    Raises:
        SettingsError: a name that there is not.
        WeightsError: no weights to be had.
    """
    if name not in (*_VGG, *_LITE_SIZES) and weights is None:
        library, network = _library_of(name)
        name = f"{library}:{network}"
    return find_weights(name, weights)


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
