from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_encoders import crops, network_built_once, tiny
from stage_hits import hit, hits, names, query

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.encode.encoding import Vectors
from cwf_milvus.errors import SettingsError
from cwf_milvus.rerank import ClassMatched, Context, Online
from cwf_milvus.store.packing import fields_needed, pack_vectors, read_vectors


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def by_class(ids: np.ndarray, vectors: np.ndarray) -> dict[int, np.ndarray]:
    return dict(zip(ids.tolist(), vectors.astype(np.float64), strict=True))


def reference_online(asked: Query, one: Hit, n: int) -> float:
    mine = by_class(asked.encoding.class_ids[:n], asked.encoding.class_vectors[:n])
    own = by_class(one.vectors.class_ids, one.vectors.class_vectors)
    shared = [own[c] for c in mine if c in own] or list(own.values())
    return float(unit(sum(shared)) @ unit(sum(mine.values())))


@pytest.mark.parametrize("n", [2, 6])
def test_online_sums_the_querys_classes_of_each_hit(n: int):
    asked, before = query(), hits()
    found = Online(n)(asked, before, Context())
    expected = {one.uri: reference_online(asked, one, n) for one in before}
    assert names(found) == sorted(expected, key=lambda uri: -expected[uri])
    np.testing.assert_allclose(
        [h.score for h in found], [expected[h.uri] for h in found], atol=1e-5
    )


def test_a_hit_with_none_of_the_querys_classes_keeps_its_offline_descriptor():
    asked, own = query(), hit("a", 1.0, seed=3)
    others = np.setdiff1d(np.arange(100, 120), asked.encoding.class_ids)[:4]
    own = replace(own, vectors=replace(own.vectors, class_ids=others))
    (found,) = Online()(asked, [own], Context())
    offline = unit(own.vectors.class_vectors.astype(np.float64).sum(axis=0))
    target = unit(asked.encoding.class_vectors.astype(np.float64).sum(axis=0))
    assert found.score == pytest.approx(float(offline @ target), abs=1e-5)


def test_class_matched_is_the_mean_cosine_of_equal_classes():
    asked, before = query(), hits()
    found = ClassMatched()(asked, before, Context())
    mine = by_class(asked.encoding.class_ids, asked.encoding.class_vectors)
    for one in found:
        own = by_class(one.vectors.class_ids, one.vectors.class_vectors)
        cosines = [float(mine[c] @ own[c]) for c in mine if c in own]
        expected = sum(cosines) / len(cosines) if cosines else 0.0
        assert one.score == pytest.approx(expected, abs=1e-5)


def stored_as(vectors, precision):
    dim = vectors.shape[1]
    texts = pack_vectors(vectors, fields_needed(len(vectors), dim, precision), precision)
    return read_vectors(texts, dim, precision)


@pytest.mark.parametrize("stage", [Online(), ClassMatched()])
def test_hits_may_store_different_numbers_of_classes_or_none(stage):
    before = [hit(f"hit{i}", 1 - i / 10, seed=i, n_classes=n) for i, n in enumerate((3, 0, 7, 1))]
    found = stage(query(), before, Context())
    assert found[1].uri == "hit1"
    assert "no class vectors" in found[1].note
    rest = [one.score for one in found if one.uri != "hit1"]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("stage", [Online(), ClassMatched()])
def test_no_hits_or_hits_without_vectors_stay_as_they_are(stage):
    assert stage(query(), [], Context()) == []
    bare = [replace(one, vectors=None) for one in hits(3)]
    assert names(stage(query(), bare, Context())) == ["hit0", "hit1", "hit2"]


def test_at_least_one_class_is_asked_for():
    with pytest.raises(SettingsError, match="n_classes=0"):
        Online(0)


@pytest.mark.parametrize(("precision", "atol"), [("float16", 1e-3), ("int8", 4e-3)])
def test_with_all_classes_stored_it_equals_aggregating_anew_from_the_images(precision, atol):
    n_all, n = 1000, 6
    with network_built_once():
        whole = tiny(n_classes=n_all, n_pooled=16, whitening=None)
        photos = whole.encode(crops(4))
    asked, stored = photos[0], photos[1:]
    wanted = asked.class_ids[:n]
    before = [
        Hit(
            str(i),
            0.0,
            vectors=Vectors(
                "", one.class_ids, class_vectors=stored_as(one.class_vectors, precision)
            ),
        )
        for i, one in enumerate(stored)
    ]
    found = {h.uri: h.score for h in Online(n)(Query(asked, "q"), before, Context())}
    target = unit(asked.class_vectors[:n].astype(np.float64).sum(axis=0))
    with network_built_once():
        of_these = tiny(classes=tuple(wanted.tolist()), n_classes=n, whitening=None)
        anew = of_these.encode(crops(4))[1:]
    for i, one in enumerate(anew):
        assert set(one.class_ids.tolist()) == set(wanted.tolist())
        descriptor = unit(one.class_vectors.astype(np.float64).sum(axis=0))
        assert found[str(i)] == pytest.approx(float(descriptor @ target), abs=atol)
