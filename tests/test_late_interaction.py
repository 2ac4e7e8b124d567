from __future__ import annotations

import numpy as np
import pytest

from cwf_milvus.errors import SettingsError
from cwf_milvus.rerank import late_interaction


def units(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def reference(query: np.ndarray, hit: np.ndarray) -> float:
    """The definition, in float64: for each of the query's vectors its best cosine, averaged."""
    counted = [vector.astype(np.float64) for vector in query if vector.any()]
    if not counted or not len(hit):
        return 0.0
    return sum(max(float(q @ v.astype(np.float64)) for v in hit) for q in counted) / len(counted)


def test_the_score_is_the_mean_of_the_best_cosines():
    query, hits = units(7, 32), units(20, 9, 32, seed=1)
    found = late_interaction(query, hits)
    np.testing.assert_allclose(found.scores, [reference(query, hit) for hit in hits], atol=1e-5)


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
