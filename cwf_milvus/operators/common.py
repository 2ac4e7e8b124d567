"""What all operators do alike: one thing or a list of them, arrays and images from outside."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.errors import ImageError, SettingsError

Self = TypeVar("Self", bound="Operator")


class Operator:
    """A callable that may be called from several threads, on one thing or a list of them.

    Its copies are itself: frameworks copy what they are given, and a network must not be in memory
    twice.
    """

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return self


def as_photo(image: Any) -> Any:
    """Return an image as `load_image` takes it: an array of Towhee's says its order of channels.

    Raises:
        ImageError: an array in another colour space than RGB.
    """
    mode = getattr(image, "mode", None)
    if not isinstance(image, np.ndarray) or not isinstance(mode, str):
        return image
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] < 3:  # a mode can be that of what it was sliced from
        return pixels
    if mode.upper() in ("BGR", "BGRA"):
        return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    if mode.upper() not in ("RGB", "RGBA"):
        raise ImageError(
            f"an image of mode {mode!r} and shape {pixels.shape}: convert it to RGB or BGR"
        )
    return pixels


def as_many(values: Any, n: int, several: bool, what: str) -> list[Any]:
    """Return one value for each of n images: None for all, the one of one, or the list's."""
    if values is None:
        return [None] * n
    if not several:
        return [values]
    if not is_list(values) or len(values) != n:
        raise SettingsError(f"{what} for {n} images: give a list of {n}, or None")
    return list(values)


def is_list(images: object) -> bool:
    """Tell a list of images from one, which may be an array."""
    return isinstance(images, list | tuple)


def listed(images: Any) -> list[Any]:
    """Return a list, also of one."""
    return list(images) if is_list(images) else [images]


def tensor(array: Any) -> Tensor:
    """Return an array or tensor as a float32 tensor on the CPU."""
    if isinstance(array, Tensor):
        return array.detach().cpu().float()
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
