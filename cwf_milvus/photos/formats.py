"""Which formats are photos, how they are told apart, and what decodes each.

Pillow's decoders that neither run other programs nor read other files. They are chosen here, by the
first bytes, and not by PIL.Image.open: that checks the size against a global limit only. Formats
of the extras are there when their library is.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cwf_milvus.photos import warned

Decoder = Callable[[IO[bytes], Any], ImageFile]


@dataclass(frozen=True)
class Format:
    """A format of photos.

    Attributes:
        name: as messages say it.
        suffixes: endings of its files, in lower case.
        bytes_a_pixel: memory that decoding takes, as measured, beside the photo's own bytes.
        pixels_a_byte: the most that a byte of a file can hold; 0 where there is no such bound.
        decoder: Pillow's class; None for what is not decoded as such.
        library: module that must be there to read it, "" for none.
        remedy: what to do where it cannot be read.
    """

    name: str
    suffixes: tuple[str, ...]
    bytes_a_pixel: float = 4
    pixels_a_byte: int = 0
    decoder: Decoder | None = None
    library: str = ""
    remedy: str = ""


_EXTRA = "pip install 'cwf-milvus[{}]'"
JPEG = Format(
    "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), 4, 1024, JpegImageFile
)  # of several pictures (MPO), the first
PNG = Format("PNG", (".png", ".apng"), 4, 1032 * 8, PngImageFile)
WEBP = Format("WebP", (".webp",), 16, 0, WebPImageFile)
TIFF = Format("TIFF", (".tif", ".tiff"), 8, 0, TiffImageFile)
BMP = Format("BMP", (".bmp", ".dib"), 4, 0, BmpImageFile)
GIF = Format("GIF", (".gif",), 5, 4096, GifImageFile)
AVIF = Format("AVIF", (".avif", ".avifs"), 12, 0, AvifImageFile)
JPEG2000 = Format("JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"), 28, 0, Jpeg2KImageFile)
HEIC = Format(
    "HEIC",
    (".heic", ".heif", ".heics", ".heifs", ".hif"),
    10,
    library="pillow_heif",
    remedy=_EXTRA.format("heic"),
)
# fmt: off
RAW = Format(
    "camera RAW",
    (
        ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2",
        ".raf", ".pef", ".srw", ".rwl", ".3fr", ".fff", ".iiq", ".mef", ".mos", ".erf", ".kdc",
        ".dcr", ".x3f",
    ),
    library="rawpy",
    remedy=_EXTRA.format("raw"),
)
# fmt: on
JPEG_XL = Format("JPEG XL", (".jxl",), remedy="save it as JPEG or PNG")
FORMATS = (JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF, JPEG2000, HEIC, RAW, JPEG_XL)

PHOTO_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)
"""Endings, in lower case, of the files that are photos whatever they hold."""
READ = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF and JPEG 2000 are read, HEIC and RAW with extras"

_MAGIC = (
    (JPEG, rb"\xff\xd8\xff"),
    (PNG, rb"\x89PNG\r\n\x1a\n"),
    (WEBP, rb"RIFF....WEBP"),
    (RAW, rb"II\*\0....CR|IIU\0|IIRO|IIRS|MMOR|FUJIFILMCCD-RAW|FOVb|\0MRM|II\x1a\0\0\0HEAPCCDR"),
    (RAW, rb"....ftypcrx "),
    (TIFF, rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    (BMP, rb"BM....\0\0\0\0"),
    (GIF, rb"GIF8[79]a"),
    (JPEG2000, rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    (JPEG_XL, rb"\0\0\0\x0cJXL \r\n\x87\n"),
)
MAGIC_BYTES = 64
"""How many of its first bytes tell the format of a photo."""
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"hevm"}


def format_of(data: bytes, name: str = "") -> Format | None:
    """Return the format that the first bytes of a photo say; None if none does.

    Most RAW files start like a TIFF, so that there the name decides; so it does where two bytes
    are all that a format starts with.
    """
    named = format_by_name(name)
    for one, magic in _MAGIC:
        if re.match(magic, data[:MAGIC_BYTES], re.DOTALL):
            return RAW if one is TIFF and named is RAW else one
    if named is JPEG_XL and data[:2] == b"\xff\x0a":
        return JPEG_XL
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), MAGIC_BYTES)
        brands = {bytes(data[8:12]), *(bytes(data[i : i + 4]) for i in range(16, end, 4))}
        if brands & {b"avif", b"avis"}:
            return AVIF
        if brands & _HEIF_BRANDS:
            return HEIC
    return None


def format_by_name(name: str) -> Format | None:
    """Return the format that the ending of a name says; None if it is no photo's."""
    suffix = suffix_of(name)
    return next((one for one in FORMATS if suffix in one.suffixes), None)


def suffix_of(name: str) -> str:
    """Return the ending of a name in lower case, with its dot; "" if it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a url is no Path


def can_read(one: Format) -> bool:
    """Tell whether there is what decodes a format."""
    return one.decoder is not None or _library(one.library) is not None


@cache
def decoder_of(one: Format) -> Decoder:
    """Return the decoder, a Pillow class, of a format that `can_read` is true of."""
    if one is HEIC:
        decoder: Decoder = _library(one.library).HeifImageFile
        warned.watch([sys.modules[decoder.__module__]])
        return decoder
    assert one.decoder is not None
    return one.decoder


@cache
def _library(name: str) -> Any:
    try:
        return importlib.import_module(name) if name else None
    except Exception:  # not installed, or a build that does not fit this machine
        return None


def embedded_preview(data: bytes) -> tuple[bytes, int]:
    """Return the JPEG that a camera put in a RAW file, and how to turn it, as EXIF counts.

    Raises:
        Exception: whatever LibRaw raises on a damaged file, or ValueError where there is none.
    """
    rawpy = _library(RAW.library)
    with rawpy.imread(io.BytesIO(data)) as raw:
        preview = raw.extract_thumb()
        turn = {0: 1, 3: 3, 5: 8, 6: 6}.get(raw.sizes.flip, 1)
    if preview.format != rawpy.ThumbFormat.JPEG:
        raise ValueError("it has no JPEG preview")
    return preview.data, turn


warned.watch(
    [sys.modules[one.decoder.__module__] for one in FORMATS if isinstance(one.decoder, type)]
    + [sys.modules["PIL.Image"]]
)
