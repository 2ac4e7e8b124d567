from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_maps import float64, real_maps, unit
from torch import Tensor

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.aggregation import class_matched_scores, count_classes, offline, online
from cwf_milvus.method.cam import class_activation_maps, top_classes
from cwf_milvus.method.pooling import class_vectors, l2_normalize


def random_vectors(*shape: int, seed: int = 0) -> Tensor:
    return l2_normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def random_ids(images: int, n: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(classes, generator=generator)[:n] for _ in range(images)])


def reference_online(
    vectors: np.ndarray, ids: list[int], query_ids: list[int], fallback: np.ndarray
) -> np.ndarray:
    stored = dict(zip(ids, vectors, strict=True))
    shared = [stored[c] for c in query_ids if c in stored]
    return unit(sum(shared)) if shared else unit(fallback)


def reference_scores(
    query: np.ndarray, query_ids: list[int], vectors: np.ndarray, ids: list[int]
) -> float:
    stored = dict(zip(ids, vectors, strict=True))
    cosines = [
        float(vector @ stored[c])
        for c, vector in zip(query_ids, query, strict=True)
        if c in stored and stored[c].any() and vector.any()
    ]
    return sum(cosines) / len(cosines) if cosines else 0.0


def test_offline_aggregation_is_the_unit_sum():
    vectors = random_vectors(3, 7, 16)
    expected = [unit(sum(float64(image))) for image in vectors]
    np.testing.assert_allclose(float64(offline(vectors)), expected, atol=1e-5)


def test_offline_aggregation_of_a_real_photo_is_the_unit_sum_of_its_class_vectors():
    real = real_maps()
    maps = class_activation_maps(real["class_source"], real["weights"])
    vectors = class_vectors(real["features"], maps)
    expected = [unit(sum(float64(image))) for image in vectors]
    np.testing.assert_allclose(float64(offline(vectors)), expected, atol=1e-5)


def test_offline_aggregation_weighs_each_vector():
    vectors = random_vectors(2, 3, 8)
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 2.0]])
    expected = [
        unit(sum(w * v for w, v in zip(float64(weights[b]), float64(vectors[b]), strict=True)))
        for b in range(2)
    ]
    np.testing.assert_allclose(float64(offline(vectors, weights)), expected, atol=1e-5)


def test_zero_vectors_carry_no_weight_and_nothing_but_them_gives_zero():
    vectors = random_vectors(2, 3, 8)
    without = offline(vectors[:, :2])
    vectors[:, 2] = 0
    assert torch.allclose(offline(vectors), without)
    assert torch.equal(offline(torch.zeros(2, 3, 8)), torch.zeros(2, 8))


@pytest.mark.parametrize("asked", [1, 5, 40])
def test_online_aggregation_sums_the_stored_vectors_of_the_querys_classes(asked):
    vectors, ids = random_vectors(9, 6, 16), random_ids(9, 6, 40)
    query_ids = random_ids(1, asked, 40, seed=1)[0]
    fallback = random_vectors(9, 16, seed=2)
    result = online(vectors, ids, query_ids, fallback)
    for b in range(9):
        expected = reference_online(
            float64(vectors[b]), ids[b].tolist(), query_ids.tolist(), float64(fallback[b])
        )
        np.testing.assert_allclose(float64(result[b]), expected, atol=1e-5)


def test_online_aggregation_of_an_image_with_none_of_the_classes_is_its_fallback():
    vectors, ids = random_vectors(2, 3, 8), torch.tensor([[0, 1, 2], [3, 4, 5]])
    fallback = random_vectors(2, 8, seed=3)
    result = online(vectors, ids, torch.tensor([4, 9]), fallback)
    assert torch.allclose(result[0], fallback[0])
    assert torch.allclose(result[1], vectors[1, 1])


def test_online_aggregation_falls_back_where_the_shared_vectors_are_zero():
    fallback = random_vectors(1, 8)
    result = online(torch.zeros(1, 2, 8), torch.tensor([[0, 1]]), torch.tensor([0, 1]), fallback)
    assert torch.allclose(result, fallback)


def test_online_with_an_images_own_classes_is_its_offline_descriptor():
    vectors, ids = random_vectors(1, 6, 16), random_ids(1, 6, 40)
    result = online(vectors, ids, ids[0], torch.zeros(1, 16))
    assert torch.allclose(result, offline(vectors), atol=1e-6)


def test_class_matched_scores_are_the_mean_cosine_of_equal_classes():
    vectors, ids = random_vectors(30, 6, 16), random_ids(30, 6, 25)
    query, query_ids = random_vectors(5, 16, seed=4), random_ids(1, 5, 25, seed=5)[0]
    vectors[3] = 0
    query[2] = 0
    scores = class_matched_scores(query, query_ids, vectors, ids)
    for b in range(30):
        expected = reference_scores(
            float64(query), query_ids.tolist(), float64(vectors[b]), ids[b].tolist()
        )
        np.testing.assert_allclose(float(scores[b]), expected, atol=1e-5)


def test_class_matched_scores_of_a_real_photo_with_itself_are_1_and_with_another_lower():
    photos = [real_maps("chelsea"), real_maps("coffee", step=3)]
    query, other = [
        class_vectors(
            real["features"], class_activation_maps(real["class_source"], real["weights"])
        )[0]
        for real in photos
    ]
    ids = photos[0]["ids"][0]
    scores = class_matched_scores(query, ids, torch.stack([query, other]), ids.expand(2, -1))
    assert torch.isclose(scores[0], torch.tensor(1.0))
    assert scores[1] < 0.9


def test_class_matched_scores_are_0_where_no_class_is_shared():
    query = random_vectors(2, 8)
    scores = class_matched_scores(query, torch.tensor([1, 2]), query[None], torch.tensor([[3, 4]]))
    assert scores.tolist() == [0.0]


def test_zero_vectors_do_not_lower_a_class_matched_score():
    query = random_vectors(2, 8)
    ids = torch.tensor([1, 2])
    stored = query.clone()
    stored[1] = 0
    scores = class_matched_scores(query, ids, stored[None], ids[None])
    assert torch.isclose(scores[0], torch.tensor(1.0))


def test_classes_are_counted_by_how_many_queries_show_them():
    assert count_classes([[7, 1, 2], [1, 7], [1, 3]], 2) == [1, 7]


def test_equally_frequent_classes_come_by_mean_rank_and_then_by_id():
    assert count_classes([[5, 9, 4], [9, 5, 8]], 4) == [5, 9, 4, 8]
    assert count_classes([[5, 9], [3, 5, 9]], 3) == [5, 9, 3]


def test_counting_takes_lists_arrays_and_tensors_alike_and_gives_plain_ints():
    counted = count_classes([[3, 1], np.array([3, 2]), torch.tensor([3])], 1)
    assert counted == [3]
    assert type(counted[0]) is int


def test_fewer_classes_than_asked_for_are_all_given():
    assert count_classes([[2, 1]], 10) == [2, 1]


def test_counting_real_predictions_starts_with_a_class_that_all_photos_show():
    photos = [real_maps("chelsea", step) for step in (1, 2)]
    ids = [top_classes(real["logits"], 5)[0] for real in photos]
    counted = count_classes([row for rows in ids for row in rows], 5)
    assert all(counted[0] in row for rows in ids for row in rows)


@pytest.mark.parametrize(("lists", "n"), [([], 3), ([[1]], 0)])
def test_nothing_to_count_is_refused(lists, n):
    with pytest.raises(SettingsError, match="at least 1"):
        count_classes(lists, n)
