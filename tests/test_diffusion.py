from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.diffusion import (
    affinities,
    changed_photos,
    diffusion_rows,
    fused,
    largest,
    nearest_edges,
    normalised,
    seed_weights,
    verified,
)


def similarities(n: int, density: float = 0.5, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    s = np.triu(rng.random((n, n)) * (rng.random((n, n)) < density), 1)
    return sparse.csr_array(s + s.T)


def walk(s: sparse.sparray, k: int = 3) -> sparse.csr_array:
    return normalised(affinities(nearest_edges(s, k), k))


def reference_walk(s: np.ndarray, k: int, gamma: float) -> np.ndarray:
    """The definition, in float64 and loops."""
    n = len(s)
    nearest = [
        [j for j in sorted(range(n), key=lambda j: -s[i, j]) if s[i, j] > 0 and i != j][:k]
        for i in range(n)
    ]
    a = np.zeros((n, n))
    for i in range(n):
        for j in nearest[i]:
            sigma = [s[photo, nearest[photo][-1]] for photo in (i, j)]
            a[i, j] = a[j, i] = (s[i, j] / (sigma[0] * sigma[1]) ** 0.5) ** gamma
    degrees = a.sum(axis=1)
    return np.array(
        [
            [a[i, j] and a[i, j] / (degrees[i] * degrees[j]) ** 0.5 for j in range(n)]
            for i in range(n)
        ]
    )


def inverse(w: sparse.csr_array, alpha: float = 0.8) -> np.ndarray:
    return np.linalg.inv(np.eye(w.shape[0]) - alpha * w.toarray())


@pytest.mark.parametrize(("k", "gamma"), [(1, 3.0), (4, 2.0), (100, 1.0)])
def test_the_walk_follows_its_definition(k, gamma):
    s = similarities(25)
    found = normalised(affinities(nearest_edges(s, k), k, gamma))
    np.testing.assert_allclose(found.toarray(), reference_walk(s.toarray(), k, gamma), atol=1e-12)


def test_the_diagonal_is_not_looked_at():
    s = similarities(10)
    with_self = s + sparse.eye_array(10, format="csr")
    np.testing.assert_array_equal(walk(with_self).toarray(), walk(s).toarray())


@pytest.mark.parametrize("alpha", [0, 0.5, 0.8, 0.95])
def test_rows_are_those_of_the_inverse(alpha):
    w = walk(similarities(60, 0.2))
    found = diffusion_rows(w, np.arange(60), alpha, kept=60).toarray()
    np.testing.assert_allclose(found, inverse(w, alpha), atol=5e-3 / (1 - alpha))


def test_rows_may_be_computed_one_by_one_and_in_any_order():
    w = walk(similarities(30))
    every = diffusion_rows(w, np.arange(30)).toarray()
    some = diffusion_rows(w, np.array([7, 3])).toarray()
    np.testing.assert_allclose(some, every[[7, 3]], atol=1e-12)


def test_a_row_keeps_its_largest_entries():
    w = walk(similarities(40))
    every, cut = (diffusion_rows(w, np.arange(40), kept=n).toarray() for n in (40, 5))
    assert ((cut > 0).sum(axis=1) == 5).all()
    for whole, row in zip(every, cut, strict=True):
        np.testing.assert_array_equal(np.sort(row[row > 0]), np.sort(whole)[-5:])


def test_a_row_has_nothing_to_do_with_photos_out_of_reach():
    """Two halves of a collection without an edge between them."""
    half = similarities(20)
    both = sparse.block_diag([half, half], format="csr")
    rows = diffusion_rows(walk(both), np.arange(40)).toarray()
    assert not rows[:20, 20:].any()
    np.testing.assert_array_equal(rows[:20, :20], rows[20:, 20:])


def test_a_photo_without_edges_reaches_itself_alone():
    s = similarities(6).toarray()
    s[2] = s[:, 2] = 0
    rows = diffusion_rows(walk(sparse.csr_array(s)), np.arange(6)).toarray()
    assert rows[2].tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("n", [0, 1])
def test_a_collection_of_none_or_one_photo_has_a_graph(n):
    w = walk(sparse.csr_array((n, n)))
    assert diffusion_rows(w, np.arange(n)).toarray().tolist() == [[1.0]] * n


def test_photos_that_are_all_equal_are_equally_near():
    n = 12
    s = sparse.csr_array(np.ones((n, n)))
    rows = diffusion_rows(walk(s, n), np.arange(n)).toarray()
    others = rows[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(others, others[0])
    assert np.isfinite(diffusion_rows(walk(s, 3), np.arange(n)).toarray()).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1])
def test_similarities_that_cannot_be_are_refused(wrong):
    s = similarities(5).toarray()
    s[1, 3] = s[3, 1] = wrong
    with pytest.raises(SettingsError, match="negative or not finite"):
        nearest_edges(sparse.csr_array(s))


def test_similarities_of_one_direction_are_refused():
    with pytest.raises(SettingsError, match="not symmetric"):
        nearest_edges(sparse.csr_array(np.triu(np.ones((4, 4)))))
    with pytest.raises(SettingsError, match="shape"):
        nearest_edges(sparse.csr_array((4, 5)))


@pytest.mark.parametrize("alpha", [-0.1, 1, 1.5, float("nan")])
def test_an_alpha_that_does_not_converge_is_refused(alpha):
    with pytest.raises(SettingsError, match="alpha"):
        diffusion_rows(walk(similarities(5)), np.arange(5), alpha)


def test_a_count_below_one_is_refused():
    with pytest.raises(SettingsError, match="at least 1"):
        nearest_edges(similarities(5), 0)


def test_of_equal_entries_the_first_are_the_largest():
    found = largest(sparse.csr_array([[0.0, 2, 1, 2, 2], [0, 0, 0, 0, 0]]), 2).toarray()
    assert found.tolist() == [[0, 2, 0, 2, 0], [0, 0, 0, 0, 0]]


def test_edges_that_grow_are_those_of_all_at_once():
    every = similarities(30).toarray()
    first = np.zeros_like(every)
    first[:20, :20] = every[:20, :20]
    new = every - first
    grown = nearest_edges(nearest_edges(sparse.csr_array(first), 4) + sparse.csr_array(new), 4)
    np.testing.assert_array_equal(
        grown.toarray(), nearest_edges(sparse.csr_array(every), 4).toarray()
    )


def test_photos_with_other_edges_have_changed_and_no_others():
    s = similarities(8, 0.4).toarray()
    before = nearest_edges(sparse.csr_array(s[:7, :7]), 10)
    s[7] = s[:, 7] = 0
    s[7, 2] = s[2, 7] = 0.5
    s[4, 5] = s[5, 4] = 0.123
    found = changed_photos(before, nearest_edges(sparse.csr_array(s), 10))
    assert found.tolist() == [2, 4, 5, 7]
    assert before.shape == (7, 7)


def test_inliers_count_from_6_to_25():
    added = verified(np.full(5, 0.2), np.array([0, 5, 15, 25, 900], np.uint16))
    np.testing.assert_allclose(added, [0.2, 0.2, 0.25, 0.3, 0.3])


def test_the_best_hits_are_the_seeds_but_for_those_that_may_not():
    scores = np.array([0.1, np.nan, 0.5, 0.3, 0.5, -0.2])
    np.testing.assert_allclose(seed_weights(scores, 3, 2), [0, 0, 0.25, 0.09, 0.25, 0])
    assert seed_weights(scores, 10, 1).tolist() == [0.1, 0, 0.5, 0.3, 0.5, 0]
    assert seed_weights(np.zeros(0)).shape == (0,)


def test_photos_out_of_reach_follow_in_the_order_of_their_scores():
    found = fused(np.array([2.0, 0, 0.5, 0]), np.array([0.1, 0.4, 0, 0.2]))
    np.testing.assert_allclose(found, [1.025, 0.1, 0.25, 0.05])


def test_where_the_graph_reaches_nothing_the_scores_decide():
    assert fused(np.zeros(3), np.array([0.2, 0.4, 0])).argsort().tolist() == [2, 0, 1]
    assert not fused(np.zeros(2), np.zeros(2)).any()
    assert fused(np.zeros(0), np.zeros(0)).shape == (0,)
