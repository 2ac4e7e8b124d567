"""Photos: paths, urls, bytes, arrays or tensors in; upright RGB pixels, boxes and tensors out.

Everything here is read as hostile: names, sizes and bytes. A photo that cannot be used raises
ImageError, a box BoxError, with the name or value and the remedy; nothing global in Pillow is
changed, and every function may be called from several threads.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal

import numpy as np
import PIL.Image
import torch
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.sources import (
    MAX_BYTES,
    checked_size,
    read_all,
    read_bytes,
    refuse_surrogates,
    uri_of,
)

MAX_PIXELS = 178_956_970 // 2
"""Largest width x height that is decoded (Pillow's own warning level, 256 MiB of RGB)."""
# Pillow's decoders that neither run other programs nor read other files, by the first bytes.
# Chosen here and not by PIL.Image.open: that checks the size against a global limit only.
_DECODERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (rb"\xff\xd8\xff", JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"RIFF....WEBP", WebPImageFile),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", TiffImageFile),
    (rb"BM", BmpImageFile),
    (rb"GIF8[79]a", GifImageFile),
)
_ORIENTATION = 0x0112  # EXIF
_TURNS = dict(
    enumerate(
        (
            PIL.Image.Transpose.FLIP_LEFT_RIGHT,
            PIL.Image.Transpose.ROTATE_180,
            PIL.Image.Transpose.FLIP_TOP_BOTTOM,
            PIL.Image.Transpose.TRANSPOSE,
            PIL.Image.Transpose.ROTATE_270,
            PIL.Image.Transpose.TRANSVERSE,
            PIL.Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)


@dataclass(frozen=True, eq=False)
class Image:
    """One photo, upright, in RGB.

    Attributes:
        pixels: (h, w, 3) uint8. A reduced decode when ``at_least`` allowed it.
        uri: where it came from, valid UTF-8; ``sha256:<content>`` when that is unknown.
        content: sha256 in hex of the encoded bytes; of shape and pixels for arrays and crops.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
    """

    pixels: np.ndarray = field(repr=False)
    uri: str
    content: str
    width: int
    height: int


def load_image(
    source: Any,
    *,
    uri: str | None = None,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image:
    """Decode one photo to upright RGB; of several frames or pages, the first.

    Transparent pixels are laid on white, the ground that cut-outs are made for. Grey, palette and
    CMYK become RGB; colour profiles are not applied. Arrays (h, w), (h, w, 1|2|3|4) and tensors
    (1|3|4, h, w): uint8 as it is, uint16 divided by 257, other integers as 8 bit up to 255 or
    16 bit up to 65535, floats in 0..1 (largest value at most 1) or 0..255.

    Args:
        source: path, ``fsspec`` url, bytes, binary file object, array, tensor, PIL image, or an
            Image, which is returned as it is.
        uri: the name to store; by default that of ``source``.
        at_least: longest side, in pixels, that suffices: a larger JPEG is decoded at 1/2, 1/4
            or 1/8 scale, never below it. Width and height stay those of the original.
        max_pixels: largest width x height; larger ones are refused from the header, undecoded.
        max_bytes: largest encoded size.

    Raises:
        ImageError: the photo cannot be read or decoded, or is above a limit.
    """
    if isinstance(source, Image):
        return source
    if uri is not None:
        refuse_surrogates(uri)
    data: bytes | None = None
    if isinstance(source, str | os.PathLike):
        uri = uri or uri_of(source)
        data = read_bytes(source, max_bytes=max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = checked_size(bytes(source), uri or "the bytes given", max_bytes)
    elif hasattr(source, "read"):
        data = read_all(source, uri or "the file object", max_bytes)
    if data is not None:
        content = hashlib.sha256(data).hexdigest()
        uri = uri or f"sha256:{content}"
        pixels, width, height = _decode(data, uri, at_least, max_pixels)
        return Image(pixels, uri, content, width, height)
    if isinstance(source, PIL.Image.Image):
        _check_pixels(source, uri or "the PIL image", max_pixels)
        pixels, _ = _upright(source, uri or "the PIL image")
    else:
        pixels = _from_array(source, uri or f"the {type(source).__name__}")
    content = _content(pixels)
    height, width = pixels.shape[:2]
    return Image(pixels, uri or f"sha256:{content}", content, width, height)


def target_size(
    width: int,
    height: int,
    size: int,
    *,
    mode: Literal["longest", "shortest", "squash"] = "longest",
    multiple: int = 32,
) -> tuple[int, int]:
    """Return the (width, height) to resize to, each rounded to a multiple, at least one of them.

    ``longest`` and ``shortest`` bring that side to ``size`` and keep the aspect ratio; ``squash``
    makes both sides ``size``. ``shortest`` stops at 4 * size for the longer side, so that a strip
    of one pixel by thousands does not fill the memory. Raises SettingsError.
    """
    if size < 1 or multiple < 1 or width < 1 or height < 1:
        raise SettingsError(
            f"cannot resize {width} x {height} pixels to {size} in multiples of {multiple}; give "
            "numbers above 0"
        )
    if mode == "squash":
        sides = (float(size), float(size))
    elif mode in ("longest", "shortest"):
        scale = size / (max if mode == "longest" else min)(width, height)
        limit = math.inf if mode == "longest" else 4.0 * size
        sides = (min(width * scale, limit), min(height * scale, limit))
    else:
        raise SettingsError(f"mode {mode!r} is unknown; use 'longest', 'shortest' or 'squash'")
    steps = (max(1, math.floor(side / multiple + 0.5)) for side in sides)
    new_width, new_height = (step * multiple for step in steps)
    return new_width, new_height


def resize(image: Image | np.ndarray, width: int, height: int) -> torch.Tensor:
    """Resize an Image or (h, w, 3) uint8 pixels to uint8 (3, height, width), antialiased bicubic.

    Within 2 of Pillow's bicubic, and several times as fast.
    """
    pixels = image.pixels if isinstance(image, Image) else image
    writable = np.require(pixels, requirements=["C", "W"])  # torch warns of others
    tensor = torch.from_numpy(writable).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        tensor, size=(height, width), mode="bicubic", antialias=True
    )
    return resized[0].contiguous()


def crop(image: Image, box: Box) -> Image:
    """Cut out all pixels that a box in original pixels touches; right for reduced decodes too.

    The uri stays; width and height are the crop's in original pixels. Raises BoxError.
    """
    box = box.checked(image.width, image.height)
    left, top, right, bottom = box.cells()
    height, width = image.pixels.shape[:2]
    inner = box.scaled(width / image.width, height / image.height).checked(width, height)
    x1, y1, x2, y2 = inner.cells()
    pixels = image.pixels[y1:y2, x1:x2].copy()
    return replace(
        image, pixels=pixels, content=_content(pixels), width=right - left, height=bottom - top
    )


def thumbnail(image: Image, longest: int) -> PIL.Image.Image:
    """Return the photo for a viewer, its longest side at most ``longest`` pixels."""
    if longest < 1:
        raise SettingsError(f"a thumbnail of {longest} pixels is empty; give 1 or more")
    small = PIL.Image.fromarray(image.pixels)
    small.thumbnail((longest, longest))
    return small


# --- pixels --------------------------------------------------------------------------------------


class _Whole(io.BytesIO):
    """Bytes that must not end early, even where the host program lets Pillow be lenient."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data and size != 0:
            raise OSError("it is truncated")
        return data


def _decode(
    data: bytes, name: str, at_least: int | None, max_pixels: int
) -> tuple[np.ndarray, int, int]:
    """Return pixels (h, w, 3) and the width and height of the upright original."""
    decoders = (d for magic, d in _DECODERS if re.match(magic, data, re.DOTALL))
    decoder = next(decoders, None)
    if decoder is None:
        raise ImageError(
            f"{name!r} is not a photo that can be read, it starts with {data[:12]!r}; JPEG, PNG, "
            "WebP, TIFF, BMP and GIF can: save it as one of these"
        )
    stream: IO[bytes] = _Whole(data)
    try:
        image = decoder(stream, None)
    except Exception as error:  # Pillow's parsers raise anything on hostile bytes
        raise _damaged(name, error) from error
    _check_pixels(image, name, max_pixels)
    width, height = image.size
    if at_least is not None and isinstance(image, JpegImageFile):
        scale = next(s for s in (8, 4, 2, 1) if s == 1 or max(width, height) >= at_least * s)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
    reduced = image.size != (width, height)
    pixels, sideways = _upright(image, name)
    if not reduced:
        return pixels, pixels.shape[1], pixels.shape[0]
    return (pixels, height, width) if sideways else (pixels, width, height)


def _damaged(name: str, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    if isinstance(error, PIL.Image.DecompressionBombError):
        return ImageError(f"{name!r} is too large to open ({reason}); save it smaller")
    return ImageError(f"{name!r} is damaged or cut off ({reason}); copy it again or remove it")


def _check_pixels(image: PIL.Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name!r} has {width} x {height} = {width * height:,} pixels, above the limit of "
            f"{max_pixels:,}; save it smaller, or raise max_pixels if you trust it"
        )


def _upright(image: PIL.Image.Image, name: str) -> tuple[np.ndarray, bool]:
    """Return pixels (h, w, 3), turned as EXIF says, and whether that swapped width and height."""
    try:
        image.load()
        turn = _orientation(image)
        rgb = _rgb(image, name)
        if turn in _TURNS:
            rgb = rgb.transpose(_TURNS[turn])
        pixels = np.array(rgb)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on hostile bytes
        raise _damaged(name, error) from error
    if pixels.size == 0:
        raise ImageError(f"{name!r} has no pixels; remove it")
    return pixels, turn >= 5


def _orientation(image: PIL.Image.Image) -> int:
    """Return EXIF's orientation; 1 when there is none, or its block is damaged."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a photo is no worse for a broken block beside it
        return 1
    return turn if turn in _TURNS else 1


def _rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if image.mode.startswith(("I", "F")):
        return PIL.Image.fromarray(_to_uint8(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(source: Any, name: str) -> np.ndarray:
    remedy = "give (h, w), (h, w, 3) or (h, w, 4), or a tensor (3, h, w), one photo at a time"
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.numel() == 0:
            raise ImageError(f"{name!r} has shape {tuple(tensor.shape)}; {remedy}")
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        source = tensor.permute(1, 2, 0).numpy()
    elif not isinstance(source, np.ndarray):
        raise ImageError(f"{name!r} is no photo; give a path, url, bytes, array or PIL image")
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or source.size == 0:
        raise ImageError(f"{name!r} has shape {source.shape}; {remedy}")
    array = _to_uint8(source, name)
    if channels == 3:
        return np.array(array, order="C")
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return np.array(_rgb(PIL.Image.fromarray(np.ascontiguousarray(array)), name))


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Bring pixel values of any type to 0..255, by the rule in load_image."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise ImageError(f"{name!r} holds {array.dtype}; give uint8, uint16 or float pixels")
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{name!r} holds NaN or infinite pixels; give finite ones")
    shown = f"{name!r} holds {array.dtype} pixels from {low:g} to {high:g}"
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


def _content(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()
