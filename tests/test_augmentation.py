from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from photo_collection import collection, encoder, encodings, is_cat, photo

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.rerank import Regions
from cwf_milvus.search.search import search_queries


@pytest.fixture
def photos(tmp_path) -> Iterator[InstanceCollection]:
    with collection(tmp_path / "photos.db", n=10) as made:
        yield made


def stored(photos: InstanceCollection) -> dict[str, np.ndarray]:
    rows = photos.store.scan(f"{photos.name}_augmented", "uri", ["descriptor"])
    return {row["uri"]: np.array(row["descriptor"], np.float64) for row in rows}


def reference(photos: InstanceCollection, n: int, alpha: float) -> dict[str, np.ndarray]:
    """The definition, in float64: the n nearest others, each with its cosine to the power alpha."""
    own = {
        row.uri: row.unpack().descriptor.astype(np.float64)
        for row in photos.get(list(photos.uris()), vectors=True)
    }
    augmented = {}
    for uri, vector in own.items():
        near = sorted((u for u in own if u != uri), key=lambda u: -float(own[u] @ vector))[:n]
        total = vector + sum(max(0.0, float(own[u] @ vector)) ** alpha * own[u] for u in near)
        augmented[uri] = total / np.linalg.norm(total)
    return augmented


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for uri, vector in expected.items():
        np.testing.assert_allclose(found[uri], vector, atol=1e-5)


@pytest.mark.parametrize(("neighbours", "alpha"), [(3, 3.0), (1, 0.0), (50, 1.0)])
def test_each_descriptor_becomes_the_weighted_sum_over_its_neighbours(photos, neighbours, alpha):
    outcome = photos.augment(neighbours=neighbours, alpha=alpha)
    assert outcome.added == 10
    assert_same(stored(photos), reference(photos, neighbours, alpha))


def test_the_stored_descriptors_are_not_touched_and_it_can_be_undone(photos):
    before = {row.uri: row.checksum for row in photos.get(list(photos.uris()))}
    photos.augment(neighbours=3)
    assert {row.uri: row.checksum for row in photos.get(list(photos.uris()))} == before
    assert photos.verify().ok
    assert photos.undo_augmentation()
    assert not photos.undo_augmentation()
    with pytest.raises(CollectionError, match="no augmented descriptors"):
        photos.search(photo("chelsea.png"), augmented=True)


def test_a_second_run_does_only_what_is_new_and_ends_in_the_same(photos):
    photos.augment(neighbours=3)
    again = photos.augment(neighbours=3)
    assert (again.added, again.renewed, again.unchanged) == (0, 0, 10)
    photos.upsert(list(encodings()[10:13]))
    more = photos.augment(neighbours=3)
    assert more.added == 3
    assert more.unchanged + more.renewed == 10
    assert_same(stored(photos), reference(photos, 3, 3.0))


def test_a_changed_photo_is_done_anew(photos):
    photos.augment(neighbours=2)
    photos.upsert([replace(encodings()[15], uri=encodings()[0].uri)])
    assert photos.augment(neighbours=2).renewed >= 1
    assert_same(
        {u: v for u, v in stored(photos).items() if u == encodings()[0].uri},
        {encodings()[0].uri: reference(photos, 2, 3.0)[encodings()[0].uri]},
    )


def test_other_numbers_do_all_anew(photos):
    photos.augment(neighbours=2)
    assert photos.augment(neighbours=4).renewed == 10
    assert_same(stored(photos), reference(photos, 4, 3.0))


def test_removed_photos_leave_it_too(photos):
    photos.augment(neighbours=2)
    photos.remove([encodings()[0].uri])
    query = Query(encodings()[1], "q")
    (hits,) = search_queries(photos, [query], limit=50, filter=None, augmented=True)
    assert encodings()[0].uri not in [hit.uri for hit in hits]
    assert photos.augment(neighbours=2).removed == 1
    assert len(stored(photos)) == 9


def test_augmented_search_ranks_by_the_augmented_descriptors_and_stages_go_on(photos):
    photos.augment(neighbours=3)
    query = Query(encodings()[0], "q")
    (hits,) = search_queries(photos, [query], limit=50, filter=None, augmented=True)
    scores = {u: float(v @ query.encoding.descriptor) for u, v in stored(photos).items()}
    np.testing.assert_allclose([h.score for h in hits], sorted(scores.values())[::-1], atol=1e-5)
    (again,) = search_queries(
        photos, [query], limit=5, filter=None, augmented=True, stages=[Regions()]
    )
    assert again[0].uri == encodings()[0].uri


def test_filters_work_on_augmented_searches(photos):
    photos.augment(neighbours=3)
    query = Query(encodings()[0], "q")
    (hits,) = search_queries(photos, [query], limit=50, filter="place < 4", augmented=True)
    assert sorted(hit.metadata["place"] for hit in hits) == [0, 1, 2, 3]


def test_dropping_a_collection_drops_it_too(photos):
    photos.augment(neighbours=1)
    client = photos.store
    names = set(client.call("list_collections"))
    assert "photos_augmented" in names
    photos.drop()
    with InstanceCollection.create(client.uri, "other", encoder()) as other:
        assert "photos_augmented" not in other.store.call("list_collections")


def test_an_empty_collection_is_augmented_to_nothing(tmp_path):
    with collection(tmp_path / "empty.db", n=0) as photos:
        assert str(photos.augment()) == "0 added, 0 renewed, 0 removed, 0 unchanged"
        query = Query(encodings()[0], "q")
        assert len(search_queries(photos, [query], limit=5, filter=None, augmented=True)[0]) == 0


def test_views_of_a_thing_are_drawn_together(tmp_path):
    with collection(tmp_path / "photos.db") as photos:
        photos.augment(neighbours=3)
        hits = photos.search(photo("chelsea.png"), limit=5, augmented=True)
    assert sum(is_cat(hit.uri) for hit in hits) >= 4


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"neighbours": 1.5}, {"alpha": -1}])
def test_numbers_that_cannot_be_are_refused(photos, options):
    with pytest.raises(SettingsError, match="give"):
        photos.augment(**options)
