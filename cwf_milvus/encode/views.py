"""The views of a photo that the network sees, and where a query's box lies on them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

from torch import Tensor

from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.errors import BoxWarning
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image, crop, pixels_there, resize, target_size

_PAPER_SIDES = (1024, 720)
_LONGEST_RATIO = 4  # of a panorama's longer side to `image_size`, lest it fill the memory
_EDGE = 1e-6  # of a cell: rounding must not add a cell to a box that ends on its border


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo resized for the network, with its pixels let go; or to be resized on its device.

    Attributes:
        view: uint8 of shape (3, h, w), what the features are taken from.
        class_view: uint8 of shape (3, h', w'), what the classes are predicted from; None if the
            same as `view`.
        size: (height, width) that `view` is yet to be resized to; None where it was.
        class_size: the same of `class_view`.
        box: the query's box on the view, in feature cells, or None for the whole photo.
        keypoints: the strongest of the whole photo; None where none were looked for.
    """

    view: Tensor
    class_view: Tensor | None
    uri: str
    content: str
    width: int
    height: int
    box: tuple[int, int, int, int] | None = None
    keypoints: Keypoints | None = None
    size: tuple[int, int] | None = None
    class_size: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """What two photos must have in common to share a batch."""
        view = _shape(self.view, self.size)
        class_view = None if self.class_view is None else _shape(self.class_view, self.class_size)
        return view, class_view


def prepare(image: Image, settings: EncoderSettings, stride: int) -> Prepared:
    """Resize a photo to the view of its features and, where they differ, of its classes.

    Args:
        image: the photo.
        settings: `image_size`, `resize`, `class_image_size`, `paper_compat` and `resize_on` count.
        stride: pixels of a feature cell; both sides of both views are multiples of it.
    """
    size = _view_size(image.width, image.height, settings, stride)
    class_size = _class_view_size(image.width, image.height, settings, stride)
    about = image.uri, image.content, image.width, image.height
    if settings.resize_on == "device":
        pixels = pixels_there(image.pixels)  # one tensor, so that it is sent once
        class_pixels = None if class_size == size else pixels
        return Prepared(pixels, class_pixels, *about, size=size[::-1], class_size=class_size[::-1])
    return Prepared(
        resize(image, *size), None if class_size == size else resize(image, *class_size), *about
    )


def prepare_query(image: Image, box: Box, settings: EncoderSettings, stride: int) -> Prepared:
    """Resize a query: the features' view is the whole photo, the classes' view the crop alone.

    A box that is less than a cell of the features stands for that cell, with a BoxWarning.

    Raises:
        BoxError: a box that is empty, outside the photo, or given in shares of it.
    """
    checked = box.asked(image.width, image.height)
    prepared = prepare(image, settings, stride)
    view_height, view_width = prepared.grid[0][1:]
    cell = (stride * image.width / view_width, stride * image.height / view_height)
    if checked.x2 - checked.x1 < cell[0] and checked.y2 - checked.y1 < cell[1]:
        warnings.warn(
            f"box {checked} is less than a cell of the features, {cell[0]:.0f} x "
            f"{cell[1]:.0f} pixels of this photo: a cell is searched",
            BoxWarning,
            stacklevel=4,
        )
    part = crop(image, checked)
    class_size = _class_view_size(part.width, part.height, settings, stride)
    cells = _cells(checked, prepared, stride, settings)
    if settings.resize_on == "device":
        pixels = pixels_there(part.pixels)
        return replace(prepared, class_view=pixels, class_size=class_size[::-1], box=cells)
    return replace(prepared, class_view=resize(part, *class_size), box=cells)


def _shape(view: Tensor, size: tuple[int, int] | None) -> tuple[int, ...]:
    return tuple(view.shape) if size is None else (len(view), *size)


def _view_size(width: int, height: int, settings: EncoderSettings, stride: int) -> tuple[int, int]:
    if settings.paper_compat or settings.resize == "squash":
        return _PAPER_SIDES if width >= height else _PAPER_SIDES[::-1]
    size = settings.image_size
    if settings.resize == "shortest" and max(width, height) > _LONGEST_RATIO * min(width, height):
        return target_size(width, height, _LONGEST_RATIO * size, multiple=stride)
    return target_size(width, height, size, mode=settings.resize, multiple=stride)


def _class_view_size(
    width: int, height: int, settings: EncoderSettings, stride: int
) -> tuple[int, int]:
    if settings.class_image_size is None:
        return _view_size(width, height, settings, stride)
    return target_size(width, height, settings.class_image_size, multiple=stride)


def _cells(
    box: Box, prepared: Prepared, stride: int, settings: EncoderSettings
) -> tuple[int, int, int, int]:
    """Return the feature cells that a box in original pixels touches, at least one."""
    view_height, view_width = prepared.grid[0][1:]
    rows, columns = view_height // stride, view_width // stride
    if settings.paper_compat:  # the scripts: original pixels over the stride, whatever the size
        scaled = box.scaled(1 / stride, 1 / stride)
    else:
        scaled = box.scaled(
            view_width / prepared.width / stride, view_height / prepared.height / stride
        )
    x1 = min(math.floor(scaled.x1 + _EDGE), columns - 1)
    y1 = min(math.floor(scaled.y1 + _EDGE), rows - 1)
    x2 = min(max(math.ceil(scaled.x2 - _EDGE), x1 + 1), columns)
    y2 = min(max(math.ceil(scaled.y2 - _EDGE), y1 + 1), rows)
    return x1, y1, x2, y2
