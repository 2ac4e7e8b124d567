from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from photo_collection import CAT, collection, encodings, is_cat, photo

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Hit, Query, shared_classes
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.kept import LastUsed
from cwf_milvus.errors import BoxError, CollectionError, FilterError, SettingsError
from cwf_milvus.rerank import Context, Regions, Stage, late_interaction
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.expansion import AlphaExpansion, LocalExpansion
from cwf_milvus.search.search import search_queries
from cwf_milvus.store.packing import pack_vectors, unpack_vectors


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Iterator[InstanceCollection]:
    with collection(tmp_path_factory.mktemp("search") / "photos.db") as made:
        yield made


def ask(name: str = "chelsea.png") -> Query:
    """A stored photo as a query, without encoding it again."""
    return Query(next(one for one in encodings() if one.uri == photo(name)), name)


def uris(hits: Sequence[Hit]) -> list[str]:
    return [hit.uri for hit in hits]


def one(photos: InstanceCollection, stages: Sequence[Stage] = (), **options) -> Hits:
    options = {"limit": 50, "filter": None, **options}
    return search_queries(photos, [options.pop("query", ask())], stages=stages, **options)[0]


# The first search


def test_a_box_on_a_photo_finds_the_thing_in_other_photos(photos):
    hits = photos.search(photo("chelsea.png"), box=CAT, limit=6, rerank="regions", expand="local")
    assert len(hits) == 6
    assert sum(is_cat(hit.uri) for hit in hits) >= 5
    assert photo("chelsea.png") in uris(hits[:2])
    assert [s.stage for s in hits[0].stages] == ["descriptor", "regions", "local"]


def test_several_queries_give_an_answer_each_in_their_order(photos):
    names = [photo("coffee.png"), photo("chelsea.png")]
    answers = photos.search(names, box=[None, CAT], limit=3, rerank="regions")
    assert [hits.query.name for hits in answers] == names
    assert [hits[0].uri for hits in answers] == names
    single = photos.search(names[1], box=CAT, limit=3, rerank="regions")
    assert uris(single) == uris(answers[1])
    np.testing.assert_allclose([h.score for h in single], [h.score for h in answers[1]], atol=1e-5)


def test_without_stages_the_order_is_that_of_the_descriptors(photos):
    hits = one(photos)
    expected = {e.uri: float(e.descriptor @ ask().encoding.descriptor) for e in encodings()}
    assert uris(hits) == sorted(expected, key=lambda uri: -expected[uri])
    np.testing.assert_allclose([h.score for h in hits], sorted(expected.values())[::-1], atol=1e-5)


def test_the_querys_own_photo_is_among_the_hits(photos):
    for stages in ([], [Regions()], [Regions(), LocalExpansion()], [AlphaExpansion(2)]):
        assert one(photos, stages)[0].uri == photo("chelsea.png")


# Stages


def test_regions_scores_what_milvus_stores(photos):
    hits = one(photos, [Regions()])
    stored = {
        e.uri: unpack_vectors(
            pack_vectors(e.region_vectors, 1, "int4"), e.region_vectors.shape[1], "int4"
        )
        for e in encodings()
    }
    asked = ask().encoding.region_vectors
    expected = dict(zip(stored, late_interaction(asked, list(stored.values())).scores, strict=True))
    assert uris(hits) == sorted(expected, key=lambda uri: -expected[uri])
    np.testing.assert_allclose([h.score for h in hits], [expected[h.uri] for h in hits], atol=1e-5)


def test_the_box_of_a_match_is_in_the_pixels_of_the_hit(photos):
    hits = photos.search(photo("chelsea.png"), box=CAT, limit=8, rerank="regions")
    for hit in hits:
        assert 0 <= hit.box.x1 < hit.box.x2 <= hit.width + 0.01
        assert 0 <= hit.box.y1 < hit.box.y2 <= hit.height + 0.01


def test_a_limit_beyond_the_candidates_goes_on_in_the_first_order(photos):
    first = one(photos)
    hits = one(photos, [Regions()], candidates=4)
    assert set(uris(hits[:4])) == set(uris(first[:4]))
    assert uris(hits)[4:] == uris(first)[4:]
    assert [len(h.stages) for h in hits] == [2] * 4 + [1] * (len(first) - 4)


def test_more_candidates_than_the_limit_are_re_ranked_then_cut(photos):
    whole = one(photos, [Regions()], candidates=50)
    assert uris(one(photos, [Regions()], limit=2, candidates=50)) == uris(whole)[:2]


def test_fewer_photos_than_candidates_are_no_trouble(photos):
    assert len(one(photos, [Regions(), LocalExpansion()], candidates=10_000)) == len(encodings())


def test_stages_see_only_what_the_filter_lets_through(photos):
    expression = "place >= 5 and place < 12"
    for stages in ([Regions()], [AlphaExpansion(2)], [Regions(), LocalExpansion(refetch=True)]):
        hits = one(photos, stages, filter=expression)
        assert len(hits) == 7
        assert all(5 <= hit.metadata["place"] < 12 for hit in hits)


def test_the_order_of_stages_is_free(photos):
    after = one(photos, [Regions(), AlphaExpansion(2)])
    before = one(photos, [AlphaExpansion(2), Regions()])
    assert [s.stage for s in after[0].stages] == ["descriptor", "regions", "aqe"]
    assert [s.stage for s in before[0].stages] == ["descriptor", "aqe", "regions"]
    assert uris(before) == uris(one(photos, [Regions()]))  # all photos are candidates


def test_expansion_finds_new_candidates_and_a_later_stage_scores_them(photos):
    hits = one(photos, [Regions(), AlphaExpansion(2), Regions()], candidates=3, limit=3)
    assert [s.stage for s in hits[0].stages][-1] == "regions"
    assert all(hit.stages[-1].stage == "regions" for hit in hits)


def test_refetching_lets_local_expansion_see_more_than_the_first_candidates(photos):
    stages = [Regions(), LocalExpansion(refetch=True)]
    few = one(photos, stages, candidates=3, limit=6)
    assert len(few) == 6
    assert sum(hit.stages[-1].stage == "local" for hit in few) > 3


def test_ties_keep_the_order_of_the_stage_before(tmp_path):
    twice = [replace(encodings()[0], uri=f"/copy/{i}.jpg") for i in range(5)]
    with collection(tmp_path / "photos.db", n=0) as photos:
        photos.upsert(twice)
        query = Query(encodings()[1], "q")
        first = uris(one(photos, query=query))
        for stages in ([Regions()], [Regions(), LocalExpansion()]):
            assert uris(one(photos, stages, query=query)) == first


def test_rows_without_local_vectors_keep_their_place(tmp_path):
    bare = replace(
        encodings()[2],
        class_ids=encodings()[2].class_ids[:0],
        class_scores=encodings()[2].class_scores[:0],
        class_vectors=encodings()[2].class_vectors[:0],
        region_boxes=encodings()[2].region_boxes[:0],
        region_vectors=encodings()[2].region_vectors[:0],
    )
    with collection(tmp_path / "photos.db", n=0) as photos:
        photos.upsert([*encodings()[:2], bare, *encodings()[3:6]])
        query = Query(encodings()[2], "q")
        place = uris(one(photos, query=query)).index(bare.uri)
        for name in ("regions", "classes", "online", "class-matched"):
            stages = [*chosen_stages(name), LocalExpansion()]
            hits = one(photos, stages, query=query)
            assert hits[place].uri == bare.uri
            assert "kept its place" in hits[place].note


def test_an_empty_collection_answers_every_stage_with_no_hits(tmp_path):
    with collection(tmp_path / "photos.db", n=0) as photos:
        for rerank in (None, "regions", "classes", "online", "class-matched", "cam"):
            for expand in (None, "local", "aqe", "qe"):
                stages = chosen_stages(rerank, expand)
                assert len(one(photos, stages)) == 0


def test_a_stage_of_ones_own_takes_part(photos):
    class Backwards(Stage):
        name = "backwards"

        def __call__(self, query, hits, context: Context):
            turned = list(hits)[::-1]
            return [h.scored(self.name, -rank, rank) for rank, h in enumerate(turned, start=1)]

    hits = photos.search(photo("coffee.png"), limit=50, stages=[Backwards(), Regions()])
    assert [s.stage for s in hits[0].stages] == ["descriptor", "backwards", "regions"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rerank": "nonsense"},
            "rerank='nonsense': give one of auto, none, regions, classes, online",
        ),
        ({"rerank": 5}, "rerank=5"),
        ({"expand": "nonsense"}, "expand='nonsense'"),
        ({"expand": "local:"}, "expand='local:'"),
        ({"expand": "local:x"}, "expand='local:x'"),
        ({"expand": 0}, "hits=0"),
        ({"expand": ("aqe", -1)}, "hits=-1"),
        ({"expand": True}, "expand=True"),
        ({"stages": ["regions"]}, "give a Stage object"),
        ({"stages": [], "rerank": "regions"}, "give either stages"),
        ({"candidates": 0}, "candidates=0"),
        ({"candidates": 20_000, "rerank": "regions"}, "at most 16384"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(photos, options, words):
    with pytest.raises(SettingsError, match=words):
        photos.search(photo("coffee.png"), **options)


@pytest.mark.parametrize(
    ("expand", "stage", "hits"),
    [
        ("local", "local", 1),
        ("local:4", "local", 4),
        (("local", 3), "local", 3),
        (5, "aqe", 5),
        ("5", "aqe", 5),
        ("aqe", "aqe", 5),
        ("qe:1", "qe", 1),
        (LocalExpansion(7), "local", 7),
    ],
)
def test_every_way_to_name_an_expansion(expand, stage, hits):
    (made,) = chosen_stages(None, expand)
    assert (made.name, made.hits) == (stage, hits)


def test_local_expansion_goes_on_with_the_vectors_of_the_stage_before():
    assert chosen_stages("classes", "local")[-1].kind == "classes"
    assert chosen_stages("regions", "local")[-1].kind == "regions"


def test_a_refused_filter_is_quoted(photos):
    with pytest.raises(FilterError, match="place >>"):
        photos.search(photo("coffee.png"), filter="place >> 1", rerank="regions")


def test_boxes_for_another_number_of_queries_are_refused(photos):
    with pytest.raises(SettingsError, match="2 boxes for 1 queries"):
        photos.search([photo("coffee.png")], box=[None, None])
    with pytest.raises(BoxError, match="list of boxes for one query"):
        photos.search(photo("coffee.png"), box=[[1, 2, 30, 40]])


# What is fetched


def test_what_stages_need_is_fetched_once_for_all_queries(photos, monkeypatch):
    photos.vector_cache.most_bytes = 0
    asked: list[tuple[int, tuple[str, ...]]] = []
    fetch = type(photos.store).fetch_vectors

    def watched(store, name, key, ids, fields, **options):
        asked.append((len(set(ids)), tuple(fields)))
        return fetch(store, name, key, ids, fields, **options)

    monkeypatch.setattr(type(photos.store), "fetch_vectors", watched)
    queries = [ask("chelsea.png"), ask("coffee.png")]
    search_queries(photos, queries, limit=5, filter=None, stages=[Regions(), LocalExpansion()])
    photos.vector_cache.most_bytes = 2**28
    assert sum(n for n, _ in asked) == len(encodings())
    assert all(not name.startswith("class_vectors") for _, fields in asked for name in fields)


def test_vectors_of_the_last_searches_are_not_fetched_again(photos, monkeypatch):
    first = one(photos, [Regions()])
    monkeypatch.setattr(type(photos.layout), "read", None)  # nothing is left to decode
    assert uris(one(photos, [Regions()])) == uris(first)


def test_a_photo_stored_anew_is_fetched_anew(tmp_path):
    with collection(tmp_path / "photos.db", n=4) as photos:
        query = Query(encodings()[3], "q")
        before = {h.uri: h.score for h in one(photos, [Regions()], query=query)}
        photos.upsert([replace(encodings()[3], uri=encodings()[0].uri)])
        after = {h.uri: h.score for h in one(photos, [Regions()], query=query)}
    assert after[encodings()[0].uri] == pytest.approx(1, abs=1e-3)
    assert before[encodings()[0].uri] < 0.9


def test_the_cache_keeps_to_its_bytes():
    kept = LastUsed(100)
    for key in range(5):
        kept.put(key, str(key), 30)
    assert kept.keys() == [2, 3, 4]
    assert kept.get(2) == "2"
    kept.put(5, "5", 30)
    assert sorted(kept.keys()) == [2, 4, 5]
    kept.put(6, "6", 101)
    assert kept.get(6) is None
    assert kept.held_bytes == 90


def test_eight_threads_at_the_limit_of_the_cache_leave_it_whole():
    kept = LastUsed(1000)

    def work(seed):
        chance = random.Random(seed)
        for _ in range(3000):
            key = chance.randrange(60)
            if chance.random() < 0.6:
                kept.put(key, key, 20 + key)
            elif chance.random() < 0.01:
                kept.most_bytes = chance.choice((900, 1000))
            else:
                assert kept.get(key) in (key, None)
            assert 0 <= kept.held_bytes <= 1000

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert kept.held_bytes == sum(20 + key for key in list(kept.keys()))
    kept.put("last", 1, 500)
    assert kept.get("last") == 1


# By stored photos


def test_like_finds_more_of_the_same_without_any_image(photos):
    named = [photo("chelsea-crop.jpg"), photo("chelsea-turned.jpg")]
    hits = photos.search(like=named, limit=3)
    assert all(is_cat(hit.uri) for hit in hits)
    assert not set(named) & set(uris(hits))
    again = photos.search(like=named, limit=3, rerank="regions")
    assert all(is_cat(hit.uri) for hit in again)


def test_unlike_looks_away(photos):
    like, unlike = photo("chelsea-in-gravel.jpg"), photo("gravel.png")
    far = {h.uri: h.score for h in photos.search(like=like, unlike=unlike, limit=50)}
    near = {h.uri: h.score for h in photos.search(like=like, limit=50)}
    assert unlike in near
    assert unlike not in far
    assert far[photo("coffee-in-grass.jpg")] != near[photo("coffee-in-grass.jpg")]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"like": ["/not/there.jpg"]}, CollectionError, "not in the collection"),
        ({"unlike": ["x"]}, SettingsError, "unlike alone"),
        ({}, SettingsError, "nothing to search with"),
        ({"images": "x.jpg", "like": ["x"]}, SettingsError, "either images"),
    ],
)
def test_what_like_cannot_do_is_refused(photos, options, error, words):
    with pytest.raises(error, match=words):
        photos.search(**options)


# What is told


def test_explain_shows_each_stages_score_and_what_moved(photos):
    hits = one(photos, [Regions()])
    table = hits.explain().splitlines()
    assert "descriptor" in table[0]
    assert "regions" in table[0]
    assert len(table) == len(hits) + 1


def test_the_page_draws_the_box_and_tells_what_answers_to_what(photos, tmp_path):
    hits = photos.search(photo("chelsea.png"), box=CAT, limit=2, rerank="regions")
    page = hits.save(tmp_path / "hits.html").read_text()
    assert page.count("with the box") == 3  # the query's and both hits'
    assert page.count("answers to") == 6
    assert "regions" in page


def test_json_holds_matches_andchosen_stages(photos):
    hits = one(photos, [Regions()], limit=1)
    told = json.loads(hits.to_json())["hits"][0]
    assert len(told["matches"][0]["query"]) == 4
    assert told["stages"][1]["stage"] == "regions"
    assert told["box"] == list(hits[0].box)


# A real server


@pytest.mark.server
@pytest.mark.parametrize(
    ("rerank", "expand"),
    [
        ("regions", "local"),
        ("regions", LocalExpansion(2, refetch=True)),
        ("classes", "aqe:3"),
        ("online", "qe:3"),
        ("class-matched", None),
        ("cam", "aqe:2"),
    ],
    ids=["regions-local", "regions-refetch", "classes", "online", "class-matched", "cam"],
)
def test_a_server_answers_every_stage_as_milvus_lite_does(photos, server_photos, rerank, expand):
    options = {"candidates": 8, "limit": 12, "filter": "place >= 2"}
    stages = chosen_stages(rerank, expand)
    several = [ask("chelsea.png"), ask("coffee.png")]
    for query, on_lite, on_server in zip(
        several,
        search_queries(photos, several, stages=stages, **options),
        search_queries(server_photos, several, stages=stages, **options),
        strict=True,
    ):
        assert uris(on_server) == uris(on_lite), query.name
        for ours, theirs in zip(on_server, on_lite, strict=True):
            assert [s.stage for s in ours.stages] == [s.stage for s in theirs.stages]
            assert [s.score for s in ours.stages] == pytest.approx(
                [s.score for s in theirs.stages], abs=1e-4
            )
            assert ours.box == theirs.box
        assert all(hit.metadata["place"] >= 2 for hit in on_server)


@pytest.mark.server
def test_a_server_steers_and_augments_as_milvus_lite_does(photos, server_photos):
    like, unlike = [photo("chelsea-turned.jpg")], [photo("coffee.png")]
    answers = [one.search(like=like, unlike=unlike, limit=5) for one in (photos, server_photos)]
    assert uris(answers[0]) == uris(answers[1])
    found = []
    for one_place in (photos, server_photos):
        assert one_place.augment(neighbours=3, alpha=1).added == len(encodings())
        found.append(one_place.search(photo("chelsea.png"), box=CAT, limit=5, augmented=True))
        assert one_place.undo_augmentation()
    assert uris(found[0]) == uris(found[1])


@pytest.fixture(scope="module")
def server_photos(server) -> Iterator[InstanceCollection]:
    with collection(server.uri) as made:
        yield made
        made.drop()


def test_stored_class_ids_that_no_network_has_are_named_by_number():
    ids = np.array([1, -7, 10**12, 0])
    assert shared_classes(ids, ids, ("cat", "dog")) == ("dog", "class -7", f"class {10**12}", "cat")
