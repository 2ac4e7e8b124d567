"""Photos that were sent to search with, kept a while: several boxes need no second upload."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import HTTPException

from cwf_milvus.encode.kept import LastUsed
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image
from cwf_milvus.web.decoding import Decoders, preview, read_photo

_KEPT_BYTES = 256 * 2**20  # of photos as they were sent, and as much of their pixels
_SHOWN = 2048  # pixels of the JPEG that a reloaded page shows
NAME = "the photo"
"""What a sent photo is called in messages."""


@dataclass(frozen=True, eq=False)
class Sent:
    """A photo that was sent.

    Attributes:
        data: as it was sent.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
    """

    data: bytes
    width: int
    height: int


class Queries:
    """The photos that were sent last, as many as go into 256 MiB.

    Args:
        decoders: decode them.
        max_pixels: as in `load_image`.
    """

    def __init__(self, decoders: Decoders, max_pixels: int) -> None:
        self._decoders = decoders
        self._max_pixels = max_pixels
        self._sent: LastUsed[Sent] = LastUsed(_KEPT_BYTES)
        self._read: LastUsed[Image] = LastUsed(_KEPT_BYTES)

    async def keep(self, data: bytes, at_least: int | None) -> tuple[str, Sent]:
        """Keep a photo, and return what it is known by.

        Args:
            data: as it was sent.
            at_least: pixels of its longest side that a search will want; None for all.

        Raises:
            ImageError: it cannot be decoded.
        """
        read = await self.decoded(data, at_least, None)
        sent = Sent(data, read.width, read.height)
        key = secrets.token_urlsafe(16)
        self._sent.put(key, sent, len(data))
        self._read.put(key, read, read.pixels.nbytes)
        return key, sent

    async def shown(self, key: str) -> bytes:
        """Return a kept photo upright, as JPEG, for a page that is reloaded.

        Raises:
            HTTPException: it is forgotten.
        """
        data = self.get(key).data
        return await self._decoders.run(NAME, preview, data, NAME, _SHOWN, self._max_pixels)

    def get(self, key: str) -> Sent:
        """Return a photo. Raises HTTPException for one that is forgotten."""
        sent = self._sent.get(key)
        if sent is None:
            raise HTTPException(404, "the photo is forgotten by now: send it again")
        return sent

    async def pixels(self, key: str, at_least: int | None, box: Box | None) -> Image:
        """Return a kept photo decoded as finely as what is in the box needs.

        Raises:
            ImageError: it cannot be decoded.
        """
        sent = self.get(key)
        read = self._read.get(key)
        if read is None or not _is_fine(read, at_least, box):
            read = await self.decoded(sent.data, at_least, box)
            self._read.put(key, read, read.pixels.nbytes)
        return read

    async def decoded(self, data: bytes, at_least: int | None, box: Box | None) -> Image:
        """Return a photo decoded as finely as what is in the box needs; it is not kept.

        Raises:
            ImageError: it cannot be decoded.
        """
        return await self._decoders.run(
            NAME, read_photo, data, NAME, at_least, box, self._max_pixels
        )


def _is_fine(read: Image, at_least: int | None, box: Box | None) -> bool:
    """Tell whether an earlier decode has the pixels that a box asks for."""
    scale = read.pixels.shape[1] / read.width
    if scale >= 1:
        return True
    side = max(read.width, read.height) if box is None else max(box.x2 - box.x1, box.y2 - box.y1)
    return at_least is not None and side * scale >= at_least
