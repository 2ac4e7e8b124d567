"""What is drawn over a photo: heat maps and boxes."""

from __future__ import annotations

import numpy as np
import PIL.Image
from PIL import ImageDraw
from torch import Tensor

from cwf_milvus.photos.box import Box

BOX_COLOUR = "#ffb000"
_CASING = "#101010"  # beside every line, so that it shows on any photo
_HEAT_OPACITY = 0.6

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
    values = np.asarray(heat.detach().cpu() if isinstance(heat, Tensor) else heat, np.float32)
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
