"""The pictures that explain: what an encoder sees in a photo, and which points of two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont
from torch import Tensor

from cwf_milvus.answers.drawing import (
    draw_box,
    draw_matches,
    draw_polygon,
    heat_colours,
    overlay,
)
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.keypoints import VIEW, extract_keypoints
from cwf_milvus.encode.local_vectors import CellBox, pool_local
from cwf_milvus.encode.settings import QUERY_KEYPOINTS, EncoderSettings
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.regions import THRESHOLDS, heat_boxes, largest_component_box
from cwf_milvus.method.spatial import verify_hits
from cwf_milvus.photos.box import Box, BoxLike
from cwf_milvus.photos.images import Image, load_image, thumbnail
from cwf_milvus.text import printable

_SHEET = 1300  # pixels wide
_PANEL = 420  # pixels of a photo's longest side
_PAIRED = 640  # the same, of two side by side
_NARROWEST = 240  # pixels that a caption needs
_GAP = 18
_CAPTION = 48
_HEADING = 70
_PAPER, _INK, _FAINT = "#ffffff", "#1a1a1a", "#5f5f5f"
# After Okabe and Ito, told apart by the colour-blind: one a scale, one a box of the heat map.
_COLOURS = ("#ffb000", "#56b4e9", "#e377c2", "#33c49a", "#f0e442")


@dataclass(frozen=True)
class _Panel:
    picture: PIL.Image.Image
    title: str
    about: str = ""
    key: tuple[str, ...] = ()  # what _COLOURS mean, in their order


def explain_figure(
    encoder: Encoder, image: object, box: BoxLike | None = None, *, n_classes: int = 6
) -> PIL.Image.Image:
    """Draw what an encoder sees in a photo, or in a query's box: classes, maps and regions.

    The panels are the photo with the box; the regions that vectors are pooled from; the boxes of
    the two top classes' mean map at the thresholds that re-ranking uses, each labelled by its
    thresholds; and the top classes' activation maps over the photo with name and score. Works
    without a whitening.

    Args:
        encoder: the encoder.
        image: anything that `Encoder.encode` takes.
        box: x1, y1, x2, y2 in pixels of the upright original; None for the whole photo.
        n_classes: how many class maps, at most those that the encoder keeps.

    Returns:
        RGB, some 1300 pixels wide.

    Raises:
        ImageError: a photo that cannot be decoded.
        BoxError: a box that is malformed, empty or outside the photo.
        SettingsError: n_classes under 1.
    """
    if n_classes < 1:
        raise SettingsError(f"n_classes={n_classes!r}: give a whole number of at least 1")
    photo = encoder.read(image, box)
    prepared = encoder.prepare_query(photo, box)
    features, ids, scores, maps = encoder.class_maps([prepared])
    local = pool_local(features, maps, ids, scores, [prepared.box], encoder.settings)
    small = _panel_photo(photo)
    panels = [
        _query_panel(photo, small, Box.of(box)),
        _region_panel(small, local.region_boxes[0].tolist(), local.cells, encoder),
        _heat_panel(small, maps[0, :2].mean(0), prepared.box),
    ]
    for rank in range(min(n_classes, ids.shape[1])):
        name = encoder.class_names[int(ids[0, rank])]
        about = f"score {float(scores[0, rank]):.3g}"
        panels.append(_Panel(overlay(small, maps[0, rank]), f"{rank + 1}. {name}", about))
    settings = encoder.settings
    heading = f"What {settings.backbone} sees at {settings.image_size} pixels"
    about = "Classes and their maps, of the whole photo"
    if box is not None:
        about = "Classes of the box alone, their maps over the whole photo"
    return _sheet(panels, heading, about)


def match_figure(query: object, hit: object, box: BoxLike | None = None) -> PIL.Image.Image:
    """Draw two photos side by side, the thing framed in both, with lines between points that agree.

    It is what ``rerank="spatial"`` sees of them (`method.spatial.verify_hits`); no network is run.

    Args:
        query: anything that `Encoder.encode` takes.
        hit: the photo to look for the thing in.
        box: x1, y1, x2, y2 of the thing in the query, in pixels of the upright original; None for
            the whole photo.

    Returns:
        RGB, some 1300 pixels wide.

    Raises:
        ImageError: a photo that cannot be decoded.
        BoxError: a box that is malformed, empty or outside the query.
    """
    wanted = Box.of(box)
    photos = [load_image(query, at_least=VIEW, box=wanted), load_image(hit, at_least=VIEW)]
    asked = None if wanted is None else wanted.asked(photos[0].width, photos[0].height)
    keypoints = [
        extract_keypoints(photo.pixels, photo.width, photo.height, limit)
        for photo, limit in zip(photos, (QUERY_KEYPOINTS, EncoderSettings.keypoints), strict=True)
    ]
    found = verify_hits(keypoints[0], keypoints[1:], asked)[0]
    pictures = [thumbnail(photo, _PAIRED) for photo in photos]
    scales = [
        (picture.width / photo.width, picture.height / photo.height)
        for picture, photo in zip(pictures, photos, strict=True)
    ]
    if asked is not None:
        pictures[0] = draw_box(pictures[0], asked.scaled(*scales[0]))
    points = np.zeros((0, 4))
    if found is not None:
        points = np.concatenate([found.query_points, found.hit_points], axis=1)
        pictures[1] = draw_polygon(pictures[1], found.polygon * scales[1])
    pair = draw_matches(pictures[0], pictures[1], points * (*scales[0], *scales[1]))
    said = f"{len(points)} points agree" if len(points) else "No points agree"
    sheet = PIL.Image.new("RGB", (pair.width + 2 * _GAP, _HEADING + pair.height + _GAP), _PAPER)
    sheet.paste(pair, (_GAP, _HEADING))
    draw = ImageDraw.Draw(sheet)
    about = f"of {len(keypoints[0])} in the query and {len(keypoints[1])} in the other photo"
    _write(draw, (_GAP, 12), said, ImageFont.load_default(size=18), pair.width)
    _write(draw, (_GAP, 37), about, ImageFont.load_default(size=14), pair.width, _FAINT)
    return sheet


def _query_panel(photo: Image, small: PIL.Image.Image, box: Box | None) -> _Panel:
    if box is None:
        return _Panel(small, "Query", f"{photo.width} x {photo.height} pixels")
    scaled = box.scaled(small.width / photo.width, small.height / photo.height)
    numbers = ", ".join(f"{number:.0f}" for number in box)
    return _Panel(draw_box(small, scaled), "Query", f"box {numbers}")


def _region_panel(
    small: PIL.Image.Image, boxes: Sequence[CellBox], cells: tuple[int, int], encoder: Encoder
) -> _Panel:
    """Draw the fixed grid's regions, a colour a scale; those of heat maps have their own panel."""
    levels = encoder.settings.region_levels
    scales = [i for i, level in enumerate(levels) for _ in range(level * level)]
    drawn = small
    for scale, box in zip(scales, boxes, strict=False):
        drawn = _nest(drawn, box, cells, scale)
    key = tuple(f"{level} x {level}" for level in levels)
    return _Panel(drawn, f"{len(scales)} regions on {cells[1]} x {cells[0]} cells", key=key)


def _heat_panel(small: PIL.Image.Image, heat: Tensor, inside: CellBox | None) -> _Panel:
    """Draw the boxes that re-ranking takes from a heat map, within the query's cells."""
    cells = (heat.shape[0], heat.shape[1])
    x1, y1, x2, y2 = inside or (0, 0, cells[1], cells[0])
    part = heat[y1:y2, x1:x2].cpu().numpy()
    of_thresholds = [largest_component_box(part, threshold) for threshold in THRESHOLDS]
    drawn, key = overlay(small, heat), []
    for i, box in enumerate(heat_boxes(part[None])[0]):
        placed = (box[0] + x1, box[1] + y1, box[2] + x1, box[3] + y1)
        drawn = _nest(drawn, placed, cells, i)
        percents = [
            f"{threshold * 100:.0f}"
            for threshold, found in zip(THRESHOLDS, of_thresholds, strict=True)
            if found == box
        ]
        key.append(", ".join(percents) + " %" if percents else "none, so all")
    return _Panel(drawn, "Boxes above % of the heat", key=tuple(key))


def _nest(
    image: PIL.Image.Image, box: CellBox, cells: tuple[int, int], depth: int
) -> PIL.Image.Image:
    """Draw a box of cells in its depth's colour, further in the deeper."""
    x1, y1, x2, y2 = Box(*box).scaled(image.width / cells[1], image.height / cells[0])
    inset = min(4.0 * depth, (x2 - x1) / 4, (y2 - y1) / 4)
    colour = _COLOURS[depth % len(_COLOURS)]
    return draw_box(image, Box(x1 + inset, y1 + inset, x2 - inset, y2 - inset), colour)


def _panel_photo(photo: Image) -> PIL.Image.Image:
    scale = _PANEL / max(photo.width, photo.height)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return PIL.Image.fromarray(photo.pixels).resize(size, PIL.Image.Resampling.LANCZOS)


def _sheet(panels: Sequence[_Panel], heading: str, about: str) -> PIL.Image.Image:
    """Set panels of one size in rows, with captions, a heading, and the key to the heat."""
    wide, tall = panels[0].picture.size
    wide = max(wide, _NARROWEST)
    columns = (_SHEET + _GAP) // (wide + _GAP)
    rows = -(-len(panels) // columns)
    size = (
        _GAP + columns * (wide + _GAP),
        _HEADING + rows * (tall + _CAPTION + _GAP) + _CAPTION,
    )
    sheet = PIL.Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    _write(draw, (_GAP, 12), heading, title, size[0] - 2 * _GAP)
    _write(draw, (_GAP, 37), about, small, size[0] - 2 * _GAP, _FAINT)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        x, y = _GAP + column * (wide + _GAP), _HEADING + row * (tall + _CAPTION + _GAP)
        sheet.paste(panel.picture, (x, y))
        _write(draw, (x, y + tall + 4), panel.title, title, wide)
        _write(draw, (x, y + tall + 28), panel.about, small, wide, _FAINT)
        for text, colour in zip(panel.key, _COLOURS, strict=False):
            draw.rectangle((x, y + tall + 32, x + 11, y + tall + 43), fill=colour, outline=_INK)
            _write(draw, (x + 17, y + tall + 28), text, small, wide, _FAINT)
            x += 30 + int(draw.textlength(text, small))
    y = size[1] - _CAPTION
    bar = heat_colours(np.tile(np.linspace(0, 1, wide), (14, 1)))
    sheet.paste(PIL.Image.fromarray(bar), (_GAP, y))
    _write(draw, (_GAP, y + 18), "0", small, wide, _FAINT)
    most = "the map's maximum"
    _write(draw, (_GAP + wide - draw.textlength(most, small), y + 18), most, small, wide, _FAINT)
    return sheet


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: float,
    ink: str = _INK,
) -> None:
    """Write one line, cut with an ellipsis where it would be too wide."""
    line = printable(text)
    if draw.textlength(line, font) > width:
        while line and draw.textlength(line + "…", font) > width:
            line = line[:-1]
        line += "…"
    draw.text(place, line, fill=ink, font=font)
