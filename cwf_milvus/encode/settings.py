"""Every setting that can change a vector, with a sensible default for each backbone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict, Unpack

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.keypoint_codes import MAX_KEYPOINTS

Resize = Literal["longest", "shortest", "squash"]
Descriptor = Literal["classes", "regions", "both"]
NetworkDtype = Literal["float32", "bfloat16", "float16"]


class FurtherSettings(TypedDict, total=False):
    """Settings that an operator has no argument of its own for; see `EncoderSettings`."""

    cams_from: str | None
    class_image_size: int | None
    resize: Resize
    n_pooled: int
    classes: Sequence[int] | None
    feature_weighting: Literal["crow"] | None
    descriptor: Descriptor
    class_share: float
    region_levels: Sequence[int]
    region_channel_weights: bool
    cam_regions: bool
    dim: int
    class_whiten_power: float
    region_whiten_power: float
    n_fit_classes: int
    keypoints: int
    paper_compat: bool
    network_dtype: NetworkDtype
    resize_on: Literal["host", "device"]


class Settings(FurtherSettings, total=False):
    """What `EncoderSettings` takes beside the backbone, by name."""

    layer: str | None
    image_size: int
    n_classes: int


QUERY_KEYPOINTS = 1000
"""Kept of a query, which is not stored, so that bytes do not limit them."""

COMPACT: Settings = {"region_levels": (1, 3), "n_classes": 1, "keypoints": 460}
"""What makes a photo take at most 30 kB, for .01 to .02 of mAP (docs/milvus.md)."""

_FEWEST_PIXELS, _MOST_PIXELS = 32, 8192  # above, a mistyped size fills the memory
_MOST_REGIONS = 1024


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of an `Encoder`; all of them are part of its fingerprint.

    Values are brought to plain int, float and tuple, so that equal settings are equal in JSON.

    Attributes:
        backbone: a name that `list_backbones` knows, or any torchvision or timm classifier's.
        layer: the layer that gives X; None for the backbone's own default.
        cams_from: another backbone that supplies the class maps; None for `backbone` itself.
        image_size: pixels of the side named by `resize` of the view that features come from.
        class_image_size: longest side in pixels of the view that classes come from; None for the
            same view as the features'. Softmax and ranks suffer far above the training size.
        resize: "longest" or "shortest" side becomes `image_size`, or "squash" to the paper's
            scripts' 1024 x 720.
        n_classes: class vectors kept for an image, its most likely first.
        n_pooled: how many of them the descriptor sums (the paper's N_C).
        classes: a predefined class list for every image, in place of each image's own; all of
            them are kept, and summed, whatever `n_classes` and `n_pooled`.
        feature_weighting: "crow" weights X by CroW's spatial map before the class maps.
        descriptor: the sum of the whitened "classes" (the paper's offline aggregation), of the
            "regions", or of "both".
        class_share: length of the classes' sum in the descriptor of "both", to the regions' 1.
        region_levels: l for a grid of l x l regions, several for several scales.
        region_channel_weights: weight the channels of region vectors too, by Eq. 2.
        cam_regions: add the boxes of the top classes' thresholded maps to the regions.
        dim: d, of every whitened vector.
        class_whiten_power: exponent of the eigenvalues of the class vectors' whitening: 0.5
            whitens fully (the paper), 0.25 half, 0 only rotates.
        region_whiten_power: the same for region vectors.
        n_fit_classes: class vectors an image gives to the whitening (the paper's N_pca).
        keypoints: how many are kept of a photo for spatial verification, its strongest; 0 for none.
        paper_compat: do as the published scripts do where they differ from the paper.
        network_dtype: what the network's convolutions and products up to the last maps compute in;
            its head, pooling, whitening and aggregation are in "float32" always. Half precision
            is for GPUs, "bfloat16" for processors made for it too, by OpenVINO; "float16" overflows
            above 65,504.
        resize_on: "host" resizes photos on the CPU, to uint8; "device" where the network runs, in
            float32, rounded to whole numbers.
    """

    backbone: str = "efficientnet_lite0"
    layer: str | None = None
    cams_from: str | None = None
    image_size: int = 640
    class_image_size: int | None = 224
    resize: Resize = "longest"
    n_classes: int = 32
    n_pooled: int = 32
    classes: tuple[int, ...] | None = None
    feature_weighting: Literal["crow"] | None = None
    descriptor: Descriptor = "both"
    class_share: float = 0.1
    region_levels: tuple[int, ...] = (1, 2, 3, 4)
    region_channel_weights: bool = True
    cam_regions: bool = False
    dim: int = 1024
    class_whiten_power: float = 0.25
    region_whiten_power: float = 0.5
    n_fit_classes: int = 8
    keypoints: int = 800
    paper_compat: bool = False
    network_dtype: NetworkDtype = "float32"
    resize_on: Literal["host", "device"] = "host"

    def __post_init__(self) -> None:
        """Raise `SettingsError` for a value that cannot work."""
        for name in ("n_classes", "n_pooled", "dim", "n_fit_classes"):
            self._plain(name, _whole_number, "a whole number of at least 1")
        self._plain("keypoints", _keypoints, f"a whole number from 0 to {MAX_KEYPOINTS}")
        sides = f"from {_FEWEST_PIXELS} to {_MOST_PIXELS} pixels"
        self._plain("image_size", _pixels, sides)
        if self.class_image_size is not None:
            self._plain("class_image_size", _pixels, f"{sides}, or None for the features' view")
        most = f"at most {_MOST_REGIONS} regions in all"
        self._plain("region_levels", _levels, f"sides of at least 1, {most}, such as (1, 2, 3)")
        if self.classes is not None:
            self._plain("classes", _ids, "class ids, each once, or None for each image's own")
        for name in ("class_whiten_power", "region_whiten_power", "class_share"):
            self._plain(name, _fraction, "a number from 0 to 1")
        self._one_of("resize", ("longest", "shortest", "squash"))
        self._one_of("descriptor", ("classes", "regions", "both"))
        self._one_of("feature_weighting", (None, "crow"))
        self._one_of("network_dtype", ("float32", "bfloat16", "float16"))
        self._one_of("resize_on", ("host", "device"))
        for name in ("region_channel_weights", "cam_regions", "paper_compat"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name}={getattr(self, name)!r}: give True or False")
        for name in ("backbone", "layer", "cams_from"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "backbone"):
                raise SettingsError(f"{name}={value!r}: give a name")

    def _plain(self, name: str, convert: Callable[[Any], object], wanted: str) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, convert(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(f"{name}={value!r}: give {wanted}") from error

    def _one_of(self, name: str, allowed: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise SettingsError(f"{name}={value!r}: give one of {', '.join(map(repr, allowed))}")

    @property
    def at_least(self) -> int | None:
        """Longest side in pixels that a photo must keep when it is decoded; None for all."""
        if self.paper_compat or self.resize != "longest":
            return None
        return 2 * max(self.image_size, self.class_image_size or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that JSON holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderSettings:
        """Rebuild settings from `to_dict`.

        Raises:
            SettingsError: a name that this version does not know, or a value that cannot work.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(
                f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: this "
                f"version knows {', '.join(sorted(known))}"
            )
        return cls(**values)


def full_name(backbone: str) -> str:
    """Return a backbone's name with its library, where it has one of timm's tags (``.a1_in1k``)."""
    return f"timm:{backbone}" if "." in backbone and ":" not in backbone else backbone


def default_settings(backbone: str, **changes: Unpack[Settings]) -> EncoderSettings:
    """Return the settings that suit a backbone, with changes.

    Raises:
        SettingsError: an unknown setting, or a value that cannot work.
    """
    return EncoderSettings.from_dict(
        {"backbone": backbone, **_OF_BACKBONE.get(backbone, _OF_OTHERS), **changes}
    )


def fingerprinted(settings: EncoderSettings) -> dict[str, Any]:
    """Return the settings as a fingerprint has them: without those that 0.1.0 did not know."""
    values = settings.to_dict()
    for name, as_before in _AS_0_1_0.items():
        if values[name] == as_before:
            del values[name]
    return values


def settings_kept(values: dict[str, Any]) -> EncoderSettings:
    """Return settings that this version or an earlier one kept; raises as `from_dict`."""
    return EncoderSettings.from_dict({**_AS_0_1_0, **values})


def _whole_number(value: Any, least: int = 1, most: int | None = None) -> int:
    number = int(operator.index(value))
    if number < least or (most is not None and number > most):
        raise ValueError(f"{number} is out of range")
    return number


def _pixels(value: Any) -> int:
    return _whole_number(value, _FEWEST_PIXELS, _MOST_PIXELS)


def _keypoints(value: Any) -> int:
    return _whole_number(value, 0, MAX_KEYPOINTS)


def _levels(values: Any) -> tuple[int, ...]:
    levels = tuple(_whole_number(value) for value in values)
    _whole_number(sum(level * level for level in levels), 1, _MOST_REGIONS)
    return levels


def _ids(values: Any) -> tuple[int, ...]:
    ids = tuple(_whole_number(value, 0) for value in values)
    if not ids or len(set(ids)) < len(ids):
        raise ValueError("no class, or one twice")
    return ids


def _fraction(value: Any) -> float:
    if isinstance(value, str) or not 0 <= value <= 1:
        raise ValueError(f"{value} is out of range")
    return float(value)


_AS_0_1_0: dict[str, Any] = {"keypoints": 0, "network_dtype": "float32", "resize_on": "host"}
"""What came after version 0.1.0, as that version worked."""

_PAPER: dict[str, Any] = {
    "image_size": 720,
    "class_image_size": None,
    "resize": "shortest",
    "n_classes": 64,
    "n_pooled": 64,
    "n_fit_classes": 1,
    "class_whiten_power": 0.5,
    "descriptor": "classes",
    "dim": 512,
}
_OF_OTHERS: dict[str, Any] = {"dim": 512, "image_size": 512, "class_image_size": 224}
_OF_BACKBONE: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {},
    "efficientnet_lite1": {"image_size": 576, "class_image_size": 256},
    "efficientnet_lite2": {"image_size": 640, "class_image_size": 256},
    "vgg16": {**_PAPER, "class_image_size": 224},
    "vgg16_cam": _PAPER,
}
