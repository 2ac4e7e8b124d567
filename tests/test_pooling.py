from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch
from feature_maps import (
    SHAPES,
    float64,
    random_features,
    real_maps,
    reference_channel_weights,
    reference_class_maps,
    unit,
)
from torch import Tensor

from cwf_milvus.errors import BoxError
from cwf_milvus.method import pooling
from cwf_milvus.method.cam import class_activation_maps
from cwf_milvus.method.regions import grid_boxes, rmac_boxes


def reference_class_vector(
    features: np.ndarray, class_map: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Eq. 2-4 for one image and class."""
    height, width = class_map.shape
    summed = np.zeros(len(features))
    for i in range(height):
        for j in range(width):
            summed += features[:, i, j] * class_map[i, j]
    return unit(weights * summed)


def reference_max(features: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    x1, y1, x2, y2 = box
    cells = [features[:, y, x] for y in range(y1, y2) for x in range(x1, x2)]
    return unit(np.maximum.reduce(cells))


def reference_raw(features: np.ndarray) -> np.ndarray:
    return unit(np.array([channel.sum() for channel in features]))


def reference_spoc(features: np.ndarray) -> np.ndarray:
    height, width = features.shape[1:]
    sigma = min(height, width) / 2 / 3
    summed = np.zeros(len(features))
    for i in range(height):
        for j in range(width):
            away = (i + 0.5 - height / 2) ** 2 + (j + 0.5 - width / 2) ** 2
            summed += exp(-away / (2 * sigma**2)) * features[:, i, j]
    return unit(summed)


def reference_crow_spatial(features: np.ndarray) -> np.ndarray:
    summed = np.zeros(features.shape[1:])
    for channel in features:
        summed += channel
    length = (summed**2).sum() ** 0.5
    return (summed / length) ** 0.5 if length > 0 else summed


def reference_crow(features: np.ndarray) -> np.ndarray:
    spatial = reference_crow_spatial(features)
    weights = reference_channel_weights(features)
    return unit(
        np.array(
            [w * (spatial * channel).sum() for w, channel in zip(weights, features, strict=True)]
        )
    )


def reference_mac(features: np.ndarray) -> np.ndarray:
    return unit(np.array([channel.max() for channel in features]))


def reference_rmac(features: np.ndarray) -> np.ndarray:
    summed = np.zeros(len(features))
    for box in rmac_boxes(*features.shape[1:]).tolist():
        summed += reference_max(features, box)
    return unit(summed)


def reference_gem(features: np.ndarray) -> np.ndarray:
    return unit(np.array([np.mean(channel**3) ** (1 / 3) for channel in features]))


BASELINES = {
    "raw": reference_raw,
    "spoc": reference_spoc,
    "ucrow": reference_raw,
    "crow": reference_crow,
    "mac": reference_mac,
    "rmac": reference_rmac,
    "gem": reference_gem,
}


def random_class_maps(features: Tensor, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(len(features), n, *features.shape[2:], generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_weights_follow_equation_3_on_random_maps_of_any_size(shape):
    features = random_features(*shape)
    weights = pooling.channel_weights(features)
    for b in range(len(features)):
        expected = reference_channel_weights(float64(features[b]))
        np.testing.assert_allclose(float64(weights[b]), expected, atol=1e-5)


def test_channel_weights_follow_equation_3_on_a_real_photo():
    features = real_maps()["features"]
    weights = pooling.channel_weights(features)
    for b in range(2):
        expected = reference_channel_weights(float64(features[b]))
        np.testing.assert_allclose(float64(weights[b]), expected, atol=1e-5)


def test_a_channel_that_is_never_active_has_weight_0_and_the_rarest_has_the_most():
    features = torch.zeros(1, 3, 4, 4)
    features[0, 1, 0, 0] = 9.0
    features[0, 2, :2] = 1.0
    weights = pooling.channel_weights(features)
    expected = np.log([[1, 9 / 1, 9 / 8]])
    np.testing.assert_allclose(float64(weights), expected, atol=1e-6)


def test_negative_cells_do_not_count_as_active():
    features = torch.tensor([[[[1.0, -1.0]], [[1.0, 2.0]]]])
    assert torch.allclose(pooling.channel_weights(features), torch.tensor([[3.0, 1.5]]).log())


@pytest.mark.parametrize("shape", SHAPES)
def test_class_vectors_follow_equations_2_to_4_on_random_maps_of_any_size(shape):
    features = random_features(*shape)
    class_maps = random_class_maps(features)
    vectors = pooling.class_vectors(features, class_maps)
    for b in range(len(features)):
        weights = reference_channel_weights(float64(features[b]))
        for n in range(class_maps.shape[1]):
            expected = reference_class_vector(
                float64(features[b]), float64(class_maps[b, n]), weights
            )
            np.testing.assert_allclose(float64(vectors[b, n]), expected, atol=1e-5)


def test_class_vectors_follow_the_equations_from_features_to_vector_on_a_real_photo():
    real = real_maps()
    maps = class_activation_maps(real["class_source"], real["weights"])
    vectors = pooling.class_vectors(real["features"], maps)
    for b in range(2):
        features = float64(real["features"][b])
        weights = reference_channel_weights(features)
        class_maps = reference_class_maps(
            float64(real["class_source"][b]), float64(real["weights"][b])
        )
        expected = [reference_class_vector(features, values, weights) for values in class_maps]
        np.testing.assert_allclose(float64(vectors[b]), expected, atol=1e-5)


@pytest.mark.parametrize("box", [(3, 2, 9, 6), (0, 0, 1, 1), (6, 3, 7, 7)])
def test_class_vectors_of_a_box_use_the_crop_for_features_maps_and_shares(box):
    real = real_maps()
    x1, y1, x2, y2 = box
    maps = class_activation_maps(real["class_source"], real["weights"])
    vectors = pooling.class_vectors(real["features"][:, :, y1:y2, x1:x2], maps[:, :, y1:y2, x1:x2])
    whole = reference_class_maps(float64(real["class_source"][0]), float64(real["weights"][0]))
    cropped = float64(real["features"][0, :, y1:y2, x1:x2])
    weights = reference_channel_weights(cropped)
    expected = [reference_class_vector(cropped, values[y1:y2, x1:x2], weights) for values in whole]
    np.testing.assert_allclose(float64(vectors[0]), expected, atol=1e-5)


def test_class_vectors_take_channel_weights_from_elsewhere():
    features = random_features(6, 8, 20)
    class_maps = random_class_maps(features)
    elsewhere = torch.rand(2, 20, generator=torch.Generator().manual_seed(2))
    vectors = pooling.class_vectors(features, class_maps, elsewhere)
    expected = reference_class_vector(
        float64(features[1]), float64(class_maps[1, 2]), float64(elsewhere[1])
    )
    np.testing.assert_allclose(float64(vectors[1, 2]), expected, atol=1e-5)


def test_a_zero_class_map_gives_a_zero_vector_and_leaves_the_others_alone():
    features = random_features(6, 8, 20)
    class_maps = random_class_maps(features)
    others = pooling.class_vectors(features, class_maps)
    class_maps[0, 1] = 0
    vectors = pooling.class_vectors(features, class_maps)
    assert torch.equal(vectors[0, 1], torch.zeros(20))
    assert torch.allclose(vectors[0, [0, 2]], others[0, [0, 2]])


def test_class_vectors_do_not_depend_on_the_batch_around_an_image():
    real = real_maps()
    maps = class_activation_maps(real["class_source"], real["weights"])
    together = pooling.class_vectors(real["features"], maps)
    alone = pooling.class_vectors(real["features"][1:], maps[1:])
    assert torch.allclose(together[1:], alone, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_region_vectors_are_unit_maxima_over_each_box_on_random_maps_of_any_size(shape):
    features = random_features(*shape)
    boxes = grid_boxes(*shape[:2], (1, 2, 4))
    vectors = pooling.region_vectors(features, boxes)
    assert vectors.shape == (2, 21, shape[2])
    for b in range(2):
        expected = [reference_max(float64(features[b]), box) for box in boxes.tolist()]
        np.testing.assert_allclose(float64(vectors[b]), expected, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_region_vectors_are_unit_maxima_over_each_box_on_a_real_photo(layout):
    features = real_maps()["features"].contiguous(memory_format=layout)
    boxes = grid_boxes(*features.shape[2:], (1, 2, 4))
    vectors = pooling.region_vectors(features, boxes)
    for b in range(2):
        expected = [reference_max(float64(features[b]), box) for box in boxes.tolist()]
        np.testing.assert_allclose(float64(vectors[b]), expected, atol=1e-5)


def test_each_image_of_a_batch_can_have_its_own_boxes_up_to_the_border():
    features = random_features(7, 5, 33)
    boxes = torch.tensor([[[0, 0, 5, 7], [4, 6, 5, 7]], [[0, 0, 1, 1], [2, 0, 5, 3]]])
    vectors = pooling.region_vectors(features, boxes)
    for b in range(2):
        expected = [reference_max(float64(features[b]), box) for box in boxes[b].tolist()]
        np.testing.assert_allclose(float64(vectors[b]), expected, atol=1e-5)


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 6), (0, 0, 8, 7), (-1, 0, 2, 2), (3, 3, 3, 4), (3, 4, 5, 4), (5, 0, 2, 2)]
)
def test_a_region_that_is_empty_or_leaves_the_grid_is_refused_with_its_numbers(box):
    features = random_features(6, 8, 20)
    with pytest.raises(BoxError, match=rf"\({box[0]}, {box[1]}, .*8 x 6 cells"):
        pooling.region_vectors(features, torch.tensor([(0, 0, 8, 6), box]))


@pytest.mark.parametrize("name", pooling.POOLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_baseline_is_its_definition_on_random_maps_of_any_size(name, shape):
    features = random_features(*shape)
    vectors = pooling.POOLINGS[name](features)
    expected = [BASELINES[name](float64(image)) for image in features]
    np.testing.assert_allclose(float64(vectors), expected, atol=1e-5)


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_each_baseline_is_its_definition_on_a_real_photo(name):
    features = real_maps()["features"]
    vectors = pooling.POOLINGS[name](features)
    expected = [BASELINES[name](float64(image)) for image in features]
    np.testing.assert_allclose(float64(vectors), expected, atol=1e-5)


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_each_baseline_gives_zeros_for_features_that_are_all_zero(name):
    assert torch.equal(pooling.POOLINGS[name](torch.zeros(2, 6, 5, 4)), torch.zeros(2, 6))


def test_each_baseline_has_a_reference():
    assert set(BASELINES) == set(pooling.POOLINGS)


def test_crow_spatial_weights_are_the_root_of_the_normalised_sum():
    features = real_maps()["features"]
    weights = pooling.crow_spatial_weights(features)
    expected = [reference_crow_spatial(float64(image)) for image in features]
    np.testing.assert_allclose(float64(weights), expected, atol=1e-5)


def test_the_centre_prior_of_spoc_falls_to_exp_of_minus_4_and_a_half_at_the_closest_border():
    # One channel a cell: the vector is the prior itself. 3 sigma = distance to the border.
    features = torch.eye(9).view(1, 9, 1, 9).repeat(1, 1, 9, 1)
    prior = pooling.spoc(features)[0]
    assert prior.argmax() == 4
    assert torch.isclose(prior[8] / prior[4], torch.tensor(np.exp(-(4**2) / (2 * 1.5**2))).float())


def test_rmac_whitens_the_regions_before_it_sums_them():
    features = real_maps()["features"]
    half = pooling.rmac(features, whiten=lambda regions: pooling.l2_normalize(regions[..., :40]))
    regions = [
        reference_max(float64(features[0]), box)[:40]
        for box in rmac_boxes(*features.shape[2:]).tolist()
    ]
    expected = unit(sum(unit(region) for region in regions))
    np.testing.assert_allclose(float64(half[0]), expected, atol=1e-5)


def test_gem_of_power_1_is_the_plain_sum_and_of_a_large_power_nearly_the_maximum():
    features = random_features(6, 8, 20)
    assert torch.allclose(pooling.gem(features, 1.0), pooling.raw_sum(features), atol=1e-6)
    assert torch.allclose(pooling.gem(features, 60.0), pooling.mac(features), atol=0.05)


def test_l2_normalize_gives_unit_vectors_along_the_dimension_asked_for_and_keeps_zeros():
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert torch.equal(pooling.l2_normalize(x, dim=0), torch.tensor([[0.6, 0.0], [0.8, 0.0]]))


def test_pooling_leaves_the_features_as_they_were():
    features = random_features(6, 8, 20)
    before = features.clone()
    pooling.class_vectors(features, random_class_maps(features))
    pooling.region_vectors(features, grid_boxes(6, 8, (1, 2)))
    for pool in pooling.POOLINGS.values():
        pool(features)
    assert torch.equal(features, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_vectors_and_keeps_them_there():
    real = real_maps()
    maps = class_activation_maps(real["class_source"].cuda(), real["weights"].cuda())
    features = real["features"].cuda()
    boxes = grid_boxes(*features.shape[2:], (1, 2, 4))
    expected = pooling.class_vectors(
        real["features"], class_activation_maps(real["class_source"], real["weights"])
    )
    vectors = pooling.class_vectors(features, maps)
    assert vectors.is_cuda
    assert torch.allclose(vectors.cpu(), expected, atol=1e-5)
    regions = pooling.region_vectors(features, boxes.cuda())
    assert torch.equal(
        regions.cpu().argmax(2), pooling.region_vectors(real["features"], boxes).argmax(2)
    )
    for name, pool in pooling.POOLINGS.items():
        assert torch.allclose(pool(features).cpu(), pool(real["features"]), atol=1e-5), name
