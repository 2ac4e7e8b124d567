"""A network whose maps are computed in half precision; its head stays in float32."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from cwf_milvus.backbones.base import Backbone, Head
from cwf_milvus.errors import SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a network may compute its maps in, by name."""


class HalfPrecision(Backbone):
    """Convolutions and products in half precision up to the maps, by PyTorch's autocast.

    The input is normalised in float32, and the maps come out in float32: head, class weights and
    all that follows have as many digits as without. The weights stay in float32, and so the digest.

    Args:
        source: the network.
        dtype: "bfloat16" or "float16".
    """

    def __init__(self, source: Backbone, dtype: str) -> None:
        super().__init__()
        self.source = source
        self.dtype = DTYPES[dtype]
        self.name, self.n_features = source.name, source.n_features
        self.stride, self.native_size = source.stride, source.native_size
        self.class_names = source.class_names

    def digest(self) -> str:
        """SHA-256 of the weights, as in float32; see `Backbone.digest`."""
        return self.source.digest()

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X and G in float32; see `Backbone.maps`."""
        with torch.autocast(images.device.type, dtype=self.dtype):
            features, class_source = self.source.maps(images)
        if features is class_source:
            features = class_source = features.float()
        return features.float(), class_source.float()

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights; see `Backbone.head`."""
        return self.source.head(class_source)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows and biases of a linear head; see `Backbone.linear_head`."""
        return self.source.linear_head()

    def features_only(self, images: Tensor) -> Tensor:
        """Return X alone in float32, of shape (B, K, H, W)."""
        with torch.autocast(images.device.type, dtype=self.dtype):
            features = self.source.features_only(images)
        return features.float()

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits alone, of shape (B, C)."""
        return self.head(self.maps(images)[1])[0]

    @property
    def any_size(self) -> bool:
        """Whether it takes images of any size; see `Backbone.any_size`."""
        return self.source.any_size


def check_dtype(dtype: str, device: torch.device) -> None:
    """Raise `SettingsError` for a dtype that there is not, or that a device cannot compute in."""
    if dtype not in DTYPES:
        raise SettingsError(f"network_dtype={dtype!r}: give one of {', '.join(DTYPES)}")
    if dtype == "float32":
        return
    try:
        with warnings.catch_warnings(), torch.autocast(device.type, dtype=DTYPES[dtype]):
            warnings.simplefilter("error")  # autocast warns where it then does nothing
            tried = nn.functional.conv2d(
                torch.ones(1, 8, 8, 8, device=device), torch.ones(8, 8, 3, 3, device=device)
            )
            reason = f"a convolution came out in {tried.dtype}"
    except (RuntimeError, NotImplementedError, TypeError, UserWarning) as error:
        tried, reason = None, (str(error).strip() or repr(error)).splitlines()[0][:200]
    if tried is None or tried.dtype != DTYPES[dtype]:
        raise SettingsError(
            f"network_dtype={dtype!r} cannot be had on {device} ({reason}): use another device, "
            "or float32"
        )
