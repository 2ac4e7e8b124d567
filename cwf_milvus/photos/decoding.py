"""Bytes to upright pixels: the format found, the cost settled, then one decoder asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cwf_milvus.errors import ImageError, quoted
from cwf_milvus.photos import formats, warned
from cwf_milvus.photos.formats import Format
from cwf_milvus.photos.lean import (
    Lean,
    jpeg2000_levels,
    lean_boxes,
    lean_gif,
    lean_jpeg,
    lean_png,
    orientation,
)
from cwf_milvus.photos.limits import DECODING, MAX_PIXELS, Stream, check_size
from cwf_milvus.photos.pixels import rgb_pixels

_SCANS = 12  # of a JPEG, whatever its size: ten are usual
_WORK = _SCANS * MAX_PIXELS  # pixels x scans
_RESULT = 6  # bytes a pixel of what is returned, while it is turned
_REDUCE_AFTER = 2**24  # pixels; smaller photos are resized once, by the encoder
_WRITTEN_IN_PYTHON = {"bmp_rle": 2**20}  # decoders, and the pixels that they may have
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323  # tags of a TIFF
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}
_REDUCERS = (JpegImageFile, Jpeg2KImageFile)  # decoders that give fewer pixels when told so
_LEAN = {
    formats.JPEG: lean_jpeg,
    formats.PNG: lean_png,
    formats.GIF: lean_gif,
    formats.AVIF: lean_boxes,
    formats.HEIC: lean_boxes,
}


def decode(
    data: bytes, name: str, at_least: int | None, part: float, max_pixels: int
) -> tuple[np.ndarray, int, int]:
    """Decode a photo.

    Args:
        data: the encoded photo.
        name: its name, for messages, and to tell RAW formats.
        at_least: longest side in pixels that suffices; None for all pixels.
        part: longest side, in pixels of the original, of what is to keep `at_least` pixels; 0
            for the whole photo.
        max_pixels: as in `load_image`.

    Returns:
        Pixels (h, w, 3), width and height of the upright original.

    Raises:
        ImageError: it cannot be decoded, or is above a limit.
    """
    one = formats.format_of(data, name)
    if one is None or not formats.can_read(one):
        raise ImageError(_unreadable(one, data, name))
    with warned.named(name):
        try:
            lean, one = _lean(one, data)
            stream = Stream(lean.data, whole=one is not formats.JPEG2000)
            image = formats.decoder_of(one)(stream, None)
            size = image.size
            scale = _scale(size, at_least, part)
            with DECODING.held(_settle(image, lean, one, name, scale, max_pixels)):
                return _pixels(image, lean, name, size, scale)
        except ImageError:
            raise
        except Exception as error:  # decoders raise anything on hostile bytes
            raise damaged(name, error) from error


def pil_pixels(image: PIL.Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Return the upright pixels (h, w, 3) of a PIL image. Raises ImageError."""
    check_size(image.size, name, max_pixels)
    try:
        image.load()
        try:
            turn = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # a photo is no worse for a broken block beside it
            turn = 1
        return _turned(rgb_pixels(image, name), turn)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on hostile bytes
        raise damaged(name, error) from error


def damaged(name: str, error: Exception) -> ImageError:
    """Return the error for a photo that its decoder refused."""
    reason = str(error) or type(error).__name__
    if isinstance(error, PIL.Image.DecompressionBombError):
        return ImageError(f"{quoted(name)} is too large to open ({reason}); save it smaller")
    return ImageError(
        f"{quoted(name)} is damaged or cut off ({reason[:200]}); copy it again or remove it"
    )


def _unreadable(one: Format | None, data: bytes, name: str) -> str:
    if one is not None:
        return f"{quoted(name)} is a {one.name} photo, which cannot be read here; {one.remedy}"
    message = f"{quoted(name)} is not a photo that can be read, it starts with {data[:12]!r}"
    named = formats.format_by_name(name)
    if named is None or formats.can_read(named):
        return f"{message}; {formats.READ}: save it as one of these"
    return f"{message}; if it is a {named.name} photo as its name says, {named.remedy}"


def _lean(one: Format, data: bytes) -> tuple[Lean, Format]:
    if one is formats.RAW:
        preview, turn = formats.embedded_preview(data)
        lean = lean_jpeg(preview)
        return (Lean(lean.data, turn, lean.scans) if lean.turn == 1 else lean), formats.JPEG
    return (_LEAN[one](data) if one in _LEAN else Lean(data)), one


def _scale(size: tuple[int, int], at_least: int | None, part: float) -> int:
    """Return how many pixels of a side may become one: 1, 2, 4 or 8."""
    if at_least is None:
        return 1
    side = min(part, max(size)) if part > 0 else max(size)
    return next(s for s in (8, 4, 2, 1) if s == 1 or side >= at_least * s)


def _settle(
    image: ImageFile, lean: Lean, one: Format, name: str, scale: int, max_pixels: int
) -> float:
    """Refuse what is too much, tell the decoder how far to reduce; return the memory it takes."""
    width, height = image.size
    pixels = width * height
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if all(isinstance(side, int) for side in tile):  # a TIFF's, which it may exceed
        check_size(tile, name, max(max_pixels, 2**20))
    reduced = 1
    if one is formats.JPEG:
        reduced = scale
    elif isinstance(image, Jpeg2KImageFile):
        reduced = min(scale, 2 ** jpeg2000_levels(lean.data))
        image.reduce = reduced.bit_length() - 1
    given = pixels / reduced**2
    memory = one.bytes_a_pixel * given
    if isinstance(image, JpegImageFile) and lean.scans > 1:
        memory += pixels * _coefficients(image)
    check_size(image.size, name, max_pixels, reduced=reduced, memory=memory, kind=one.name)
    if one.pixels_a_byte and pixels > one.pixels_a_byte * len(lean.data):
        raise ValueError(f"its {len(lean.data):,} bytes cannot hold {width} x {height} pixels")
    if lean.scans > _SCANS and lean.scans * pixels > _WORK:
        raise ValueError(f"it goes over {width} x {height} pixels {lean.scans} times")
    codec = image.tile[0][0] if image.tile else ""
    if pixels > _WRITTEN_IN_PYTHON.get(codec, math.inf):
        raise ValueError("it is run-length coded, and too large for that")
    if isinstance(image, JpegImageFile):
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
    return memory + _RESULT * given


def _coefficients(image: JpegImageFile) -> float:
    """Return the bytes a pixel that a JPEG of several scans takes, whatever it is reduced to."""
    sampled = [(layer[1], layer[2]) for layer in image.layer]
    cell = max(h for h, _ in sampled) * max(v for _, v in sampled)
    return 2 * sum(h * v for h, v in sampled) / max(1, cell)


def _pixels(
    image: ImageFile, lean: Lean, name: str, size: tuple[int, int], scale: int
) -> tuple[np.ndarray, int, int]:
    """Decode, convert, reduce and turn; see `decode`."""
    image.load()
    reduced = isinstance(image, _REDUCERS) and image.size != size
    width, height = size if reduced else image.size
    if width * height == 0:
        raise ImageError(f"{quoted(name)} has no pixels; remove it")
    turn = _orientation(image) if lean.turn is None else lean.turn
    rest = scale if not reduced and width * height > _REDUCE_AFTER else 1
    pixels = _turned(rgb_pixels(image, name, rest), turn)
    return (pixels, height, width) if turn >= 5 else (pixels, width, height)


def _orientation(image: ImageFile) -> int:
    """Return EXIF's orientation of a decoded image; 1 when it has none, or turned itself."""
    if not isinstance(image, TiffImageFile):
        return orientation(image.info.get("exif") or b"", image.info.get("xmp") or b"")
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a photo is no worse for a broken block beside it
        return 1
    return turn if turn in _TURNS else 1


def _turned(pixels: np.ndarray, turn: Any) -> np.ndarray:
    """Return pixels turned as EXIF says; other numbers than its own turn nothing."""
    if turn not in _TURNS:
        return pixels
    return np.ascontiguousarray(_TURNS[turn](pixels))
