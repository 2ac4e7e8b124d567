from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_maps import SHAPES, float64, random_features, real_maps, reference_class_maps
from torch import Tensor

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.cam import class_activation_maps, top_classes


def random_weights(features: Tensor, n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(features), n, features.shape[1], generator=generator)


def resize_bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with pixel centres at .5 and the border repeated, cell by cell."""
    rows, columns = values.shape
    out = np.empty((height, width))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            dy, dx = y - y0, x - x0
            top = values[y0, x0] * (1 - dx) + values[y0, x1] * dx
            bottom = values[y1, x0] * (1 - dx) + values[y1, x1] * dx
            out[i, j] = top * (1 - dy) + bottom * dy
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_class_maps_follow_equation_1_on_random_maps_of_any_size(shape):
    source = random_features(*shape)
    weights = random_weights(source)
    maps = class_activation_maps(source, weights)
    for b in range(len(source)):
        expected = reference_class_maps(float64(source[b]), float64(weights[b]))
        np.testing.assert_allclose(float64(maps[b]), expected, atol=1e-5)


def test_class_maps_follow_equation_1_on_a_real_photo():
    real = real_maps()
    maps = class_activation_maps(real["class_source"], real["weights"])
    for b in range(2):
        expected = reference_class_maps(
            float64(real["class_source"][b]), float64(real["weights"][b])
        )
        np.testing.assert_allclose(float64(maps[b]), expected, atol=1e-5)


def test_every_class_map_with_a_positive_cell_has_maximum_1_and_no_negative_cell():
    source = random_features(7, 5, 33)
    maps = class_activation_maps(source, random_weights(source))
    assert torch.equal(maps.amax(dim=(2, 3)), torch.ones(2, 4))
    assert maps.min() == 0


def test_a_class_map_without_a_positive_cell_is_all_zeros_and_never_nan():
    source = torch.ones(1, 2, 3, 4)
    weights = torch.tensor([[[-1.0, -2.0], [0.0, 0.0], [1.0, -1.0], [1.0, 0.0]]])
    maps = class_activation_maps(source, weights)
    assert torch.equal(maps[0, :3], torch.zeros(3, 3, 4))
    assert torch.equal(maps[0, 3], torch.ones(3, 4))


@pytest.mark.parametrize("size", [(10, 9), (3, 2), (1, 1), (14, 10)])
def test_class_maps_are_normalised_first_and_then_resized_to_the_feature_grid(size):
    source = random_features(7, 5, 33)
    weights = random_weights(source)
    maps = class_activation_maps(source, weights, size)
    assert maps.shape == (2, 4, *size)
    for b in range(2):
        whole = reference_class_maps(float64(source[b]), float64(weights[b]))
        expected = [resize_bilinear(values, *size) for values in whole]
        np.testing.assert_allclose(float64(maps[b]), expected, atol=1e-5)


def test_a_single_cell_is_spread_over_the_whole_feature_grid():
    maps = class_activation_maps(torch.ones(1, 2, 1, 1), torch.ones(1, 1, 2), (3, 5))
    assert torch.allclose(maps, torch.ones(1, 1, 3, 5))


def test_class_maps_leave_their_inputs_as_they_were():
    source = random_features(6, 8, 20)
    weights = random_weights(source)
    before = source.clone(), weights.clone()
    class_activation_maps(source, weights)
    assert torch.equal(source, before[0])
    assert torch.equal(weights, before[1])


def test_top_classes_come_most_likely_first_with_their_softmax():
    logits = real_maps()["logits"]
    ids, scores = top_classes(logits, 6)
    for b in range(2):
        row = float64(logits[b])
        softmax = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        expected = sorted(range(len(row)), key=lambda c: -row[c])[:6]
        assert ids[b].tolist() == expected
        np.testing.assert_allclose(float64(scores[b]), softmax[expected], atol=1e-5)


def test_top_classes_of_the_cat_photo_are_cats():
    ids, _ = top_classes(real_maps()["logits"], 3)
    assert {281, 282, 285} >= set(ids[0].tolist())  # tabby, tiger cat, Egyptian cat


def test_top_classes_of_a_predefined_list_stay_within_it_and_keep_the_full_softmax():
    logits = torch.tensor([[0.0, 5.0, 1.0, 3.0]])
    ids, scores = top_classes(logits, 2, classes=[0, 3, 2])
    assert ids.tolist() == [[3, 2]]
    assert torch.allclose(scores, logits.softmax(dim=1)[:, [3, 2]])


def test_top_classes_rank_by_logit_where_the_softmax_has_collapsed():
    ids, scores = top_classes(torch.tensor([[-500.0, 0.0, -400.0, -450.0]]), 4)
    assert ids.tolist() == [[1, 2, 3, 0]]
    assert scores[0, 1] == scores[0, 3] == 0


def test_equal_logits_are_ordered_by_class_id():
    ids, _ = top_classes(torch.ones(1, 1000), 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("n", "classes", "message"),
    [
        (0, None, "0 classes .* from 1 to 10"),
        (11, None, "11 classes .* from 1 to 10"),
        (3, [1, 2], "3 classes .* from 1 to 2"),
        (1, [1, 10], "class 10 .* 0 to 9"),
        (1, [-1], "class -1"),
        (1, [1, 1], "twice"),
    ],
)
def test_impossible_requests_for_classes_are_refused_with_the_value(n, classes, message):
    with pytest.raises(SettingsError, match=message):
        top_classes(torch.zeros(1, 10), n, classes)
