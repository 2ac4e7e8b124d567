"""Boxes on the feature grid: fixed grids at several scales, and what a heat map lights up.

A box is x1, y1, x2, y2 in cells, half open, as a slice is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.errors import SettingsError

CellBox = tuple[int, int, int, int]

THRESHOLDS = (0.01, 0.1, 0.2, 0.3, 0.4)
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_RMAC_OVERLAP = 0.4
_RMAC_MOST_EXTRA = 6


def grid_boxes(height: int, width: int, levels: Sequence[int]) -> Tensor:
    """Return a fixed grid of boxes at several scales.

    Level l is l x l boxes, evenly spread from border to border, each 2 / (l + 1) of the grid's
    sides, so that neighbours overlap by half (R-MAC's scales, without its squares). The number
    of boxes depends on the levels alone: a grid too small for them repeats boxes.

    Args:
        height: H of the feature grid, in cells.
        width: W of the feature grid, in cells.
        levels: l of each scale; (1, 2, 4) gives 21 boxes, the first being the whole grid.

    Returns:
        Boxes of shape (R, 4), int64, on the CPU; each holds at least one cell.

    Raises:
        SettingsError: no levels, or a level or side under 1.
    """
    if height < 1 or width < 1 or not levels or min(levels) < 1:
        raise SettingsError(
            f"no grid of levels {tuple(levels)} on {height} x {width} cells: all must be at least 1"
        )
    boxes: list[CellBox] = []
    for level in levels:
        columns = _spans(width, _side(width, level), level)
        boxes += _product(columns, _spans(height, _side(height, level), level))
    return torch.tensor(boxes, dtype=torch.int64)


def rmac_boxes(height: int, width: int, levels: int = 3) -> Tensor:
    """Return the square regions of R-MAC (Tolias, Sicre, Jégou 2016, section 3.2).

    At scale l = 1..levels squares of side ``2 * min(H, W) / (l + 1)``: l of them along the
    shorter side and l + m along the longer, with m chosen so that neighbours at scale 1 overlap
    by as close to 40 % as can be.

    Returns:
        Boxes of shape (R, 4), int64, on the CPU; 20 of them for sides of 3 : 4.

    Raises:
        SettingsError: levels or a side under 1.
    """
    if min(height, width, levels) < 1:
        raise SettingsError(
            f"no R-MAC grid of {levels} levels on {height} x {width} cells: all must be at least 1"
        )
    shorter, longer = sorted((height, width))
    extra = 0
    if longer > shorter:
        overlaps = [1 - (longer - shorter) / m / shorter for m in range(1, _RMAC_MOST_EXTRA + 1)]
        extra = 1 + int(np.argmin([abs(overlap - _RMAC_OVERLAP) for overlap in overlaps]))
    boxes: list[CellBox] = []
    for level in range(1, levels + 1):
        side = _side(shorter, level)
        columns = _spans(width, side, level + extra * (width > height))
        boxes += _product(columns, _spans(height, side, level + extra * (height > width)))
    return torch.tensor(boxes, dtype=torch.int64)


def largest_component_box(heat: Tensor | np.ndarray, threshold: float) -> CellBox | None:
    """Return the box of the largest connected part of a heat map above a threshold.

    Cells that touch at a corner are connected (8 neighbours). Of parts with equally many cells,
    the one met first row by row is taken.

    Args:
        heat: of shape (H, W).
        threshold: a fraction of the map's maximum, between 0 and 1.

    Returns:
        x1, y1, x2, y2 in cells, half open; None where the maximum is not above 0.

    Raises:
        SettingsError: a threshold that is not between 0 and 1.
    """
    from scipy import ndimage  # takes a while, and most encodings need no heat box

    if not 0 < threshold < 1:
        raise SettingsError(f"threshold {threshold!r}: give a fraction between 0 and 1")
    values = np.asarray(heat.detach().cpu() if isinstance(heat, Tensor) else heat)
    peak = values.max()
    if not peak > 0:
        return None
    labels, _ = ndimage.label(values > threshold * peak, structure=_EIGHT_NEIGHBOURS)
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(labels, max_label=largest)[largest - 1]
    return columns.start, rows.start, columns.stop, rows.stop


def heat_boxes(
    heat: Tensor | np.ndarray, thresholds: Sequence[float] = THRESHOLDS, min_side: int = 5
) -> list[list[CellBox]]:
    """Return the regions that the paper re-ranks by: one box a threshold, on each heat map.

    Args:
        heat: of shape (B, H, W).
        thresholds: fractions of each map's maximum.
        min_side: boxes with a side of fewer cells are left out.

    Returns:
        B lists of boxes in the order of the thresholds, each box once; where none is left, the
        whole map is the one region.

    Raises:
        SettingsError: a threshold that is not between 0 and 1.
    """
    maps = np.asarray(heat.detach().cpu() if isinstance(heat, Tensor) else heat)
    height, width = maps.shape[1:]
    regions: list[list[CellBox]] = []
    for values in maps:
        found = [largest_component_box(values, threshold) for threshold in thresholds]
        kept = [
            box
            for box in dict.fromkeys(found)
            if box and min(box[2] - box[0], box[3] - box[1]) >= min_side
        ]
        regions.append(kept or [(0, 0, width, height)])
    return regions


def _side(length: int, level: int) -> int:
    return max(1, 2 * length // (level + 1))


def _spans(length: int, side: int, count: int) -> list[tuple[int, int]]:
    """Spread `count` spans of `side` cells evenly from one end of `length` cells to the other."""
    steps = max(count - 1, 1)
    # A lone span stands in the middle.
    starts = [i * (length - side) // steps for i in range(count)] if count > 1 else [0]
    if count == 1:
        starts = [(length - side) // 2]
    return [(start, start + side) for start in starts]


def _product(columns: list[tuple[int, int]], rows: list[tuple[int, int]]) -> list[CellBox]:
    return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]
