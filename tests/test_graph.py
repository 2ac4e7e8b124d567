from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from milvus_server import MilvusServer
from photo_collection import collection, encoder, encodings, is_cat

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import CollectionError, SettingsError, StoreError
from cwf_milvus.evaluation.arrays import ArrayCollection
from cwf_milvus.index import graph as building
from cwf_milvus.index.comparing import similarities
from cwf_milvus.rerank import Regions
from cwf_milvus.search.graph import GraphExpansion
from cwf_milvus.search.search import search_queries

GRAPH = [Regions(), GraphExpansion()]


@pytest.fixture
def photos(tmp_path) -> Iterator[InstanceCollection]:
    with collection(tmp_path / "photos.db") as made:
        yield made


def built(photos: InstanceCollection, **options: int | bool) -> building.GraphReport:
    return photos.build_graph(**{"verify": False, "progress": False, "neighbours": 3, **options})


def edges_of(photos: InstanceCollection) -> dict[frozenset[str], float]:
    """Every edge, from both of its ends."""
    rows = list(photos.graph.scan())
    uri_of = {row.number: row.uri for row in rows}
    ends = [
        (frozenset((row.uri, uri_of[int(edge["number"])])), float(edge["similarity"]))
        for row in rows
        for edge in row.edges
    ]
    found = dict(ends)
    assert len(ends) == 2 * len(found)
    return found


def rows_of(photos: InstanceCollection) -> dict[str, dict[str, float]]:
    rows = photos.graph.get(list(photos.uris()), rows=True)
    uri_of = {row.number: uri for uri, row in rows.items()}
    return {
        uri: {uri_of[number]: amount for number, amount in row.row.items() if number in uri_of}
        for uri, row in rows.items()
    }


def searched(photos: InstanceCollection, asked: Encoding, **options: object) -> list[str]:
    options = {"limit": 30, "filter": None, "stages": GRAPH, **options}
    return [hit.uri for hit in search_queries(photos, [Query(asked, "query")], **options)[0]]


def cat() -> Encoding:
    return next(one for one in encodings() if is_cat(one.uri))


def test_a_graph_brings_in_what_the_first_search_missed(photos):
    built(photos)
    cats = [one.uri for one in encodings() if is_cat(one.uri)]
    found = searched(photos, cat(), candidates=3, limit=len(cats))
    assert len(set(found) & set(cats)) > 3


def test_a_hit_that_the_graph_brings_in_has_its_metadata_and_passes_the_filter(photos):
    built(photos)
    query = Query(cat(), "query")
    options = {"limit": 30, "candidates": 3, "stages": GRAPH}
    found = search_queries(photos, [query], filter="place >= 8", **options)[0]
    brought = [hit for hit in found if not any(one.stage == "regions" for one in hit.stages)]
    assert brought
    assert all(hit.metadata["place"] >= 8 and hit.width for hit in found)


def test_the_querys_own_photo_is_no_seed(photos):
    built(photos)
    own = replace(cat(), content="")  # with unknown bytes it is one
    weights = [GraphExpansion()._seeds(Query(one, ""), _hits(photos, one)) for one in (own, cat())]
    assert own.uri in weights[0]
    assert own.uri not in weights[1]
    assert len(weights[1]) == 5


def _hits(photos: InstanceCollection, asked: Encoding) -> list:
    seen = []

    class Look(GraphExpansion):
        def run(self, queries, answers, context):
            seen.extend(answers[0])
            return [list(hits) for hits in answers]

    searched(photos, asked, stages=[Regions(), Look()])
    return seen


def test_searching_without_a_graph_says_how_to_build_one(photos):
    assert not photos.has_graph()
    with pytest.raises(CollectionError, match="cwf-milvus graph"):
        searched(photos, cat())


def test_a_second_build_finds_nothing_to_do(photos):
    built(photos)
    report = built(photos)
    assert (report.compared, report.rows, report.removed) == (0, 0, 0)
    assert report.photos == len(encodings())


def test_a_graph_that_grew_has_the_edges_of_one_built_at_once(tmp_path):
    every = list(encodings())
    with (
        collection(tmp_path / "at-once.db") as at_once,
        collection(tmp_path / "grown.db", n=6) as grown,
    ):
        built(at_once)
        built(grown)
        for start in (6, 11):
            grown.upsert(every[start : start + 5 if start == 6 else None])
            report = built(grown)
            assert report.compared < report.photos
        assert edges_of(grown).keys() == edges_of(at_once).keys()
        assert grown.graph.verify() == []


def test_what_was_removed_leaves_the_graph_and_its_neighbours_are_compared_anew(photos, tmp_path):
    built(photos)
    gone = [one.uri for one in encodings()][::4]
    photos.remove(gone)
    found = searched(photos, cat())
    assert not set(gone) & set(found)
    assert built(photos).removed == len(gone)
    with collection(tmp_path / "left.db", n=0) as left:
        left.upsert([one for one in encodings() if one.uri not in gone])
        built(left)
        assert edges_of(photos).keys() == edges_of(left).keys()


def test_a_photo_with_other_bytes_gets_another_number_and_other_edges(photos):
    built(photos)
    first, other = encodings()[0], encodings()[-1]
    before = photos.graph.get([first.uri])[first.uri]
    photos.upsert([replace(other, uri=first.uri, content="f" * 64)])
    assert first.uri not in photos.graph.places({first.uri: "f" * 64})
    built(photos)
    after = photos.graph.get([first.uri])[first.uri]
    assert after.number == len(encodings())
    assert before.number != after.number
    assert frozenset((first.uri, other.uri)) in edges_of(photos)


def test_other_metadata_changes_nothing_in_the_graph(photos):
    built(photos)
    uri = encodings()[0].uri
    photos.set_metadata({uri: {"year": 2020}})
    assert built(photos).compared == 0
    assert photos.graph.get([uri])[uri].photo == photos.get([uri])[0].checksum


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6])
def test_a_build_that_was_killed_goes_on_to_the_same_graph(photos, tmp_path, monkeypatch, calls):
    monkeypatch.setattr(building, "_WAVE", 6)
    with collection(tmp_path / "undisturbed.db") as undisturbed:
        built(undisturbed)
        write, left = photos.graph.__class__.write, [calls]

        def dying(self, rows):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(self, rows)

        with monkeypatch.context() as patch:
            patch.setattr(photos.graph.__class__, "write", dying)
            with pytest.raises(KeyboardInterrupt):
                built(photos)
        assert not photos.has_graph()
        report = built(photos)
        assert report.compared <= len(encodings()) - 6 * min(3, max(0, calls - 1))
        assert edges_of(photos) == pytest.approx(edges_of(undisturbed))
        assert rows_of(photos).keys() == rows_of(undisturbed).keys()
        for uri, row in rows_of(undisturbed).items():
            assert rows_of(photos)[uri] == pytest.approx(row, rel=1e-5)


def test_a_second_builder_takes_over_and_the_first_one_stops(photos):
    first = building._Builder(photos, building.Head(3, False), False)
    built(photos)
    with pytest.raises(CollectionError, match="another program"):
        first.run()
    assert photos.has_graph()


def test_lost_and_damaged_rows_are_told_and_made_anew(photos):
    built(photos)
    whole = edges_of(photos)
    first, second = (one.uri for one in encodings()[:2])
    photos.graph.delete([first])
    raw = photos.store.fetch(
        photos.graph.name,
        "uri",
        [second],
        ["number", "state", "content", "photo", "vectors", "checksum", "row"],
    )[second]
    photos.store.write(photos.graph.name, [{**raw, "edges": "AAAA"}])
    told = "\n".join(photos.graph.verify())
    assert second in told
    assert "1 rows of the graph are lost" in told
    assert not photos.verify().ok
    built(photos)
    assert photos.graph.verify() == []
    assert edges_of(photos).keys() == whole.keys()


def test_a_lost_head_is_told_and_the_graph_built_anew(photos):
    built(photos)
    photos.graph.delete([""])
    assert "lost its head" in photos.graph.verify()[0]
    assert not photos.has_graph()
    assert built(photos).compared == len(encodings())
    assert photos.graph.verify() == []


def test_a_graph_of_an_earlier_collection_of_the_name_is_none(tmp_path):
    with collection(tmp_path / "photos.db", n=4) as earlier:
        built(earlier)
        earlier.store.call("drop_collection", earlier.name)
        earlier.sidecar.drop()
    with InstanceCollection.create(tmp_path / "photos.db", "photos", encoder()) as later:
        later.upsert(encodings()[4:9])
        assert not later.has_graph()
        assert built(later).photos == 5
        assert later.graph.count() == 5


def test_another_number_of_neighbours_builds_it_anew(photos):
    built(photos)
    assert built(photos, neighbours=2).compared == len(encodings())


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_photos_have_a_graph_too(tmp_path, n):
    with collection(tmp_path / "photos.db", n=n) as few:
        assert built(few).photos == n
        assert few.has_graph()
        assert len(searched(few, cat())) == n
        assert few.graph.verify() == []


def test_photos_that_are_all_equal_have_few_edges_each(tmp_path, monkeypatch):
    monkeypatch.setattr("cwf_milvus.index.pairs.MOST_EDGES", 8)
    with collection(tmp_path / "photos.db", n=0) as equal:
        equal.upsert([replace(cat(), uri=f"copy-{i}") for i in range(30)])
        built(equal)
        assert max(len(row.edges) for row in equal.graph.scan()) <= 8
        assert len(searched(equal, cat())) == 30


def test_a_photo_without_vectors_is_in_the_graph_without_an_edge(photos):
    dim = encoder().dim
    bare = replace(
        cat(),
        uri="bare",
        content="0" * 64,
        descriptor=np.zeros(dim, np.float32),
        region_vectors=np.zeros((0, dim), np.float32),
        region_boxes=np.zeros((0, 4), np.float32),
        keypoints=None,
    )
    photos.upsert([bare])
    assert built(photos).alone == 1
    assert "bare" in searched(photos, cat())


def test_numbers_that_are_not_finite_are_no_edges():
    found = similarities(np.full((2, 4), np.nan, np.float32), [np.ones((1, 4), np.float32), None])
    assert found.tolist() == [0, 0]


def test_a_photo_added_since_keeps_its_place(photos):
    late = encodings()[-1]
    photos.remove([late.uri])
    built(photos)
    photos.upsert([late])
    asked = replace(encodings()[0], content="")
    plain = searched(photos, asked, stages=[Regions()])
    place = plain.index(late.uri)
    assert place >= 5  # no seed
    hits = search_queries(photos, [Query(asked, "")], limit=30, filter=None, stages=GRAPH)[0]
    assert hits[place].uri == late.uri
    assert "not in the graph" in hits[place].note


def test_a_graph_in_memory_answers_as_the_one_in_milvus_does(photos):
    built(photos, neighbours=5)
    arrays = ArrayCollection(encoder(), encodings())
    arrays.build_graph(neighbours=5, verify=False)
    assert searched(photos, cat())[:8] == searched(arrays, cat())[:8]


def test_keypoints_that_agree_verify_an_edge(tmp_path):
    with collection(tmp_path / "photos.db", n=0) as few:
        few.upsert([one for one in encodings() if is_cat(one.uri)])
        report = built(few, verify=True)
        assert report.verified
        assert max(row.edges["inliers"].max() for row in few.graph.scan()) >= 25


def test_a_number_out_of_range_is_refused(photos):
    for neighbours in (0, 51, True):
        with pytest.raises(SettingsError, match="neighbours"):
            built(photos, neighbours=neighbours)


def test_dropping_the_collection_drops_its_graph(photos, tmp_path):
    built(photos)
    photos.drop()
    with collection(tmp_path / "photos.db", n=1) as later:
        assert "photos_graph" not in later.store.call("list_collections")


@pytest.mark.server
def test_a_server_without_sparse_vectors_is_refused_with_the_version_that_it_takes(
    server: MilvusServer,
):
    with InstanceCollection.create(server.uri, "graphless", encoder()) as photos:
        photos.upsert(encodings()[:2])
        with pytest.raises(StoreError, match=r"2\.4"):
            built(photos)
        assert not photos.has_graph()
        photos.drop()
