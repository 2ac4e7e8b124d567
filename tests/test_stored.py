from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from stage_hits import DIM, hit, hits, names, query

from cwf_milvus.answers.hits import Match, Matches
from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.rerank import Classes, Context, Regions, Stage
from cwf_milvus.search.choose import chosen_stages, run_stages
from cwf_milvus.search.stage import reranked


def max_sim(asked: np.ndarray, stored: np.ndarray) -> float:
    best = (asked.astype(np.float64) @ stored.astype(np.float64).T).max(axis=1)
    return float((np.maximum(best, 0) ** 2).mean())


def test_regions_orders_by_late_interaction_of_the_region_vectors():
    asked, before = query(), hits()
    found = Regions()(asked, before, Context())
    expected = {
        one.uri: max_sim(asked.encoding.region_vectors, one.vectors.region_vectors)
        for one in before
    }
    assert names(found) == sorted(expected, key=lambda uri: -expected[uri])
    np.testing.assert_allclose(
        [h.score for h in found], [expected[h.uri] for h in found], atol=1e-5
    )


def test_classes_orders_by_late_interaction_of_the_class_vectors():
    asked, before = query(), hits()
    found = Classes()(asked, before, Context())
    expected = {
        one.uri: max_sim(asked.encoding.class_vectors, one.vectors.class_vectors) for one in before
    }
    assert names(found) == sorted(expected, key=lambda uri: -expected[uri])
    np.testing.assert_allclose(
        [h.score for h in found], [expected[h.uri] for h in found], atol=1e-5
    )


def test_the_fused_score_is_the_weighted_sum_of_regions_classes_and_descriptor():
    asked, before = query(), hits()
    found = Regions(class_weight=0.3, descriptor_weight=0.2)(asked, before, Context())
    for one in found:
        first = next(h for h in before if h.uri == one.uri)
        of_regions = max_sim(asked.encoding.region_vectors, one.vectors.region_vectors)
        of_classes = max_sim(asked.encoding.class_vectors, one.vectors.class_vectors)
        mixed = 0.7 * of_regions + 0.3 * of_classes
        assert one.score == pytest.approx(0.8 * mixed + 0.2 * first.score, abs=1e-5)


def test_classes_by_name_are_fused_with_the_descriptor():
    asked, before = query(), hits()
    (stage,) = chosen_stages("classes")
    for one in stage(asked, before, Context()):
        first = next(h for h in before if h.uri == one.uri)
        of_classes = max_sim(asked.encoding.class_vectors, one.vectors.class_vectors)
        assert one.score == pytest.approx(0.7 * of_classes + 0.3 * first.score, abs=1e-5)


def test_class_vectors_are_read_only_where_they_count():
    assert Regions().needed == ("regions",)
    assert set(Regions(class_weight=0.2).needed) == {"regions", "classes"}
    assert Classes().needed == ("classes",)


def test_the_box_is_the_region_most_like_the_querys_largest_one():
    asked = query()
    own = hit("a", 1.0, seed=3, n_regions=4)
    stored = own.vectors.region_vectors.copy()
    boxes = asked.encoding.region_boxes
    largest = np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    stored[2] = asked.encoding.region_vectors[largest]
    own = replace(own, vectors=replace(own.vectors, region_vectors=stored))
    (found,) = Regions()(asked, [own], Context())
    assert found.box == Box(*own.vectors.region_boxes[2].tolist())


def test_matches_name_the_regions_that_answer_to_each_other():
    asked, own = query(), hit("a", 1.0, seed=3)
    (found,) = Regions()(asked, [own], Context())
    cosines = asked.encoding.region_vectors @ own.vectors.region_vectors.T
    q, v = np.unravel_index(cosines.argmax(), cosines.shape)
    assert found.matches[0].cosine == pytest.approx(float(cosines.max()), abs=1e-5)
    assert found.matches[0].query == Box(*asked.encoding.region_boxes[q].tolist())
    assert found.matches[0].hit == Box(*own.vectors.region_boxes[v].tolist())
    assert [m.cosine for m in found.matches] == sorted(m.cosine for m in found.matches)[::-1]


def test_classes_names_the_classes_that_answered():
    asked, own = query(), hit("a", 1.0, seed=3)
    (found,) = Classes()(asked, [own], Context())
    cosines = asked.encoding.class_vectors @ own.vectors.class_vectors.T
    v = int(cosines.max(axis=0).argmax())
    assert found.classes[0] == f"class {own.vectors.class_ids[v]}"
    assert found.box is None


def test_each_stage_is_recorded_with_its_score_and_rank():
    found = Regions()(query(), hits(), Context())
    assert [one.stages[-1].rank for one in found] == list(range(1, 9))
    assert all(one.stages[-1].stage == "regions" for one in found)
    assert all(one.stages[-1].score == one.score for one in found)
    assert all(len(one.stages) == 2 for one in found)


def test_equal_scores_keep_their_order():
    same = [replace(hit("x", 0.5, seed=5), uri=f"hit{i}") for i in range(6)]
    assert names(Regions()(query(), same, Context())) == [f"hit{i}" for i in range(6)]


@pytest.mark.parametrize("stage", [Regions(), Classes()])
def test_a_hit_without_vectors_keeps_its_place_and_says_so(stage: Stage):
    before = hits()
    bare = replace(
        before[2].vectors,
        class_ids=np.zeros(0, np.int64),
        class_vectors=np.zeros((0, DIM), np.float32),
        region_boxes=np.zeros((0, 4), np.float32),
        region_vectors=np.zeros((0, DIM), np.float32),
    )
    before[2] = replace(before[2], vectors=bare)
    found = stage(query(), before, Context())
    assert found[2].uri == "hit2"
    assert found[2].score == before[2].score
    assert "stored" in found[2].note
    assert len(found[2].stages) == 1
    rest = [one.score for one in found if one.uri != "hit2"]
    assert rest == sorted(rest, reverse=True)


def test_hits_deleted_in_between_have_no_vectors_and_keep_their_place():
    before = [replace(one, vectors=None) for one in hits(3)]
    assert names(Regions()(query(), before, Context())) == ["hit0", "hit1", "hit2"]


@pytest.mark.parametrize("stage", [Regions(), Classes()])
def test_no_hits_stay_no_hits(stage: Stage):
    assert stage(query(), [], Context()) == []


@pytest.mark.parametrize(
    "weights",
    [
        {"class_weight": 1.5},
        {"class_weight": -0.1},
        {"descriptor_weight": float("nan")},
        {"class_weight": 0.6, "descriptor_weight": 0.6},
        {"class_weight": "0.2"},
    ],
)
def test_weights_that_cannot_be_are_refused(weights: dict[str, float]):
    with pytest.raises(SettingsError, match="give a number from 0 to 1"):
        Regions(**weights)


def test_hits_without_a_score_stay_where_they_are_and_the_rest_is_ordered_around_them():
    scores = np.array([0.1, np.nan, 0.9, 0.5, np.nan])
    found = reranked("stage", hits(5), scores, why_not=lambda i: f"no {i}")
    assert names(found) == ["hit2", "hit1", "hit3", "hit0", "hit4"]
    assert found[1].note == "stage: no 1; it kept its place"


def test_a_region_vector_of_a_hit_is_found_by_itself():
    asked = query()
    same = hit("same", 0.1, seed=50)
    same = replace(
        same,
        vectors=replace(
            same.vectors,
            region_vectors=asked.encoding.region_vectors,
            region_boxes=asked.encoding.region_boxes,
        ),
    )
    found = Regions()(asked, [*hits(), same], Context())
    assert found[0].uri == "same"
    assert found[0].score == pytest.approx(1, abs=1e-5)


def test_matches_are_made_when_looked_at_and_are_a_sequence_like_any_other():
    asked = [Box(0, 0, 4, 4), Box(1, 1, 2, 2)]
    own = np.array([[5, 5, 9, 9], [6, 6, 7, 7]], np.float32)
    matches = Matches(asked, own, [(1, 0, 0.9), (0, 1, 0.5)])
    expected = (
        Match(Box(1, 1, 2, 2), Box(5, 5, 9, 9), 0.9),
        Match(Box(0, 0, 4, 4), Box(6, 6, 7, 7), 0.5),
    )
    assert (len(matches), matches[-1], tuple(matches[:1])) == (2, expected[1], expected[:1])
    assert matches == expected
    assert matches != expected[:1]
    assert pickle.loads(pickle.dumps(matches)) == expected
    assert repr(matches) == repr(tuple(matches))


class _Reversed(Stage):
    """Puts the hits in the opposite order, as an expansion may do with any one of them."""

    name = "reversed"

    def __call__(self, query, hits, context):
        return reranked(self.name, hits, np.arange(len(hits), dtype=float))


def test_a_photo_is_the_first_hit_for_itself_whatever_the_stages():
    before = [replace(hit("own", 2.0, seed=1, content="own")), *hits(4)]
    (found,) = run_stages([_Reversed()], [query(content="own")], [before], Context(), 10)
    assert names(found) == ["own", "hit3", "hit2", "hit1", "hit0"]
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    (other,) = run_stages([_Reversed()], [query(content="")], [before], Context(), 10)
    assert names(other)[-1] == "own"


@pytest.mark.parametrize("stage", [Regions, Classes])
def test_a_power_of_one_gives_the_mean_of_the_cosines_and_less_is_refused(stage):
    asked, own = query(), hit("a", 1.0, seed=3)
    kind = "region_vectors" if stage is Regions else "class_vectors"
    cosines = getattr(asked.encoding, kind) @ getattr(own.vectors, kind).T
    (found,) = stage(power=1)(asked, [own], Context())
    assert found.score == pytest.approx(float(cosines.max(axis=1).mean()), abs=1e-5)
    with pytest.raises(SettingsError, match=r"power=0\.5"):
        stage(power=0.5)
