"""Views: the sizes at which the network sees a photo, and where a query's box lies on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data as photos

from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.encode.views import Prepared, prepare, prepare_query
from cwf_milvus.errors import BoxError, BoxWarning
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image, crop, load_image, resize

CHELSEA = load_image(photos.chelsea(), uri="cat")  # 451 x 300
DEFAULT = EncoderSettings(image_size=512)  # and 224 for classes
PAPER = EncoderSettings(image_size=720, resize="shortest", class_image_size=None)
SCRIPTS = EncoderSettings(image_size=512, class_image_size=None, paper_compat=True)


def blank(width: int, height: int) -> Image:
    return load_image(np.zeros((height, width, 3), np.uint8))


def sizes(prepared: Prepared) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(width, height) of the features' view and of the classes'."""
    height, width = prepared.view.shape[1:]
    if prepared.class_view is None:
        return (width, height), None
    return (width, height), (prepared.class_view.shape[2], prepared.class_view.shape[1])


def cells(
    size: tuple[int, int], box: tuple[float, ...], settings: EncoderSettings = DEFAULT, **kind: int
) -> tuple[int, int, int, int]:
    found = prepare_query(blank(*size), Box.of(box), settings, **{"stride": 32, **kind}).box
    assert found is not None
    return found


# --- photos --------------------------------------------------------------------------------------


def test_features_and_classes_each_have_a_view_of_their_own_size():
    prepared = prepare(CHELSEA, DEFAULT, 32)
    assert sizes(prepared) == ((512, 352), (224, 160))
    assert torch.equal(prepared.view, resize(CHELSEA, 512, 352))
    assert torch.equal(prepared.class_view, resize(CHELSEA, 224, 160))
    assert prepared.box is None


def test_without_a_size_for_classes_they_come_from_the_features_view():
    settings = EncoderSettings(image_size=512, class_image_size=None)
    assert sizes(prepare(CHELSEA, settings, 32)) == ((512, 352), None)


def test_a_view_of_equal_size_is_not_made_twice():
    settings = EncoderSettings(image_size=224, class_image_size=224)
    assert sizes(prepare(CHELSEA, settings, 32)) == ((224, 160), None)


def test_the_class_view_may_be_the_larger_one():
    settings = EncoderSettings(image_size=128, class_image_size=224)
    assert sizes(prepare(CHELSEA, settings, 32)) == ((128, 96), (224, 160))


def test_a_prepared_photo_knows_its_name_and_original_size():
    prepared = prepare(CHELSEA, DEFAULT, 32)
    assert (prepared.uri, prepared.content) == ("cat", CHELSEA.content)
    assert (prepared.width, prepared.height) == (451, 300)


def test_photos_share_a_batch_when_both_their_views_have_equal_shapes():
    settings = EncoderSettings(image_size=64, class_image_size=320)
    a, b, c = (prepare(blank(*size), settings, 32) for size in ((64, 60), (640, 600), (640, 540)))
    assert a.grid == b.grid
    assert a.view.shape == c.view.shape
    assert a.grid != c.grid


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1600, 1200), (960, 720)), ((1200, 1600), (720, 960)), ((500, 500), (720, 720))],
)
def test_the_papers_views_keep_the_aspect_ratio_with_the_shorter_side_720(size, expected):
    assert sizes(prepare(blank(*size), PAPER, 16)) == (expected, None)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1600, 1200), (1024, 720)), ((300, 451), (720, 1024)), ((500, 500), (1024, 720))],
)
def test_the_scripts_views_are_squashed_to_1024_x_720_or_720_x_1024(size, expected):
    assert sizes(prepare(blank(*size), SCRIPTS, 16)) == (expected, None)
    squash = EncoderSettings(image_size=512, resize="squash", class_image_size=None)
    assert sizes(prepare(blank(*size), squash, 16)) == (expected, None)


def test_a_panorama_keeps_its_aspect_ratio_and_fills_no_memory():
    assert sizes(prepare(blank(4000, 400), PAPER, 16)) == ((2880, 288), None)
    assert sizes(prepare(blank(1, 30_000), PAPER, 16)) == ((16, 2880), None)
    assert sizes(prepare(blank(2880, 720), PAPER, 16)) == ((2880, 720), None)
    assert sizes(prepare(blank(30_000, 1), DEFAULT, 32)) == ((512, 32), (224, 32))


def test_one_pixel_has_views():
    assert sizes(prepare(blank(1, 1), DEFAULT, 32)) == ((512, 512), (224, 224))


# --- queries -------------------------------------------------------------------------------------


def test_a_querys_features_see_the_whole_photo_and_its_classes_the_crop_alone():
    box = Box(100, 50, 300.5, 200)
    prepared = prepare_query(CHELSEA, box, DEFAULT, 32)
    assert torch.equal(prepared.view, prepare(CHELSEA, DEFAULT, 32).view)
    assert torch.equal(prepared.class_view, resize(crop(CHELSEA, box), 224, 160))
    assert (prepared.width, prepared.height, prepared.uri) == (451, 300, "cat")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (EncoderSettings(image_size=512, class_image_size=None), (512, 256)),
        (PAPER, (1440, 720)),
        (SCRIPTS, (1024, 720)),
    ],
)
def test_without_a_size_for_classes_a_crop_is_resized_as_a_photo_is(settings, expected):
    prepared = prepare_query(CHELSEA, Box(100, 50, 300, 150), settings, 16)
    assert sizes(prepared)[1] == expected


@pytest.mark.parametrize(
    "settings",
    [
        DEFAULT,
        EncoderSettings(image_size=512, class_image_size=None),
        EncoderSettings(image_size=128),
        PAPER,
        EncoderSettings(image_size=512, resize="squash", class_image_size=None),
    ],
)
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (2000, 100)])
def test_a_box_around_the_whole_photo_asks_what_no_box_asks(settings, size):
    image = load_image(np.resize(photos.chelsea(), (size[1], size[0], 3)))
    whole = prepare(image, settings, 16)
    boxed = prepare_query(image, Box(0, 0, *size), settings, 16)
    assert torch.equal(boxed.view, whole.view)
    expected = whole.view if whole.class_view is None else whole.class_view
    assert torch.equal(boxed.class_view, expected)
    height, width = whole.view.shape[1:]
    assert boxed.box == (0, 0, width // 16, height // 16)


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (512, 384), (4032, 3024), (97, 1000)])
@pytest.mark.parametrize("share", [(0.1, 0.2, 0.55, 0.71), (0.5, 0.0, 1.0, 0.33)])
def test_a_box_goes_through_the_same_resize_as_its_photo(size, share):
    width, height = size
    box = (share[0] * width, share[1] * height, share[2] * width, share[3] * height)
    view_height, view_width = prepare(blank(*size), DEFAULT, 32).view.shape[1:]
    x1, y1, x2, y2 = (
        side * resized / original / 32
        for side, resized, original in zip(
            box, [view_width, view_height] * 2, [width, height] * 2, strict=True
        )
    )
    expected = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
    assert cells(size, box) == expected


def test_the_cells_of_a_box_are_those_where_its_pixels_are():
    pixels = np.zeros((300, 451, 3), np.uint8)
    pixels[90:180, 150:330] = 255
    prepared = prepare_query(load_image(pixels), Box(150, 90, 330, 180), DEFAULT, 32)
    light = prepared.view[0].float().unfold(0, 32, 32).unfold(1, 32, 32).mean((2, 3))
    rows, columns = (light > 20).nonzero(as_tuple=True)
    lit = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert prepared.box == tuple(map(int, lit))


def test_a_box_that_ends_on_a_cells_border_adds_no_cell():
    for n in range(1, 17):
        assert cells((512, 512), (0, 0, 32 * n, 32)) == (0, 0, n, 1)
        assert cells((1711, 1711), (1711 / 16 * (n - 1), 0, 1711 / 16 * n, 9))[::2] == (n - 1, n)


@pytest.mark.parametrize("corner", [(1, 0), (255.7, 100), (511.9, 383.9)])
def test_the_smallest_box_has_one_cell(corner):
    x, y = corner
    with pytest.warns(BoxWarning, match="less than a cell of the features, 32 x 32 pixels"):
        x1, y1, x2, y2 = cells((512, 384), (x, y, x + 0.05, y + 0.05))
    assert (x2 - x1, y2 - y1) == (1, 1)
    assert (x1, y1) == (int(x // 32), int(y // 32))


def test_a_box_over_the_border_is_clipped_to_the_photo():
    with pytest.warns(BoxWarning, match="beyond the photo of 512 x 384 pixels: cut to 0,200,512"):
        assert cells((512, 384), (-100, 200, 5000, 5000)) == (0, 6, 16, 12)


def test_the_scripts_divide_original_pixels_by_16_whatever_the_resize():
    box = (320, 160, 640, 480)
    assert cells((2048, 1440), box, SCRIPTS, stride=16) == (20, 10, 40, 30)
    squash = EncoderSettings(image_size=512, resize="squash", class_image_size=None)
    assert cells((2048, 1440), box, squash, stride=16) == (10, 5, 20, 15)
    assert cells((1024, 720), box, SCRIPTS, stride=16) == cells((1024, 720), box, squash, stride=16)


def test_a_box_that_the_scripts_would_put_off_the_map_keeps_its_last_cell():
    assert cells((4000, 3000), (3000, 2000, 3500, 2500), SCRIPTS, stride=16) == (63, 44, 64, 45)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((100, 50, 100, 90), "has no area"),
        ((100, 90, 120, 50), "has no area"),
        ((451, 0, 500, 10), "outside the photo of 451 x 300"),
        ((0, -20, 10, 0), "outside the photo of 451 x 300"),
        ((0, 0, math.nan, 10), "not finite"),
    ],
)
@pytest.mark.parametrize("settings", [DEFAULT, SCRIPTS])
def test_a_box_without_area_or_outside_is_refused(box, reason, settings):
    with pytest.raises(BoxError, match=reason):
        prepare_query(CHELSEA, Box(*box), settings, 16)
