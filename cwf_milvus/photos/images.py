"""Photos: paths, urls, bytes, arrays or tensors in; upright RGB pixels, boxes and tensors out.

Everything here is read as hostile: names, sizes and bytes. A photo that cannot be used raises
ImageError, a box BoxError, with the name or value and the remedy; for the host program's own use
of Pillow nothing changes, and every function may be called from several threads.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image

from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.decoding import decode, pil_pixels
from cwf_milvus.photos.limits import MAX_BYTES, MAX_PIXELS
from cwf_milvus.photos.pixels import pixels_of_array
from cwf_milvus.photos.sources import (
    checked_size,
    read_all,
    read_bytes,
    refuse_surrogates,
    uri_of,
)

if TYPE_CHECKING:
    import torch


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
    box: Box | None = None,
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
        at_least: longest side, in pixels, that suffices: a larger JPEG or JPEG 2000 is decoded at
            1/2, 1/4 or 1/8 scale, never below it; others above 16 megapixels are brought to it.
            Width and height stay those of the original.
        box: what is to keep `at_least` pixels, in place of the whole photo.
        max_pixels: largest width x height that is decoded in full; four times as much is read at
            a reduced scale. Larger ones are refused from the header, undecoded.
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
        part = 0.0 if box is None else max(box.x2 - box.x1, box.y2 - box.y1)
        pixels, width, height = decode(data, uri, at_least, part, max_pixels)
        return Image(pixels, uri, content, width, height)
    if isinstance(source, PIL.Image.Image):
        pixels = pil_pixels(source, uri or "the PIL image", max_pixels)
    else:
        pixels = pixels_of_array(source, uri or f"the {type(source).__name__}")
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
    import torch  # takes seconds, and a search like stored photos resizes none

    pixels = image.pixels if isinstance(image, Image) else image
    resized = torch.nn.functional.interpolate(
        pixels_there(pixels)[None], size=(height, width), mode="bicubic", antialias=True
    )
    return resized[0].contiguous()


def pixels_there(pixels: np.ndarray) -> torch.Tensor:
    """Return (h, w, 3) uint8 pixels as a tensor (3, h, w) of the same memory, where it can be."""
    import torch  # as above

    writable = np.require(pixels, requirements=["C", "W"])  # torch warns of others
    return torch.from_numpy(writable).permute(2, 0, 1)


def resized_there(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 pixels (3, h, w) to (3, height, width) where they lie, antialiased bicubic.

    In float32, rounded to whole numbers: within 1 of `resize`, but for fewer than one in a hundred.
    """
    import torch  # as above

    resized = torch.nn.functional.interpolate(
        pixels[None].float(), size=(height, width), mode="bicubic", antialias=True
    )
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


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


def _content(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()
