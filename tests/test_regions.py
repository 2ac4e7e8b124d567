from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from feature_maps import real_maps

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.cam import class_activation_maps
from cwf_milvus.method.regions import grid_boxes, heat_boxes, largest_component_box, rmac_boxes

GRIDS = [(16, 12), (12, 16), (7, 5), (1, 9), (5, 1), (1, 1), (2, 2), (45, 64)]


def flood_fill_box(heat: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    """The largest 8-connected part above the threshold, by plain flood fill."""
    unseen = {(int(y), int(x)) for y, x in np.argwhere(heat > threshold * heat.max())}
    best: list[tuple[int, int]] = []
    while unseen:
        frontier = [min(unseen)]
        unseen.discard(frontier[0])
        part = []
        while frontier:
            y, x = frontier.pop()
            part.append((y, x))
            for cell in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if cell in unseen:
                    unseen.discard(cell)
                    frontier.append(cell)
        best = max(best, part, key=len)  # of equal parts the first stays
    ys, xs = zip(*best, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def assert_inside(boxes: torch.Tensor, height: int, width: int) -> None:
    x1, y1, x2, y2 = boxes.unbind(1)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 > x1).all()
    assert (y2 > y1).all()
    assert (x2 <= width).all()
    assert (y2 <= height).all()


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_a_grid_has_as_many_boxes_as_its_levels_say_each_with_a_cell_inside_the_map(height, width):
    boxes = grid_boxes(height, width, (1, 2, 4))
    assert boxes.shape == (21, 4)
    assert boxes.dtype == torch.int64
    assert_inside(boxes, height, width)
    assert boxes[0].tolist() == [0, 0, width, height]


@pytest.mark.parametrize(("height", "width"), [(16, 12), (7, 5), (45, 64), (4, 9)])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_each_level_of_a_grid_covers_every_cell_from_border_to_border(height, width, level):
    covered = torch.zeros(height, width)
    boxes = grid_boxes(height, width, (level,)).tolist()
    for x1, y1, x2, y2 in boxes:
        covered[y1:y2, x1:x2] += 1
    assert len(boxes) == level**2
    assert covered.min() >= 1


def test_neighbours_in_a_grid_overlap_by_about_half():
    columns = sorted({(x1, x2) for x1, _, x2, _ in grid_boxes(50, 50, (4,)).tolist()})
    assert columns == [(0, 20), (10, 30), (20, 40), (30, 50)]


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(0, 5, (1,)), (5, 0, (1,)), (5, 5, ()), (5, 5, (1, 0))]
)
def test_an_impossible_grid_is_refused(height, width, levels):
    with pytest.raises(SettingsError, match="at least 1"):
        grid_boxes(height, width, levels)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(12, 16, 20), (16, 12, 20), (10, 10, 14), (1, 1, 14), (1, 9, 50)],
)
def test_rmac_takes_l_by_l_plus_m_squares_at_each_scale(height, width, count):
    # m = 1 for 3 : 4, so 2 + 6 + 12; 0 for a square, so 1 + 4 + 9; 6 at most, so 7 + 16 + 27
    boxes = rmac_boxes(height, width)
    assert len(boxes) == count
    assert_inside(boxes, height, width)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert torch.equal(sides[:, 0], sides[:, 1])


def test_rmac_squares_at_scale_l_are_2_over_l_plus_1_of_the_shorter_side():
    boxes = rmac_boxes(24, 32)
    sides = (boxes[:, 2] - boxes[:, 0]).tolist()
    assert sides == [24] * 2 + [16] * 6 + [12] * 12


def test_rmac_squares_overlap_by_about_40_percent_on_long_maps():
    first_scale = [x1 for x1, _, x2, _ in rmac_boxes(20, 56).tolist() if x2 - x1 == 20]
    overlaps = [1 - (b - a) / 20 for a, b in pairwise(first_scale)]
    assert all(abs(overlap - 0.4) <= 0.05 for overlap in overlaps)


def test_an_impossible_rmac_grid_is_refused():
    with pytest.raises(SettingsError, match="0 levels on 5 x 4"):
        rmac_boxes(5, 4, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.01, 0.4, 0.75])
def test_the_largest_part_of_random_heat_is_that_of_a_flood_fill(seed, threshold):
    heat = np.random.default_rng(seed).random((9, 13)) ** 2
    assert largest_component_box(heat, threshold) == flood_fill_box(heat, threshold)


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.2, 0.3, 0.4])
def test_the_largest_part_of_a_real_class_map_is_that_of_a_flood_fill(threshold):
    real = real_maps("coffee", step=1)
    heat = class_activation_maps(real["class_source"], real["weights"])[:, :2].mean(dim=1)
    for image in heat:
        expected = flood_fill_box(image.double().numpy(), threshold)
        assert largest_component_box(image, threshold) == expected


def test_cells_that_touch_at_a_corner_are_one_part():
    heat = torch.zeros(6, 6)
    heat[1, 1] = heat[2, 2] = heat[3, 3] = 1
    heat[0, 5] = heat[1, 5] = 1
    assert largest_component_box(heat, 0.5) == (1, 1, 4, 4)


def test_the_threshold_is_a_fraction_of_the_maximum_and_not_itself_reached():
    heat = torch.tensor([[0.0, 2.0, 4.0, 8.0]])
    assert largest_component_box(heat, 0.25) == (2, 0, 4, 1)
    assert largest_component_box(heat, 0.2) == (1, 0, 4, 1)


def test_a_part_at_the_border_gives_a_box_up_to_the_border():
    heat = torch.zeros(4, 5)
    heat[2:, 3:] = 1
    assert largest_component_box(heat, 0.5) == (3, 2, 5, 4)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_heat_without_a_maximum_above_0_has_no_part(value):
    assert largest_component_box(torch.full((3, 3), value), 0.5) is None


def test_a_single_hot_cell_is_its_own_box():
    assert largest_component_box(torch.ones(1, 1), 0.5) == (0, 0, 1, 1)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_a_threshold_that_is_no_fraction_is_refused(threshold):
    with pytest.raises(SettingsError, match="fraction"):
        largest_component_box(torch.ones(3, 3), threshold)


def test_heat_boxes_are_one_a_threshold_largest_first_each_once():
    y, x = np.mgrid[:21, :31]
    heat = np.exp(-((y - 10) ** 2 + (x - 12) ** 2) / 40.0)
    [boxes] = heat_boxes(heat[None])
    expected = [flood_fill_box(heat, threshold) for threshold in (0.01, 0.1, 0.2, 0.3, 0.4)]
    assert boxes == list(dict.fromkeys(expected))
    assert len(boxes) > 2


def test_boxes_with_a_side_under_five_cells_are_left_out():
    heat = torch.zeros(1, 12, 12)
    heat[0, 2:11, 2:11] = 0.15
    heat[0, 4:8, 3:9] = 1.0  # 4 cells high
    assert heat_boxes(heat) == [[(2, 2, 11, 11)]]
    assert heat_boxes(heat, min_side=4) == [[(2, 2, 11, 11), (3, 4, 9, 8)]]


def test_where_no_box_is_left_the_whole_map_is_the_region():
    heat = torch.zeros(3, 9, 7)
    heat[1, 2:4, 2:4] = 1
    heat[2] = float("nan")
    assert heat_boxes(heat) == [[(0, 0, 7, 9)]] * 3


def test_maps_smaller_than_five_cells_give_the_whole_map():
    assert heat_boxes(torch.ones(1, 1, 1)) == [[(0, 0, 1, 1)]]
