"""Pixels of any kind to RGB of 8 bit: modes of Pillow, arrays, tensors."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import PIL.Image

from cwf_milvus.errors import ImageError, quoted

_BAND = 2**20  # pixels that are converted at once


def rgb_pixels(image: PIL.Image.Image, name: str, reduced: int = 1) -> np.ndarray:
    """Return a loaded PIL image as (h, w, 3) uint8, band by band, so that it is not held twice.

    Args:
        image: of any mode; transparent pixels are laid on white.
        name: of the photo, for the message.
        reduced: give the mean of squares of so many pixels a side.

    Raises:
        ImageError: pixels that are no colours.
    """
    width, height = image.size
    rows = max(1, _BAND // max(1, width) // reduced) * reduced
    if rows >= height and reduced == 1:
        return np.array(_rgb(image, name, None))
    extremes = _extremes(image)
    out = np.empty((-(-height // reduced), -(-width // reduced), 3), np.uint8)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        rgb = _rgb(band, name, extremes)
        if reduced > 1:
            rgb = rgb.reduce(reduced)
        start = top // reduced
        out[start : start + rgb.height] = np.asarray(rgb)
    return out


def _extremes(image: PIL.Image.Image) -> tuple[float, float] | None:
    """Return the least and the largest value of an image of whole or real numbers."""
    if not image.mode.startswith(("I", "F")):
        return None
    low, high = image.getextrema()
    return float(low), float(high)  # type: ignore[arg-type]


def _rgb(
    image: PIL.Image.Image, name: str, extremes: tuple[float, float] | None
) -> PIL.Image.Image:
    if image.mode.startswith(("I", "F")):
        array = _to_uint8(np.asarray(image), name, extremes)
        return PIL.Image.fromarray(array).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def pixels_of_array(source: Any, name: str) -> np.ndarray:
    """Return (h, w, 3) uint8 of an array or tensor, by the rule in load_image.

    Raises:
        ImageError: another shape or type, or values outside the rule.
    """
    remedy = "give (h, w), (h, w, 3) or (h, w, 4), or a tensor (3, h, w), one photo at a time"
    torch = sys.modules.get("torch")  # a tensor is from one who has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.numel() == 0:
            raise ImageError(f"{quoted(name)} has shape {tuple(tensor.shape)}; {remedy}")
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        source = tensor.permute(1, 2, 0).numpy()
    elif not isinstance(source, np.ndarray):
        raise ImageError(f"{quoted(name)} is no photo; give a path, url, bytes, array or PIL image")
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or source.size == 0:
        raise ImageError(f"{quoted(name)} has shape {source.shape}; {remedy}")
    array = _to_uint8(source, name, None)
    if channels == 3:
        return np.array(array, order="C")
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return rgb_pixels(PIL.Image.fromarray(np.ascontiguousarray(array)), name)


def _to_uint8(array: np.ndarray, name: str, extremes: tuple[float, float] | None) -> np.ndarray:
    """Bring pixel values of any type to 0..255; `extremes` are those of the whole photo."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise ImageError(f"{quoted(name)} holds {array.dtype}; give uint8, uint16 or float pixels")
    low, high = extremes or (float(array.min()), float(array.max()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{quoted(name)} holds NaN or infinite pixels; give finite ones")
    shown = f"{quoted(name)} holds {array.dtype} pixels from {low:g} to {high:g}"
    if array.dtype.kind == "f":
        slack = 1e-3  # what rounding in float16 leaves beyond the ends
        if low < -slack or high > 255 + slack or 1 + slack < high < 2:
            raise ImageError(f"{shown}; give 0..1 or 0..255 (clip them, undo a normalisation)")
        scale = 255 if high <= 1 + slack else 1
        scaled = np.rint(array.astype(np.float32) * scale)
        return np.clip(scaled, 0, 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"{shown}; give 8 bit (0..255) or 16 bit (0..65535)")
    if (array.dtype.kind, array.dtype.itemsize) == ("u", 2) or high > 255:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return array.astype(np.uint8)
