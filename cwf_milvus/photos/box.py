"""A box on a photo, in the pixels of the upright original."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np

from cwf_milvus.errors import BoxError, BoxWarning, quoted

if TYPE_CHECKING:  # torch takes seconds, and a box needs none of it
    import torch

BoxLike: TypeAlias = "str | Sequence[Any] | np.ndarray | torch.Tensor"


class Box(NamedTuple):
    """x1, y1, x2, y2 in pixels of the original upright image, half open."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __str__(self) -> str:
        return ",".join(f"{number:g}" for number in self)

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read ``"279,100,601,862"``. Raises BoxError."""
        return cls.of(text.split(","))

    @overload
    @classmethod
    def of(cls, value: None) -> None: ...
    @overload
    @classmethod
    def of(cls, value: BoxLike) -> Box: ...
    @overload
    @classmethod
    def of(cls, value: BoxLike | None) -> Box | None: ...
    @classmethod
    def of(cls, value: BoxLike | None) -> Box | None:
        """Make a Box of four numbers, of text, or of a Box; None stays None. Raises BoxError."""
        if value is None:
            return None
        if isinstance(value, str):
            return cls.parse(value)
        try:
            x1, y1, x2, y2 = (float(number) for number in value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            message = f"box {quoted(value)} is not four numbers; give x1,y1,x2,y2 in pixels"
            raise BoxError(message) from error
        return cls(x1, y1, x2, y2)

    def checked(self, width: int, height: int) -> Box:
        """Clip the box to an image of ``width`` x ``height`` pixels.

        Raises:
            BoxError: a number is not finite, the box has no area, or it lies outside the image.
        """
        shown = str(self)
        if not all(map(math.isfinite, self)):
            raise BoxError(f"box {shown} is not finite; give x1,y1,x2,y2 in pixels of the photo")
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise BoxError(
                f"box {shown} has no area; give corners with x1 < x2 and y1 < y2 (not a width and "
                "height)"
            )
        clipped = Box(
            max(self.x1, 0.0), max(self.y1, 0.0), min(self.x2, width), min(self.y2, height)
        )
        if clipped.x2 <= clipped.x1 or clipped.y2 <= clipped.y1:
            raise BoxError(
                f"box {shown} lies outside the photo of {width} x {height} pixels; give pixels of "
                "the upright original, counted from its top left corner"
            )
        return clipped

    def asked(self, width: int, height: int) -> Box:
        """Clip a box that was given from outside, saying so.

        The one rule for every box of a query: x1, y1, x2, y2 in pixels of the upright original.
        What reaches a pixel or more beyond the photo is clipped, with a BoxWarning.

        Raises:
            BoxError: as `checked`, or all numbers lie in -1..1: they are shares of the photo.
        """
        if max(map(abs, self)) <= 1 and max(width, height) > 1:
            raise BoxError(
                f"box {self} is less than a pixel: are these shares of the photo? give pixels, "
                f"x times {width} and y times {height}"
            )
        clipped = self.checked(width, height)
        if max(abs(a - b) for a, b in zip(self, clipped, strict=True)) >= 1:
            warnings.warn(
                f"box {self} reaches beyond the photo of {width} x {height} pixels: cut to "
                f"{clipped}",
                BoxWarning,
                stacklevel=5,
            )
        return clipped

    def scaled(self, sx: float, sy: float) -> Box:
        """Return the box with its x multiplied by ``sx`` and its y by ``sy``."""
        return Box(self.x1 * sx, self.y1 * sy, self.x2 * sx, self.y2 * sy)

    def corners(self) -> list[tuple[float, float]]:
        """Return the four corners, (x, y) each, clockwise from the top left."""
        return [(self.x1, self.y1), (self.x2, self.y1), (self.x2, self.y2), (self.x1, self.y2)]

    def cells(self) -> tuple[int, int, int, int]:
        """Return the whole pixels that the box touches: left, top, right, bottom, half open."""
        return math.floor(self.x1), math.floor(self.y1), math.ceil(self.x2), math.ceil(self.y2)
