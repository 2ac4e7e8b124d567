from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from stage_hits import DIM, hit, hits, names, query, units

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.expansion import (
    alpha_expand,
    local_expand,
    local_matches,
    query_expand,
    steer,
)
from cwf_milvus.rerank import Context, Regions
from cwf_milvus.search.expansion import AlphaExpansion, LocalExpansion, QueryExpansion


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def float64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)


def reference_local(
    asked: np.ndarray,
    stored: list[np.ndarray],
    scores: list[float],
    hits: int,
    per_hit: int,
    share: float,
    rounds: int,
) -> list[float]:
    """The definition, in float64 and loops."""
    now = list(scores)
    for extra in range(rounds):
        top = sorted(range(len(stored)), key=lambda i: -now[i])[: hits + extra]
        lent: list[tuple[int, np.ndarray]] = []
        for i in top:
            answer = [max(float64(q) @ float64(v) for q in asked) for v in stored[i]]
            best = sorted(range(len(answer)), key=lambda v: -answer[v])[:per_hit]
            lent += [(i, stored[i][v]) for v in best]
        found = []
        for i, vectors in enumerate(stored):
            squares = [
                max(0, *(float64(q) @ float64(v) for v in vectors)) ** 2
                for lender, q in lent
                if lender != i
            ]
            found.append(sum(squares) / len(squares) if squares else 0)
        most = max(found[i] for i in range(len(stored)) if i not in top)
        for i in top:
            found[i] = max(found[i], most)
        now = [(1 - share) * one + share * new for one, new in zip(scores, found, strict=True)]
    return now


# On arrays


def test_query_expansion_is_the_unit_sum_without_the_query():
    descriptors = units(4, 32)
    expected = unit(float64(descriptors).sum(axis=0))
    np.testing.assert_allclose(query_expand(descriptors), expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_alpha_expansion_weighs_each_by_its_cosine_and_holds_the_query(alpha: float):
    asked, descriptors = units(32), units(5, 32, seed=1)
    expected = float64(asked)
    for one in float64(descriptors):
        expected = expected + max(0.0, float(one @ float64(asked))) ** alpha * one
    np.testing.assert_allclose(
        alpha_expand(asked, descriptors, alpha=alpha), unit(expected), atol=1e-5
    )


def test_alpha_expansion_takes_scores_from_elsewhere():
    asked, descriptors, scores = units(8), units(3, 8, seed=1), np.array([0.9, -0.5, 0.1])
    expected = unit(float64(asked) + 0.9**3 * descriptors[0] + 0.1**3 * descriptors[2])
    np.testing.assert_allclose(alpha_expand(asked, descriptors, scores), expected, atol=1e-5)
    with pytest.raises(SettingsError, match="2 scores for 3 descriptors"):
        alpha_expand(asked, descriptors, scores[:2])


def test_nothing_to_expand_with_is_refused():
    with pytest.raises(SettingsError, match="nothing to expand"):
        query_expand(np.zeros((0, 8), np.float32))
    with pytest.raises(SettingsError, match="sum to 0"):
        query_expand(np.stack([units(8), -units(8)]))


def test_steering_is_the_mean_of_the_liked_less_half_that_of_the_unliked():
    like, unlike = units(3, 16), units(2, 16, seed=1)
    expected = unit(float64(like).mean(axis=0) - 0.5 * float64(unlike).mean(axis=0))
    np.testing.assert_allclose(steer(like, unlike), expected, atol=1e-5)
    np.testing.assert_allclose(steer(like), unit(float64(like).mean(axis=0)), atol=1e-5)


@pytest.mark.parametrize(("hits_", "per_hit", "share", "rounds"), [(2, 3, 0.7, 2), (1, 9, 0.4, 1)])
def test_local_expansion_follows_its_definition(
    hits_: int, per_hit: int, share: float, rounds: int
):
    asked = units(5, DIM)
    stored = [units(n, DIM, seed=n) for n in (3, 6, 4, 5, 2, 7)]
    scores = [0.9, 0.3, 0.8, 0.1, 0.5, 0.6]
    found = local_expand(
        asked, stored, np.array(scores), hits=hits_, per_hit=per_hit, share=share, rounds=rounds
    )
    expected = reference_local(asked, stored, scores, hits_, per_hit, share, rounds)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_vectors_lent_are_those_that_answer_best():
    asked, stored = units(2, 8), units(10, 8, seed=1)
    best = np.argsort(-(stored @ asked.T).max(axis=1))[:3]
    np.testing.assert_array_equal(local_matches(asked, [stored], 3), stored[best])
    assert local_matches(asked, [], 3).shape == (0, 8)


def test_candidates_that_may_not_lend_make_place_for_the_next():
    asked, stored = units(4, 8), [units(3, 8, seed=n) for n in range(4)]
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    without = local_expand(
        asked,
        stored,
        scores,
        hits=1,
        per_hit=3,
        share=1.0,
        lends=[False, True, True, True],
    )
    second = [
        [max(0, *(float64(q) @ float64(v) for v in own)) ** 2 for q in stored[1]] for own in stored
    ]
    expected = np.mean(second, axis=1)
    expected[0] = scores[0]  # what may not lend keeps its score
    expected[1] = expected[2:].max()  # and what lent counts as much as the best of the others
    np.testing.assert_allclose(without, expected, atol=1e-5)


def test_what_lends_gains_no_score_by_its_own_vectors():
    asked = units(4, 64)
    stored = [units(6, 64, seed=n) for n in range(1, 9)]
    scores = np.linspace(0.1, 0.05, len(stored))
    found = local_expand(asked, stored, scores, hits=1, per_hit=6, share=0.7, rounds=2)
    assert found.max() < 0.2  # 0.7 / 2 and more, were it scored against itself
    assert found.argmax() == 0


# Stages


class Finder:
    """Answers a new search from a fixed list, and remembers what was asked."""

    def __init__(self, found: list[Hit]) -> None:
        self.found, self.calls = found, []

    def __call__(
        self, queries: Sequence[Query], descriptors: np.ndarray, n: int
    ) -> list[list[Hit]]:
        self.calls.append((len(queries), descriptors, n))
        return [self.found[:n] for _ in queries]


def test_qe_searches_anew_with_the_sum_of_the_first_hits():
    before, finder = hits(), Finder(hits(12)[::-1])
    found = QueryExpansion(3)(query(), before, Context(None, finder, depth=10))
    ((n_queries, descriptors, depth),) = finder.calls
    summed = sum(float64(one.vectors.descriptor) for one in before[:3])
    np.testing.assert_allclose(descriptors[0], unit(summed), atol=1e-5)
    assert (n_queries, depth) == (1, 10)
    assert names(found) == [f"hit{i}" for i in range(11, 1, -1)]
    assert [one.stages[-1].stage for one in found] == ["qe"] * 10


def test_aqe_has_the_query_in_the_sum():
    asked, before, finder = query(), hits(), Finder(hits())
    AlphaExpansion(4, alpha=2)(asked, before, Context(None, finder))
    expected = alpha_expand(
        asked.encoding.descriptor, np.stack([h.vectors.descriptor for h in before[:4]]), alpha=2
    )
    np.testing.assert_allclose(finder.calls[0][1][0], expected, atol=1e-6)


def test_after_re_ranking_the_re_ranked_order_is_summed():
    asked, before, finder = query(), hits(), Finder(hits())
    again = Regions()(asked, before, Context())
    assert names(again[:2]) != names(before[:2])
    QueryExpansion(2)(asked, again, Context(None, finder))
    summed = sum(float64(one.vectors.descriptor) for one in again[:2])
    np.testing.assert_allclose(finder.calls[0][1][0], unit(summed), atol=1e-5)


def test_a_hit_that_a_stage_gave_another_descriptor_lends_that_one():
    before, finder = hits(), Finder(hits())
    other = units(DIM, seed=99)
    before[0] = replace(before[0], vectors=replace(before[0].vectors, descriptor=other))
    QueryExpansion(1)(query(), before, Context(None, finder))
    np.testing.assert_allclose(finder.calls[0][1][0], other, atol=1e-5)


def test_hits_found_again_keep_what_earlier_stages_made_of_them():
    asked, before = query(), hits(4)
    again = Regions()(asked, before, Context())
    finder = Finder([*hits(4), hit("new", 0.1, seed=500)])
    found = AlphaExpansion(2)(asked, again, Context(None, finder))
    assert [stage.stage for stage in found[0].stages] == ["descriptor", "regions", "aqe"]
    assert [stage.stage for stage in found[-1].stages] == ["aqe"]
    assert found[0].box is not None


def test_several_queries_are_expanded_in_one_new_search():
    finder = Finder(hits())
    AlphaExpansion(3).run([query(), query(7)], [hits(), hits()], Context(None, finder))
    assert [n for n, _, _ in finder.calls] == [2]


def test_nothing_to_sum_leaves_the_hits_as_they_are():
    finder = Finder(hits())
    assert QueryExpansion(3)(query(), [], Context(None, finder)) == []
    blank = [
        replace(one, vectors=replace(one.vectors, descriptor=np.zeros(DIM, np.float32)))
        for one in hits(2)
    ]
    assert names(QueryExpansion(3)(query(), blank, Context(None, finder))) == ["hit0", "hit1"]
    assert finder.calls == []


def test_a_new_search_needs_a_collection():
    with pytest.raises(SettingsError, match="takes a collection"):
        QueryExpansion()(query(), hits(), Context())


def test_local_expansion_scores_the_re_ranked_hits_again():
    asked = query()
    again = Regions()(asked, hits(), Context())
    found = LocalExpansion(2, per_hit=2, share=0.6, rounds=2)(asked, again, Context())
    expected = reference_local(
        asked.encoding.region_vectors,
        [one.vectors.region_vectors for one in again],
        [one.score for one in again],
        2,
        2,
        0.6,
        2,
    )
    by_name = dict(zip(names(again), expected, strict=True))
    assert names(found) == sorted(by_name, key=lambda uri: -by_name[uri])
    np.testing.assert_allclose([h.score for h in found], [by_name[h.uri] for h in found], atol=1e-5)
    assert [s.stage for s in found[0].stages] == ["descriptor", "regions", "local"]


def test_the_querys_own_photo_lends_nothing():
    asked, before = query(content="own"), hits()
    own = replace(before[0], vectors=replace(before[0].vectors, content="own"))
    mine = LocalExpansion(1, rounds=1, share=1.0)(asked, [own, *before[1:]], Context())
    lent = before[1].vectors.region_vectors
    cosines = {h.uri: (lent @ h.vectors.region_vectors.T).max(axis=1) for h in before}
    best = {uri: (np.maximum(found, 0) ** 2).mean() for uri, found in cosines.items()}
    best[own.uri] = own.score
    best[before[1].uri] = max(best[one.uri] for one in before[2:])
    np.testing.assert_allclose([h.score for h in mine], [best[h.uri] for h in mine], atol=1e-5)


def test_local_expansion_may_use_class_vectors():
    stage = LocalExpansion(kind="classes")
    assert stage.needed == ("classes",)
    assert len(stage(query(), hits(), Context())) == 8


def test_local_expansion_leaves_hits_without_vectors_in_their_place():
    before = [replace(one, vectors=None) if i == 1 else one for i, one in enumerate(hits(4))]
    found = LocalExpansion()(query(), before, Context())
    assert found[1].uri == "hit1"
    assert "kept its place" in found[1].note


def test_local_expansion_of_no_hits_is_no_hits():
    assert LocalExpansion()(query(), [], Context()) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: QueryExpansion(0),
        lambda: AlphaExpansion(2.5),
        lambda: AlphaExpansion(alpha=-1),
        lambda: AlphaExpansion(alpha=float("nan")),
        lambda: LocalExpansion(share=1.1),
        lambda: LocalExpansion(rounds=0),
        lambda: LocalExpansion(per_hit=True),
        lambda: LocalExpansion(kind="descriptor"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make):
    with pytest.raises(SettingsError, match="give"):
        make()
