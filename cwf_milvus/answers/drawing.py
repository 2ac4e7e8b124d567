"""What is drawn over a photo: heat maps, boxes, and what matches between two photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from PIL import ImageDraw

from cwf_milvus.photos.box import Box

if TYPE_CHECKING:  # torch takes seconds, and most pages have no heat on them
    from torch import Tensor

BOX_COLOUR = "#ffb000"
_CASING = "#101010"  # beside every line, so that it shows on any photo
_HEAT_OPACITY = 0.6
_DASH = 12  # pixels, and as many between two
_LINES = 40  # between two photos; more hide them
_SMOOTH = 2  # how much larger slanted lines are drawn, to be brought down

# Okabe and Ito (2008), told apart by the colour-blind: neighbouring lines differ.
_LINE_COLOURS = ("#ffb000", "#56b4e9", "#f0e442", "#33c49a", "#e377c2")

# Inferno (Smith and van der Walt, matplotlib, CC0) at ten even steps: perceptually uniform, rising
# in lightness from black, and as clear to the colour-blind.
_INFERNO = np.array(
    [
        (0, 0, 4), (27, 12, 66), (75, 12, 107), (120, 28, 109), (165, 44, 96),
        (207, 68, 70), (237, 105, 37), (251, 154, 6), (247, 208, 60), (252, 255, 164),
    ],
    dtype=np.float32,
)  # fmt: skip


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """Return the colours (..., 3), uint8, of values (...) in [0, 1]; NaN is as 0."""
    values = np.clip(np.nan_to_num(heat), 0, 1)
    steps = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(values, steps, _INFERNO[:, i]) for i in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay(image: PIL.Image.Image, heat: Tensor | np.ndarray) -> PIL.Image.Image:
    """Lay a heat map over a photo, which is made grey so that colour means heat alone.

    Args:
        image: the photo.
        heat: of shape (H, W) in [0, 1], a grid over the whole photo.

    Returns:
        RGB, of the photo's size.
    """
    values = np.asarray(heat if isinstance(heat, np.ndarray) else heat.detach().cpu(), np.float32)
    cells = PIL.Image.fromarray(np.nan_to_num(values))
    smooth = np.asarray(cells.resize(image.size, PIL.Image.Resampling.BILINEAR))
    colours = PIL.Image.fromarray(heat_colours(smooth))
    return PIL.Image.blend(image.convert("L").convert("RGB"), colours, _HEAT_OPACITY)


def draw_box(image: PIL.Image.Image, box: Box, colour: str = BOX_COLOUR) -> PIL.Image.Image:
    """Return a copy of an image with a box, in the image's own pixels, cased in black.

    Raises:
        BoxError: the box has no area, is not finite, or lies outside the image.
    """
    left, top, right, bottom = box.checked(*image.size).cells()
    line = max(3, max(image.size) // 130)
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for inset, ink, width in ((0, _CASING, line + 2), (1, colour, line)):
        x1, y1, x2, y2 = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        if x1 <= x2 and y1 <= y2:
            draw.rectangle((x1, y1, x2, y2), outline=ink, width=width)
    return drawn


def draw_polygon(
    image: PIL.Image.Image,
    corners: Sequence[tuple[float, float]] | np.ndarray,
    *,
    dashed: bool = False,
) -> PIL.Image.Image:
    """Return a copy of an image with a closed line through some corners, cased in black.

    Args:
        image: RGB.
        corners: (x, y) each, in the image's own pixels; what lies outside is moved to its edge.
        dashed: with gaps, for what is only likely.
    """
    line = max(3, max(image.size) // 130)
    inside = np.clip(np.asarray(corners, float), line / 2, np.array(image.size) - 1 - line / 2)
    large = image.resize((image.width * _SMOOTH, image.height * _SMOOTH))
    draw = ImageDraw.Draw(large)
    for ink, width in ((_CASING, line + 2), (BOX_COLOUR, line)):
        for start, end in zip(inside, np.roll(inside, -1, axis=0), strict=True):
            for a, b in _dashes(start, end) if dashed else [(start, end)]:
                _line(draw, a, b, ink, width)
    return large.resize(image.size, PIL.Image.Resampling.LANCZOS)


def draw_matches(
    query: PIL.Image.Image, hit: PIL.Image.Image, points: np.ndarray
) -> PIL.Image.Image:
    """Return two photos side by side, with lines between points that match.

    Args:
        query: RGB.
        hit: RGB.
        points: of shape (n, 4), x and y in the query's own pixels and x and y in the hit's. Of
            more than 40 every so many are drawn.
    """
    gap = 8
    size = (query.width + gap + hit.width, max(query.height, hit.height))
    sheet = PIL.Image.new("RGB", size, "#ffffff")
    tops = [(size[1] - one.height) // 2 for one in (query, hit)]
    sheet.paste(query, (0, tops[0]))
    sheet.paste(hit, (query.width + gap, tops[1]))
    sheet = sheet.resize((size[0] * _SMOOTH, size[1] * _SMOOTH))
    draw = ImageDraw.Draw(sheet)
    shifted = np.add(points, [0, tops[0], query.width + gap, tops[1]])
    shown = shifted[np.argsort(shifted[:, 1], kind="stable")]  # from top to bottom
    shown = shown[:: -(-len(shown) // _LINES) or 1]
    for i, (x1, y1, x2, y2) in enumerate(shown.tolist()):
        colour = _LINE_COLOURS[i % len(_LINE_COLOURS)]
        for ink, width, radius in ((_CASING, 3, 4), (colour, 1.5, 3)):
            _line(draw, (x1, y1), (x2, y2), ink, width)
            for x, y in ((x1, y1), (x2, y2)):
                draw.ellipse([_SMOOTH * side for side in _around(x, y, radius)], fill=ink)
    return sheet.resize(size, PIL.Image.Resampling.LANCZOS)


def _dashes(start: np.ndarray, end: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return an odd number of pieces of a line, every other one drawn, so that corners are."""
    n = 2 * max(1, round(float(np.linalg.norm(end - start)) / (2 * _DASH))) + 1
    steps = start + np.linspace(0, 1, n + 1)[:, None] * (end - start)
    return [(steps[i], steps[i + 1]) for i in range(0, n, 2)]


def _line(
    draw: ImageDraw.ImageDraw,
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    ink: str,
    width: float,
) -> None:
    ends = [(float(x) * _SMOOTH, float(y) * _SMOOTH) for x, y in (a, b)]
    draw.line(ends, fill=ink, width=max(1, round(width * _SMOOTH)))


def _around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius
