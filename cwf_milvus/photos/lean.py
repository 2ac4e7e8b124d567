"""A photo's bytes without what beside the pixels could cost its reader: profiles, texts, previews.

Decoders read them, in Python and a byte at a time where they are damaged, and refuse a good photo
for a long one. Here they are passed over in a few steps each, whatever their length, and what
counts of them, the orientation, is read.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import islice
from typing import Literal

_SEGMENTS = 20_000  # a profile of 255 parts, maps of depth in hundreds: no good photo has more
_TABLES = 2**20  # bytes of a JPEG's tables: some hundreds are usual
_BLOCKS = 2_000_000  # of 255 bytes each, in a GIF
_ORIENTATION = 0x0112  # of EXIF
_TIFF = re.compile(rb"II\*\0|MM\0\*")  # what an EXIF block starts with
_EXIF_BYTES = 2**22  # values of a block's entries: makers' notes and all
_ENDS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_XMP_TURN = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")
_FILL = re.compile(rb"\xff*")
_LONG_FILL = b"\xff" * 256  # no coder writes so many; what erased memory is full of
_END_OF_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]", re.DOTALL)


@dataclass(frozen=True)
class Lean:
    """What a decoder gets.

    Attributes:
        data: the photo's bytes.
        turn: EXIF's orientation, 1 to 8; None where the decoder is to say.
        scans: times that the decoder goes over all pixels; above 1 it holds all of them, also
            where it gives only some.
    """

    data: bytes
    turn: int | None = None
    scans: int = 1


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation, 1 to 8, in an EXIF block, or else in XMP; 1 if none is in there."""
    start = max(exif.find(b"Exif\0\0") + 6, 6) if exif.startswith(b"Exif") else 0
    tiff = exif[start : start + 2**16]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is not None:
            (at,) = struct.unpack_from(order + "I", tiff, 4)
            (entries,) = struct.unpack_from(order + "H", tiff, at)
            for entry in range(at + 2, at + 2 + 12 * entries, 12):
                tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
                if tag == _ORIENTATION and kind == 3:
                    return value if 1 <= value <= 8 else 1
    except struct.error:  # cut off: a photo is no worse for a broken block beside it
        pass
    found = _XMP_TURN.search(xmp[: 2**16])
    return int(found[1]) if found else 1


def lean_jpeg(data: bytes) -> Lean:
    """Keep of a JPEG what its pixels need. Raises ValueError if it has none, or is cut off."""
    whole = memoryview(data)
    kept, at = [whole[:2]], 2
    exif = xmp = b""
    progressive, components, tables = False, 0, 0
    for _ in range(_SEGMENTS):
        found = data.find(b"\xff", at)
        body = _FILL.match(data, found).end() + 1 if found >= 0 else len(data) + 1  # type: ignore[union-attr]
        if body > len(data) or data[body - 1] == 0xD9:
            raise ValueError("it has no pixels")
        kind, start, at = data[body - 1], body - 2, body
        if kind <= 0x01 or 0xD0 <= kind <= 0xD8:  # junk, or stands alone
            continue
        length = int.from_bytes(data[body : body + 2], "big")
        at = body + length
        is_frame = 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)
        if length < (8 if is_frame else 3 if kind == 0xDA else 2) or at > len(data):
            raise ValueError("it is truncated")
        content = data[body + 2 : at]
        if kind == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = exif or content
        elif kind == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or content
        elif 0xC0 <= kind <= 0xDF or kind == 0xE0 or (kind == 0xEE and content[:5] == b"Adobe"):
            if is_frame:
                progressive, components = kind not in (0xC0, 0xC1), content[5]
            if kind == 0xDA:
                several = progressive or content[0] < components
                end = data.find(_LONG_FILL, at)
                kept.append(whole[start : end if end >= 0 else None])
                scans = _scans(data[:end] if end >= 0 else data, at) if several else 1
                return Lean(b"".join(kept), orientation(exif, xmp), scans)
            kept.append(whole[start:at])
            tables += at - start
            if tables > _TABLES:
                break
    raise ValueError("it has more segments than a photo")


def _scans(data: bytes, at: int) -> int:
    """Count the scans of a JPEG, the first of which has its pixels at `at`; at least 2."""
    count = 1
    for _ in range(_SEGMENTS):
        marker = _END_OF_SCAN.search(data, at)
        if marker is None or marker[0][1] == 0xD9:
            return max(count, 2)
        count += marker[0][1] == 0xDA
        at = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2], "big"))
    raise ValueError("it has more segments than a photo")


def lean_png(data: bytes) -> Lean:
    """Keep of a PNG the chunks that its pixels need. Raises ValueError if it has none."""
    whole = memoryview(data)
    kept, at = [whole[:8]], 8
    exif = xmp = b""
    small = 0
    while True:
        length, kind = struct.unpack(">I4s", data[at : at + 8].ljust(8, b"\0"))
        end = at + 12 + length
        small += length < 1024
        if small > _SEGMENTS:
            raise ValueError("it has more chunks than a photo")
        if kind == b"eXIf":
            exif = exif or data[at + 8 : end - 4][: 2**16]
        elif kind == b"iTXt" and data[at + 8 : at + 25] == b"XML:com.adobe.xmp":
            xmp = xmp or data[at + 8 : end - 4][: 2**16]
        elif kind[:1].isupper() or kind == b"tRNS":
            kept.append(whole[at:end])
        if kind == b"IEND" or end >= len(data):
            return Lean(b"".join(kept), orientation(exif, xmp))
        at = end


def lean_gif(data: bytes) -> Lean:
    """Keep of a GIF its first picture. Raises ValueError if it has none."""
    left = _BLOCKS

    def after_blocks(at: int) -> int:
        nonlocal left
        while size := data[at]:
            at += size + 1
            left -= 1
            if not left:
                raise ValueError("it has more blocks than a photo")
        return at + 1

    try:
        at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
        whole = memoryview(data)
        kept = [whole[:at]]
        for _ in range(_SEGMENTS):
            kind = data[at]
            if kind == 0x2C:
                kept.append(whole[at:])
                return Lean(b"".join(kept), 1)
            if kind == 0x3B:
                raise ValueError("it has no picture")
            if kind != 0x21:
                at += 1
                continue
            start, at = at, after_blocks(at + 2)
            if data[start + 1] == 0xF9:  # says which colour is transparent
                kept.append(whole[start:at])
    except IndexError:
        raise ValueError("it is truncated") from None
    raise ValueError("it has more blocks than a photo")


def lean_boxes(data: bytes) -> Lean:
    """Return an AVIF or HEIC with its EXIF tamed. Raises ValueError if it has too many parts."""
    at = 0
    for _ in range(_SEGMENTS):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or at + size >= len(data):
            return Lean(_tamed(data))
        at += size
    raise ValueError("it has more parts than a photo")


def _tamed(data: bytes) -> bytes:
    """Empty the EXIF blocks whose entries claim more than they can hold.

    Pillow copies what each of up to 65,535 entries points to, before version 13 without a bound.
    """
    for found in list(islice(_TIFF.finditer(data), 16)):
        order = "<" if found[0][:1] == b"I" else ">"
        at = found.start() + int.from_bytes(data[found.end() : found.end() + 4], _ENDS[order])
        count = int.from_bytes(data[at : at + 2], _ENDS[order])
        body = data[at + 2 : at + 2 + 12 * count]
        entries = struct.iter_unpack(order + "HHII", body[: len(body) // 12 * 12])
        if sum(values for _, _, values, _ in entries) > _EXIF_BYTES:
            data = data[:at] + b"\0\0" + data[at + 2 :]
    return data


def jpeg2000_levels(data: bytes) -> int:
    """Return how many times a JPEG 2000 can be halved by its decoder."""
    start = data.find(b"\xff\x4f\xff\x51")
    at = data.find(b"\xff\x52", start)  # what all its tiles are coded with
    return min(data[at + 9], 32) if 0 <= start < at < len(data) - 9 else 0
