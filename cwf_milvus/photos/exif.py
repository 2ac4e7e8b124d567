"""What a camera wrote of a photo, as fields that Milvus can filter by."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import PIL.Image
from PIL.ExifTags import GPS, IFD, Base

from cwf_milvus.photos import formats, warned

_LONGEST = 200  # characters of a camera's name
_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"[+-]\d\d:\d\d")


def exif_fields(data: bytes, name: str) -> dict[str, Any]:
    """Return a photo's EXIF as fields; those that it lacks, or that are broken, are left out.

    Args:
        data: the encoded photo.
        name: its name, for warnings, and to tell RAW formats.

    Returns:
        ``exif_date``, text as 2024-05-01T12:30:00+02:00, without the offset where the camera wrote
        none; ``exif_time``, seconds since 1970 (UTC), a whole number, where it wrote one;
        ``exif_latitude`` and ``exif_longitude``, degrees, south and west negative;
        ``exif_altitude``, metres; ``exif_camera``, text; ``exif_orientation``, 1 to 8.
    """
    with warned.named(name):
        try:
            exif = _exif(data, name)
            parts = [exif, exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)]
        except Exception:  # a photo is no worse for a broken block beside it
            return {}
    found: dict[str, Any] = {}
    for part, read in zip(parts, (_of_camera, _of_time, _of_place), strict=True):
        try:
            found |= read(part)
        except (ValueError, TypeError, ArithmeticError, AttributeError, OSError):
            continue  # of this block alone
    return found


def _exif(data: bytes, name: str) -> PIL.Image.Exif:
    one = formats.format_of(data, name)
    if one is formats.RAW:  # TIFF with other pixels
        exif = PIL.Image.Exif()
        exif.load(data)
        return exif
    if one is None or not formats.can_read(one):
        return PIL.Image.Exif()
    return formats.decoder_of(one)(io.BytesIO(data), None).getexif()


def _of_camera(tags: Mapping[int, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    make, model = (_text(tags.get(tag)) for tag in (Base.Make, Base.Model))
    camera = model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()
    if camera:
        found["exif_camera"] = camera
    turn = tags.get(Base.Orientation)
    if isinstance(turn, int) and 1 <= turn <= 8:
        found["exif_orientation"] = turn
    return found


def _of_time(tags: Mapping[int, Any]) -> dict[str, Any]:
    written = _DATE.match(_text(tags.get(Base.DateTimeOriginal)))
    if not written:
        return {}
    offset = _OFFSET.fullmatch(_text(tags.get(Base.OffsetTimeOriginal)))
    text = "{}-{}-{}T{}:{}:{}".format(*written.groups()) + (offset[0] if offset else "")
    time = datetime.fromisoformat(text)
    return {"exif_date": text} | ({"exif_time": int(time.timestamp())} if offset else {})


def _of_place(tags: Mapping[int, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, tag, reference, negative, most in (
        ("exif_latitude", GPS.GPSLatitude, GPS.GPSLatitudeRef, "S", 90),
        ("exif_longitude", GPS.GPSLongitude, GPS.GPSLongitudeRef, "W", 180),
    ):
        if tag in tags:
            degrees, minutes, seconds = (float(part) for part in tags[tag])
            value = round(degrees + minutes / 60 + seconds / 3600, 7)
            if 0 <= value <= most:
                found[name] = -value if _text(tags.get(reference)).upper() == negative else value
    if len(found) < 2:
        return {}
    if GPS.GPSAltitude in tags:
        below = tags.get(GPS.GPSAltitudeRef) in (1, b"\x01")
        metres = round(float(tags[GPS.GPSAltitude]), 2)
        if abs(metres) < 1e6:
            found["exif_altitude"] = -metres if below else metres
    return found


def _text(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return "".join(c for c in text if c.isprintable()).strip()[:_LONGEST]
