from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from test_page import is_colour

from cwf_milvus.answers.drawing import draw_box, heat_colours, overlay
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import BoxError, ImageError, SettingsError
from cwf_milvus.explain import explain_figure, match_figure
from cwf_milvus.photos.box import Box

PHOTOS = Path(skimage.data.__file__).parent


# Drawing


def test_heat_rises_in_lightness_from_black():
    colours = heat_colours(np.linspace(0, 1, 50)).astype(float)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert lightness[0] < 2
    assert lightness[-1] > 230


def test_an_overlay_is_as_large_as_the_photo_and_hot_where_the_map_is():
    photo = PIL.Image.open(PHOTOS / "coffee.png").convert("RGB")
    heat = torch.zeros(4, 6)
    heat[1, 4] = 1
    hot = np.asarray(overlay(photo, heat), float)
    cold = np.asarray(overlay(photo, torch.zeros(4, 6)), float)
    assert hot.shape == (400, 600, 3)
    y, x = np.unravel_index((hot - cold).sum(2).argmax(), (400, 600))
    assert (y // 100, x // 100) == (1, 4)
    assert (hot[300:, :200] == cold[300:, :200]).all()


def test_an_overlay_takes_maps_of_one_cell_and_maps_with_nan():
    photo = PIL.Image.open(PHOTOS / "coffee.png").convert("RGB")
    assert overlay(photo, np.ones((1, 1))).size == photo.size
    nan, zero = overlay(photo, np.full((2, 2), np.nan)), overlay(photo, np.zeros((2, 2)))
    assert nan.tobytes() == zero.tobytes()


def test_a_box_is_drawn_on_a_copy_of_any_size():
    for size in ((1, 1), (2, 3), (1, 400), (640, 480)):
        image = PIL.Image.new("RGB", size, "white")
        drawn = draw_box(image, Box(0, 0, *size))
        assert drawn.tobytes() != image.tobytes()
        assert image.getcolors() == [(size[0] * size[1], (255, 255, 255))]
    with pytest.raises(BoxError, match="outside"):
        draw_box(image, Box(700, 0, 800, 10))


# What the encoder sees


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(whitening=None)


def panel(figure: PIL.Image.Image, column: int, row: int) -> np.ndarray:
    """Return a panel of a figure of coffee.png, (280, 420, 3)."""
    x, y = 18 + column * 438, 70 + row * 346
    return np.asarray(figure.crop((x, y, x + 420, y + 280)), float)


def test_a_figure_shows_the_query_and_the_maps_of_its_classes(encoder):
    box = (200, 60, 420, 330)
    figure = explain_figure(encoder, PHOTOS / "coffee.png", box)
    prepared = encoder.prepare_query(PHOTOS / "coffee.png", box)
    _, ids, _, maps = encoder.class_maps([prepared])
    assert encoder.class_names[int(ids[0, 0])] == "espresso"
    photo = PIL.Image.open(PHOTOS / "coffee.png").convert("RGB").resize((420, 280))
    for rank in range(6):
        expected = np.asarray(overlay(photo, maps[0, rank]), float)
        shown = panel(figure, rank % 3, 1 + rank // 3)
        others = np.asarray(overlay(photo, maps[0, (rank + 1) % 6]), float)
        assert np.abs(shown - expected).mean() < 3 < np.abs(shown - others).mean()
    query_panel = panel(figure, 0, 0)
    assert is_colour(query_panel[130, 141])
    assert np.abs(query_panel - np.asarray(photo, float))[:, :130].mean() < 3


def test_a_figure_draws_regions_and_heat_boxes_in_the_querys_cells(encoder):
    figure = explain_figure(encoder, PHOTOS / "coffee.png", (200, 60, 420, 330))
    local = encoder.local_vectors(
        [encoder.prepare_query(PHOTOS / "coffee.png", (200, 60, 420, 330))]
    )
    rows, columns = local.cells
    x1, y1, x2, y2 = (
        local.region_boxes[0][0] * torch.tensor([420 / columns, 280 / rows] * 2)
    ).tolist()
    for column in (1, 2):  # the first region and the lowest threshold's box: all of the query
        shown = panel(figure, column, 0)
        middle = round((y1 + y2) / 2)
        assert is_colour(shown[middle, round(x1) + 2])
        assert is_colour(shown[middle, round(x2) - 3])
        assert not any(is_colour(pixel) for pixel in shown[middle, : int(x1) - 2])


def test_a_figure_has_as_many_class_maps_as_asked_and_kept(encoder):
    one_row, two_rows = (
        explain_figure(encoder, PHOTOS / "coffee.png", n_classes=n).height for n in (3, 4)
    )
    assert two_rows == one_row + 346
    few = Encoder(whitening=None, n_classes=3)
    assert explain_figure(few, PHOTOS / "coffee.png", n_classes=6).height == one_row


def test_a_figure_is_made_of_bytes_streams_arrays_and_the_smallest_photos(encoder):
    data = (PHOTOS / "rocket.jpg").read_bytes()
    whole = explain_figure(encoder, data, (10, 10, 200, 200))
    assert explain_figure(encoder, io.BytesIO(data), "10,10,200,200").tobytes() == whole.tobytes()
    for shape in ((1, 1, 3), (3, 2000, 3)):
        figure = explain_figure(encoder, np.full(shape, 127, np.uint8))
        assert min(figure.size) > 200
        assert max(figure.size) < 2200


def test_a_figure_refuses_what_it_cannot_draw(encoder):
    with pytest.raises(BoxError, match="outside"):
        explain_figure(encoder, PHOTOS / "coffee.png", (900, 0, 990, 10))
    with pytest.raises(SettingsError, match="n_classes=0"):
        explain_figure(encoder, PHOTOS / "coffee.png", n_classes=0)


def test_class_maps_are_those_that_vectors_are_pooled_by(encoder):
    prepared = [encoder.prepare(encoder.read(PHOTOS / "coffee.png"))]
    features, ids, scores, maps = encoder.class_maps(prepared)
    encoding = encoder.encode_prepared(prepared)[0]
    assert ids[0].tolist() == encoding.class_ids.tolist()
    assert scores[0].tolist() == encoding.class_scores.tolist()
    assert maps.shape == (1, encoder.n_classes, *features.shape[-2:])
    assert float(maps.min()) >= 0
    assert float(maps.max()) == 1


# What agrees in two photos


def coffee_elsewhere() -> PIL.Image.Image:
    """The cup, smaller and turned, on plain ground."""
    page = PIL.Image.new("RGB", (640, 480), "#7d8a94")
    cup = PIL.Image.open(PHOTOS / "coffee.png").convert("RGB").crop((150, 40, 450, 340))
    page.paste(cup.resize((240, 240)).rotate(15, fillcolor="#7d8a94"), (330, 180))
    return page


def test_points_that_agree_are_joined_and_the_thing_is_framed():
    box = (150, 40, 450, 340)
    figure = match_figure(PHOTOS / "coffee.png", coffee_elsewhere(), box)
    assert figure.mode == "RGB"
    pixels = np.asarray(figure).astype(int)
    middle = pixels[70:-18, 18 + 600 : 18 + 608]  # between the photos: white, but for the lines
    assert (middle.min(axis=2) < 128).sum() > 30
    right = pixels[70:-18, 18 + 608 :]
    framed = np.argwhere(np.abs(right - (0xFF, 0xB0, 0x00)).max(axis=2) < 60)
    inside = (framed > (130, 280)).all(axis=1)  # the rest are lines on their way there
    assert inside.mean() > 0.8
    assert len(framed) > 2000


def test_where_no_points_agree_there_is_no_line():
    figure = match_figure(PHOTOS / "coffee.png", PIL.Image.new("RGB", (300, 300), "#336699"))
    between = np.asarray(figure)[70:-18, 18 + 603 : 18 + 605]
    assert (between == 255).all()


def test_a_pair_refuses_what_a_query_refuses():
    with pytest.raises(BoxError, match="outside"):
        match_figure(PHOTOS / "coffee.png", PHOTOS / "coffee.png", (900, 0, 990, 10))
    with pytest.raises(ImageError, match="nowhere"):
        match_figure(PHOTOS / "coffee.png", "nowhere.jpg")
