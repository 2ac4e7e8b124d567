"""Every setting that can change a vector, with a sensible default for each backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cwf_milvus.errors import SettingsError

Resize = Literal["longest", "shortest", "squash"]
Descriptor = Literal["classes", "regions", "both"]


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of an `Encoder`; all of them are part of its fingerprint.

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
        classes: a predefined class list for every image, in place of each image's own.
        feature_weighting: "crow" weights X by CroW's spatial map before the class maps.
        descriptor: the sum of the whitened "classes" (the paper's offline aggregation), of the
            "regions", or of "both".
        region_levels: l for a grid of l x l regions, several for several scales.
        cam_regions: add the boxes of the top classes' thresholded maps to the regions.
        dim: d, of every whitened vector.
        class_whiten_power: exponent of the eigenvalues of the class vectors' whitening: 0.5
            whitens fully (the paper), 0.25 half, 0 only rotates.
        region_whiten_power: the same for region vectors.
        n_fit_classes: class vectors an image gives to the whitening (the paper's N_pca).
        paper_compat: do as the published scripts do where they differ from the paper.
    """

    backbone: str = "efficientnet_lite0"
    layer: str | None = None
    cams_from: str | None = None
    image_size: int = 512
    class_image_size: int | None = 224
    resize: Resize = "longest"
    n_classes: int = 64
    n_pooled: int = 64
    classes: tuple[int, ...] | None = None
    feature_weighting: Literal["crow"] | None = None
    descriptor: Descriptor = "classes"
    region_levels: tuple[int, ...] = (1, 2, 3)
    cam_regions: bool = False
    dim: int = 1024
    class_whiten_power: float = 0.25
    region_whiten_power: float = 0.5
    n_fit_classes: int = 8
    paper_compat: bool = False

    def __post_init__(self) -> None:
        """Raise `SettingsError` for a value that cannot work."""
        for name in ("image_size", "n_classes", "n_pooled", "dim", "n_fit_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name}={value!r}: give a whole number of at least 1")
        if self.class_image_size is not None and self.class_image_size < 32:
            raise SettingsError(
                f"class_image_size={self.class_image_size!r}: give at least 32 pixels, or None "
                "to predict classes from the same view as the features"
            )
        _one_of("resize", self.resize, ("longest", "shortest", "squash"))
        _one_of("descriptor", self.descriptor, ("classes", "regions", "both"))
        _one_of("feature_weighting", self.feature_weighting, (None, "crow"))
        if any(level < 1 for level in self.region_levels) or not self.region_levels:
            raise SettingsError(
                f"region_levels={self.region_levels!r}: give whole numbers of at least 1, "
                "for example (1, 2, 3)"
            )
        for name in ("class_whiten_power", "region_whiten_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}={getattr(self, name)!r}: give a number from 0 to 1")
        if self.classes is not None and not self.classes:
            raise SettingsError("classes=(): name at least one class, or None for each image's own")

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
        tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**tuples)


def default_settings(backbone: str, **changes: Any) -> EncoderSettings:
    """Return the settings that suit a backbone, with changes.

    Raises:
        SettingsError: an unknown setting, or a value that cannot work.
    """
    return EncoderSettings.from_dict(
        {"backbone": backbone, **_OF_BACKBONE.get(backbone, _OF_OTHERS), **changes}
    )


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={value!r}: give one of {', '.join(map(repr, allowed))}")


_PAPER: dict[str, Any] = {
    "image_size": 720,
    "class_image_size": None,
    "resize": "shortest",
    "n_classes": 64,
    "n_pooled": 64,
    "n_fit_classes": 1,
    "class_whiten_power": 0.5,
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
