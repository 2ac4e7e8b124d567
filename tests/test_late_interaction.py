from __future__ import annotations

import numpy as np
import pytest

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.int4 import Int4Vectors
from cwf_milvus.method.late_interaction import mutual_interaction
from cwf_milvus.rerank import late_interaction
from cwf_milvus.store.packing import pack_vectors, read_vectors


def units(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def reference(query: np.ndarray, hit: np.ndarray, power: int = 2) -> float:
    """The definition, in float64, vector by vector."""
    counted = [vector.astype(np.float64) for vector in query if vector.any()]
    if not counted or not len(hit):
        return 0.0
    best = [max(float(q @ v.astype(np.float64)) for v in hit) for q in counted]
    return sum(max(c, 0) ** power if power > 1 else c for c in best) / len(counted)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_score_is_the_mean_of_a_power_of_the_best_cosines(power):
    query, hits = units(7, 32), units(20, 9, 32, seed=1)
    found = late_interaction(query, hits, power)
    expected = [reference(query, hit, power) for hit in hits]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_squares_take_a_negative_cosine_for_none():
    vector = units(1, 8)
    assert late_interaction(vector, [-vector]).scores.tolist() == [0]
    np.testing.assert_allclose(late_interaction(vector, [-vector], power=1).scores, [-1], atol=1e-6)


def test_squares_put_one_good_answer_above_two_middling_ones():
    query = np.eye(2, dtype=np.float32)
    one_good = np.array([[0.9, 0.0]], np.float32)
    two_middling = np.array([[0.5, 0.5]], np.float32)
    squared = late_interaction(query, [one_good, two_middling]).scores
    plain = late_interaction(query, [one_good, two_middling], power=1).scores
    assert squared[0] > squared[1]
    assert plain[0] < plain[1]


@pytest.mark.parametrize("power", [0, 0.5, -2, float("nan"), float("inf"), True, "2"])
def test_a_power_below_one_is_refused(power):
    with pytest.raises(SettingsError, match="power"):
        late_interaction(units(2, 8), units(3, 2, 8), power)


def test_vectors_in_8_and_in_4_bits_score_nearly_as_in_float32():
    query, hits = units(7, 256), units(20, 9, 256, seed=1)
    hits += 2 * query[0]  # far from all cosines being noise
    hits /= np.linalg.norm(hits, axis=2, keepdims=True)
    exact = late_interaction(query, hits)
    in_int8 = [read_vectors(pack_vectors(hit, 1, "int8"), 256, "int8") for hit in hits]
    in_int4 = [Int4Vectors.of(hit) for hit in hits]
    for stored, tolerance in ((in_int8, 0.003), (in_int4, 0.03), ([*in_int4[:9], *hits[9:]], 0.03)):
        found = late_interaction(query, stored)
        np.testing.assert_allclose(found.cosines, exact.cosines, atol=tolerance)
        np.testing.assert_allclose(found.scores, exact.scores, atol=tolerance)


def test_two_photos_are_as_alike_in_either_order():
    photos = [units(n, 16, seed=n) for n in (3, 5, 3)]
    alike = np.array([mutual_interaction(photo, photos) for photo in photos])
    expected = [[(reference(a, b) + reference(b, a)) / 2 for b in photos] for a in photos]
    np.testing.assert_allclose(alike, expected, atol=1e-5)


def test_a_photo_without_vectors_is_like_no_other():
    nothing, photo = np.zeros((0, 16), np.float32), units(3, 16)
    assert mutual_interaction(nothing, [photo, nothing]).tolist() == [0, 0]
    assert mutual_interaction(photo, [nothing]).tolist() == [0]
    assert mutual_interaction(photo, []).shape == (0,)


def test_hits_may_have_different_numbers_of_vectors_or_none():
    query = units(5, 16)
    hits = [units(n, 16, seed=n) if n else np.zeros((0, 16), np.float32) for n in (3, 0, 1, 8, 0)]
    found = late_interaction(query, hits)
    np.testing.assert_allclose(found.scores, [reference(query, hit) for hit in hits], atol=1e-5)
    assert found.scores[1] == found.scores[4] == 0


def test_it_tells_which_vector_answers_to_which():
    query, hits = units(4, 16), [units(6, 16, seed=1), units(2, 16, seed=2)]
    found = late_interaction(query, hits)
    for i, hit in enumerate(hits):
        cosines = query.astype(np.float64) @ hit.astype(np.float64).T
        np.testing.assert_array_equal(found.matches[i], cosines.argmax(axis=1))
        np.testing.assert_allclose(found.cosines[i], cosines.max(axis=1), atol=1e-5)


def test_of_equal_vectors_the_first_answers():
    vector = units(1, 8)
    found = late_interaction(vector, [np.repeat(vector, 3, axis=0)])
    assert found.matches.tolist() == [[0]]


def test_zero_vectors_of_the_query_do_not_count():
    query = units(3, 8)
    with_zero = np.vstack([query, np.zeros((2, 8), np.float32)])
    hits = units(5, 4, 8, seed=3)
    np.testing.assert_allclose(
        late_interaction(with_zero, hits).scores, late_interaction(query, hits).scores, atol=1e-6
    )


def test_without_vectors_of_the_query_every_hit_scores_zero():
    hits = units(3, 4, 8)
    assert late_interaction(np.zeros((0, 8), np.float32), hits).scores.tolist() == [0, 0, 0]
    assert late_interaction(np.zeros((2, 8), np.float32), hits).scores.tolist() == [0, 0, 0]


def test_no_hits_give_no_scores():
    found = late_interaction(units(3, 8), [])
    assert found.scores.shape == (0,)
    assert found.matches.shape == (0, 3)


def test_other_dimensions_are_refused():
    with pytest.raises(SettingsError, match="8 dimensions, the hits' 16"):
        late_interaction(units(2, 8), units(3, 2, 16))
