import json
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import (
    CollectionError,
    FilterError,
    ImageError,
    MismatchError,
    SettingsError,
    StoreError,
)
from cwf_milvus.method.int4 import Int4Vectors
from cwf_milvus.store import sidecar
from cwf_milvus.store.client import Store
from cwf_milvus.store.sidecar import Sidecar

HOSTILE = [
    "/p/it's.jpg",
    '/p/a"b.jpg',
    "/p/new\nline.jpg",
    "/p/back\\slash.jpg",
    "/p/ends in \\",
    "x'] or uri != '",
    'x"] or uri != "',
    "/p/%s {x} {{y}}.jpg",
    "/p/Zürich 東京 🙂 e\u0301.jpg",
    "/p/cr\rtab\tbell\x07nul\x00esc\x1b\x7f\x85\u2028.jpg",
    "/p/\\n\\u0041\\x41\\101.jpg",
    " ",
    "$meta",
    "uri",
]


@dataclass(frozen=True)
class Settings:
    backbone: str = "tiny"
    dim: int = 8
    sizes: tuple[int, ...] = (1, 2)

    def to_dict(self):
        return {"backbone": self.backbone, "dim": self.dim, "sizes": self.sizes}


class TinyEncoder:
    """As much of an encoder as a collection touches; the real one is in the last tests."""

    whitening_origin = "none"
    n_keypoints = 0

    def __init__(self, dim=8, n_classes=3, n_regions=5, weights="a", **settings):
        self.dim, self.n_classes, self.n_regions = dim, n_classes, n_regions
        self.settings = Settings(dim=dim, **settings)
        self.fingerprint = f"{weights}-{sorted(self.settings.to_dict().items())}"

    def state(self):
        return {
            "settings.json": json.dumps(self.settings.to_dict()).encode(),
            "whitening.safetensors": np.random.default_rng(1).bytes(200_001),
            "empty": b"",
        }


def collections_at(uri):
    store = Store(uri)
    try:
        return store.call("list_collections")
    finally:
        store.close()


def encoding(uri="/p/0.jpg", seed=0, dim=8, n_classes=3, n_regions=5, **changes):
    rng = np.random.default_rng(seed)

    def unit(n):
        vectors = rng.standard_normal((n, dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    made = Encoding(
        descriptor=unit(1)[0],
        class_ids=rng.permutation(1000)[:n_classes].astype(np.int64),
        class_scores=rng.random(n_classes, dtype=np.float32),
        class_vectors=unit(n_classes),
        region_boxes=(rng.random((n_regions, 4)) * 4000).astype(np.float32),
        region_vectors=unit(n_regions),
        uri=uri,
        content=f"{seed:064x}",
        width=640,
        height=480,
    )
    return replace(made, **changes)


def in_int4(vectors):
    return np.asarray(Int4Vectors.of(vectors))


def assert_same(found, stored, atol=1e-6, kept=in_int4):
    np.testing.assert_array_equal(found.descriptor, stored.descriptor)
    np.testing.assert_array_equal(found.class_ids, stored.class_ids)
    np.testing.assert_array_equal(found.class_scores, stored.class_scores)
    np.testing.assert_array_equal(found.region_boxes, stored.region_boxes)
    np.testing.assert_allclose(found.class_vectors, kept(stored.class_vectors), atol=atol)
    np.testing.assert_allclose(found.region_vectors, kept(stored.region_vectors), atol=atol)
    assert (found.uri, found.content) == (stored.uri, stored.content)
    assert (found.width, found.height) == (stored.width, stored.height)


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.server)])
def place(request, tmp_path):
    """A place for collections: a Milvus Lite database, then a real server."""
    if request.param == "lite":
        return str(tmp_path / "photos.db")
    return request.getfixturevalue("server").uri


@pytest.fixture
def name():
    return f"c{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def server_photos(server):
    with InstanceCollection.create(server.uri, "shared", TinyEncoder()) as collection:
        yield collection


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.server)])
def photos(request, tmp_path):
    """An empty collection; a server makes one in seven seconds, so that it has one for all."""
    if request.param == "lite":
        with InstanceCollection.create(tmp_path / "photos.db", "photos", TinyEncoder()) as made:
            yield made
    else:
        shared = request.getfixturevalue("server_photos")
        shared.remove(shared.uris())
        shared.verify(accept=True)
        yield shared


@pytest.fixture
def lite(tmp_path):
    return str(tmp_path / "photos.db")


# Storing and reading


def test_a_photo_comes_back_as_it_was_stored(photos):
    stored = encoding()
    photos.upsert([stored], [{"place": "Rome", "year": 2019, "tags": ["a", 1.5, None, True]}])
    (row,) = photos.get([stored.uri], vectors=True)
    assert_same(row.unpack(), stored)
    assert row.metadata == {"place": "Rome", "year": 2019, "tags": ["a", 1.5, None, True]}
    assert photos.count() == 1


def test_get_keeps_the_order_and_says_none_for_what_is_missing(photos):
    photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(4)])
    rows = photos.get(["/p/3.jpg", "/p/nowhere.jpg", "/p/0.jpg", "/p/3.jpg"])
    assert [row and row.uri for row in rows] == ["/p/3.jpg", None, "/p/0.jpg", "/p/3.jpg"]
    with pytest.raises(CollectionError, match="fetched without its vectors"):
        rows[0].unpack()


def test_rows_of_few_or_no_local_vectors_come_back_so(photos):
    stored = encoding(n_classes=1, n_regions=0)
    photos.upsert([stored, encoding("/p/1.jpg", 1, n_classes=0, n_regions=2)])
    first, second = photos.get(["/p/0.jpg", "/p/1.jpg"], vectors=True)
    assert_same(first.unpack(), stored)
    assert second.unpack().class_vectors.shape == (0, 8)
    assert photos.verify().ok


def test_an_updated_photo_keeps_nothing_of_what_it_was(photos):
    photos.upsert([encoding()], [{"place": "Rome", "year": 2019}])
    new = encoding(seed=9, n_classes=1, n_regions=0)
    photos.upsert([new], [{"year": 2020}])
    (row,) = photos.get([new.uri], vectors=True)
    assert_same(row.unpack(), new)
    assert row.metadata == {"year": 2020}
    assert photos.count() == 1
    assert not photos.search_vectors(new.descriptor, limit=5, filter='place == "Rome"')[0]
    assert photos.verify().ok


def test_updates_hold_after_the_database_is_closed_and_opened(lite, name):
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(20)], [{"old": 1}] * 20)
    for seed in (100, 200):
        with InstanceCollection.open(lite, name) as photos:
            photos.upsert([encoding(f"/p/{i}.jpg", seed + i) for i in range(10)])
    with InstanceCollection.open(lite, name) as photos:
        assert photos.count() == 20
        rows = photos.get([f"/p/{i}.jpg" for i in range(20)], vectors=True)
        for i, row in enumerate(rows):
            assert_same(row.unpack(), encoding(f"/p/{i}.jpg", 200 + i if i < 10 else i))
        query = encoding("/p/0.jpg", 200).descriptor
        hits = photos.search_vectors(query, limit=100)[0]
        assert len({hit.uri for hit in hits}) == len(hits) == 20
        assert hits[0].uri == "/p/0.jpg"
        assert photos.verify().ok


def test_hostile_names_work_everywhere(photos):
    encodings = [encoding(uri, i) for i, uri in enumerate(HOSTILE)]
    photos.upsert(encodings, [{"n": i} for i in range(len(HOSTILE))])
    assert photos.contents(HOSTILE) == {e.uri: e.content for e in encodings}
    for i, uri in enumerate(HOSTILE):
        (row,) = photos.get([uri])
        assert (row.uri, row.metadata) == (uri, {"n": i})
    assert sorted(photos.uris()) == sorted(HOSTILE)
    assert photos.verify().ok
    for left, uri in reversed(list(enumerate(HOSTILE))):
        assert photos.remove([uri]) == 1
        assert photos.count() == left


def test_names_that_milvus_cannot_hold_are_refused_and_never_there(photos):
    for uri in ("/p/\udcff.jpg", "x" * 4097, "é" * 2049, ""):
        with pytest.raises(ImageError, match="cannot be stored"):
            photos.upsert([encoding(uri)])
    assert photos.contents(["/p/\udcff.jpg", "x" * 70_000]) == {}
    assert photos.get(["/p/\udcff.jpg"]) == [None]
    assert photos.remove(["/p/\udcff.jpg"]) == 0


def test_remove_says_how_many_there_were(photos):
    photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(5)])
    assert photos.remove(["/p/1.jpg", "/p/1.jpg", "/p/3.jpg", "/p/9.jpg"]) == 2
    assert list(photos.uris()) == ["/p/0.jpg", "/p/2.jpg", "/p/4.jpg"]
    assert photos.remove(["/p/1.jpg"]) == 0
    assert photos.verify().expected == 3


def test_metadata_can_be_replaced_alone(photos):
    stored = [encoding(f"/p/{i}.jpg", i) for i in range(3)]
    photos.upsert(stored, [{"a": 1}, {"a": 2}, {"a": 3, "b": 4}])
    told = {"/p/0.jpg": {"a": 1}, "/p/2.jpg": {"a": 5}, "/p/nowhere.jpg": {"a": 6}}
    assert photos.set_metadata(told) == ["/p/2.jpg"]
    (row,) = photos.get(["/p/2.jpg"], vectors=True)
    assert row.metadata == {"a": 5}
    assert_same(row.unpack(), stored[2])
    assert photos.verify().ok


def test_metadata_survives_as_json_does(photos):
    told = {
        "text": 'quo"te \\ \n 東京',
        "big": 2**63 - 1,
        "float": 0.1,
        "whole float": 1.0,
        "deep": {"id": [{"score": -0.0, "distance": 1e300}]},
        "id": 7,
        "score": "s",
        "distance": None,
        "entity": {"uri": 1},
        "vector": [1, 2],
    }
    photos.upsert([encoding()], [told])
    (row,) = photos.get(["/p/0.jpg"])
    assert row.metadata == told
    (hit,) = photos.search_vectors(encoding().descriptor, limit=3)[0]
    assert hit.metadata == told
    assert photos.verify().ok


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"uri": "x"}, "reserved name 'uri'"),
        ({"checksum": "x"}, "reserved name 'checksum'"),
        ({"$meta": 1}, "reserved name"),
        ({"_seq": 1}, "reserved name"),
        ({"": 1}, "reserved name"),
        ({"x": float("nan")}, "nothing that JSON"),
        ({"x": 2**63}, "64-bit"),
        ({"x": object()}, "nothing that JSON"),
        ({"x": "\udcff"}, "nothing that JSON"),
        ({"x": "y" * 65_536}, "65536: keep less"),
    ],
)
def test_metadata_that_milvus_cannot_hold_is_refused_before_anything_is_sent(
    lite, name, metadata, message
):
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        with pytest.raises(SettingsError, match=message):
            photos.upsert([encoding("/p/1.jpg", 1), encoding()], [None, metadata])
        assert photos.count() == 0


def test_metadata_of_the_largest_size_is_taken(photos):
    told = {"x": "y" * (65_536 - len('{"x": ""}'))}
    photos.upsert([encoding()], [told])
    assert photos.get(["/p/0.jpg"])[0].metadata == told


def test_vectors_that_do_not_fit_are_refused_before_anything_is_sent(lite, name):
    good = encoding()
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        for bad, message in (
            (encoding(dim=9), r"\(3, 9\).*\(3, 8\)"),
            (encoding(n_classes=4), r"up to 3"),
            (replace(good, descriptor=np.ones(4, np.float32)), r"\(4,\).*\(8,\)"),
            (replace(good, class_ids=good.class_ids[:2]), r"\(3, 8\).*\(2, 8\)"),
        ):
            with pytest.raises(MismatchError, match=message):
                photos.upsert([encoding("/p/1.jpg", 1), bad])
        for field in ("descriptor", "class_vectors", "region_vectors"):
            array = getattr(good, field).copy()
            array.flat[0] = np.nan
            with pytest.raises(SettingsError, match="not finite"):
                photos.upsert([encoding("/p/1.jpg", 1), replace(good, **{field: array})])
        with pytest.raises(SettingsError, match="comes twice"):
            photos.upsert([good, good])
        assert photos.count() == 0


def test_a_batch_beyond_one_message_is_stored_in_several(place, name):
    encoder = TinyEncoder(dim=1024, n_classes=64, n_regions=21)
    many = [encoding(f"/p/{i}.jpg", i, 1024, 64, 21) for i in range(260)]
    with InstanceCollection.create(place, name, encoder) as photos:
        photos.upsert(many)
        assert photos.count() == 260
        answers = photos.search_vectors(
            np.stack([e.descriptor for e in many[:20]]), limit=200, vectors=True
        )
        assert [len(answer) for answer in answers] == [200] * 20
        for stored, answer in zip(many[:20], answers, strict=True):
            assert_same(answer[0].unpack(), stored)
        assert photos.verify().ok
        photos.drop()


@pytest.mark.slow
def test_more_photos_than_one_answer_holds_are_all_named(place, name):
    uris = [f"/p/{i}'\"\n.jpg" for i in range(20_000)]
    one = encoding()
    with InstanceCollection.create(place, name, TinyEncoder()) as photos:
        for start in range(0, len(uris), 4000):
            photos.upsert([replace(one, uri=uri) for uri in uris[start : start + 4000]])
        assert list(photos.uris()) == sorted(uris)
        assert len(photos.contents(uris)) == photos.count() == 20_000
        assert len(photos.search_vectors(one.descriptor, limit=16_384)[0]) == 16_384
        photos.drop()


# Searching


def test_search_gives_the_nearest_of_every_query_best_first(photos):
    stored = [encoding(f"/p/{i}.jpg", i) for i in range(50)]
    photos.upsert(stored, [{"n": i} for i in range(50)])
    descriptors = np.stack([e.descriptor for e in stored])
    queries = np.stack([encoding(seed=1000 + i).descriptor for i in range(7)])
    answers = photos.search_vectors(queries, limit=10)
    for query, answer in zip(queries, answers, strict=True):
        scores = descriptors @ query
        best = np.argsort(-scores)[:10]
        assert [row.uri for row in answer] == [f"/p/{i}.jpg" for i in best]
        np.testing.assert_allclose([row.score for row in answer], scores[best], atol=1e-5)
        assert [row.metadata for row in answer] == [{"n": int(i)} for i in best]
        np.testing.assert_array_equal(answer[0].class_ids, stored[best[0]].class_ids)


def test_hits_can_bring_their_vectors(photos):
    stored = [encoding(f"/p/{i}.jpg", i) for i in range(5)]
    photos.upsert(stored)
    (answer,) = photos.search_vectors(stored[3].descriptor, limit=10, vectors=True)
    assert len(answer) == 5
    for row in answer:
        assert_same(row.unpack(), next(e for e in stored if e.uri == row.uri))


def test_a_filter_narrows_the_search(photos):
    stored = [encoding(f"/p/{i}.jpg", i) for i in range(20)]
    photos.upsert(stored, [{"place": "Rome" if i % 2 else 'O"slo', "n": i} for i in range(20)])
    query = stored[0].descriptor

    def found(expression):
        return {
            int(r.metadata["n"])
            for r in photos.search_vectors(query, limit=50, filter=expression)[0]
        }

    class_id = int(stored[4].class_ids[1])
    with_class = {i for i, e in enumerate(stored) if class_id in e.class_ids}
    assert found('place == "Rome" and n < 6') == {1, 3, 5}
    assert found('place like "Ro%"') == set(range(1, 20, 2))
    assert found('place == "O\\"slo" and n in [0, 1, 2]') == {0, 2}
    assert found(f"array_contains(class_ids, {class_id})") == with_class
    assert found("width > 640") == found("n > 100") == set()
    assert found("   ") == found(None) == found("") == set(range(20))


@pytest.mark.parametrize(
    "nonsense",
    [
        "nonsense", "width =", "width = 3", 'width == "x"', "width in 3", "drop table", "n == 1;",
        "class_ids == 5", "descriptor == 3", "n > 99999999999999999999", "(n == 1", "n == 'x",
    ],
)  # fmt: skip
def test_a_filter_that_makes_no_sense_is_quoted_back(photos, nonsense):
    photos.upsert([encoding()], [{"n": 1}])
    with pytest.raises(FilterError) as error:
        photos.search_vectors(encoding().descriptor, limit=5, filter=nonsense)
    assert repr(nonsense) in str(error.value)
    assert "refused" in str(error.value)


def test_a_filter_on_a_field_that_nobody_has_finds_nothing(photos):
    photos.upsert([encoding()], [{"n": 1}])
    assert photos.search_vectors(encoding().descriptor, limit=5, filter="nobody > 3") == [[]]


def test_a_search_that_milvus_would_answer_wrongly_is_refused(lite, name):
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        photos.upsert([encoding()])
        good = encoding().descriptor
        for limit in (0, -1, 16_385, 1.5, True):
            with pytest.raises(SettingsError, match="1 to 16384"):
                photos.search_vectors(good, limit=limit)
        with pytest.raises(SettingsError, match="not finite"):
            photos.search_vectors(good * np.nan, limit=1)
        with pytest.raises(MismatchError, match=r"\(9,\).*8 numbers"):
            photos.search_vectors(np.ones(9), limit=1)
        with pytest.raises(FilterError, match="expression as text"):
            photos.search_vectors(good, limit=1, filter=3)
        assert photos.search_vectors(np.empty((0, 8)), limit=1) == []


def test_an_empty_collection_answers_with_nothing(photos):
    assert photos.search_vectors(np.eye(8)[:2], limit=5, vectors=True) == [[], []]
    assert (photos.count(), list(photos.uris()), photos.contents([])) == (0, [], {})
    assert photos.get([]) == []
    photos.upsert([])
    assert photos.verify().ok


# Class rows


def test_class_vectors_can_be_rows_that_milvus_searches_by_class(place, name):
    stored = [encoding(f"/p/{i}'.jpg", i) for i in range(4)]
    with InstanceCollection.create(place, name, TinyEncoder(), class_rows=True) as photos:
        photos.upsert(stored)
        photos.upsert([replace(stored[0], **vars(encoding(stored[0].uri, 50, n_classes=1)))])
        photos.remove([stored[3].uri])
        assert photos.class_rows.count() == 1 + 3 + 3
        class_id = int(stored[1].class_ids[2])
        (hits,) = photos.store.search(
            f"{name}_classes",
            f"class_id == {class_id}",
            data=[stored[1].class_vectors[2]],
            limit=3,
            output_fields=["uri", "rank"],
        )
        assert dict(hits[0]["entity"]) == {"uri": stored[1].uri, "rank": 2}
        assert hits[0]["distance"] == pytest.approx(1, abs=1e-5)
        assert photos.verify().ok
    with InstanceCollection.open(place, name) as photos:
        photos.upsert([encoding("/p/new.jpg", 70)])
        assert photos.class_rows.count() == 10
        photos.drop()
    store = Store(place)
    assert not [other for other in store.call("list_collections") if other.startswith(name)]
    store.close()


# Creating and opening


def test_a_collection_opens_anywhere_with_all_that_it_was(place, name):
    encoder = TinyEncoder()
    stored = encoding()
    with InstanceCollection.create(place, name, encoder) as photos:
        photos.upsert([stored], [{"n": 1}])
        info = photos.info()
    assert InstanceCollection.exists(place, name)
    with InstanceCollection.open(place, name, encoder=encoder) as photos:
        assert photos.encoder is encoder
        assert photos.sidecar.state() == encoder.state()
        (row,) = photos.get([stored.uri], vectors=True)
        assert_same(row.unpack(), stored)
        photos.drop()
    assert not InstanceCollection.exists(place, name)
    assert info == json.loads(json.dumps(info))
    assert (info["photos"], info["dim"], info["metric"], info["index"]) == (1, 8, "IP", "FLAT")
    assert info["fingerprint"] == encoder.fingerprint


def test_creating_twice_is_refused_unless_told(place, name):
    InstanceCollection.create(place, name, TinyEncoder()).close()
    with pytest.raises(CollectionError, match="already: open it"):
        InstanceCollection.create(place, name, TinyEncoder())
    with InstanceCollection.create(place, name, TinyEncoder(), exist_ok=True) as photos:
        assert photos.count() == 0
    with pytest.raises(MismatchError, match="class_rows=False"):
        InstanceCollection.create(place, name, TinyEncoder(), exist_ok=True, class_rows=True)
    with pytest.raises(MismatchError, match="fingerprint"):
        InstanceCollection.create(place, name, TinyEncoder(weights="b"), exist_ok=True)


def test_another_encoder_is_refused_with_both_values_and_what_differs(lite, name):
    InstanceCollection.create(lite, name, TinyEncoder()).close()
    other = TinyEncoder(backbone="huge", sizes=(1, 2, 3))
    with pytest.raises(MismatchError) as error:
        InstanceCollection.open(lite, name, encoder=other)
    for part in (
        other.fingerprint,
        TinyEncoder().fingerprint,
        "backbone='huge'",
        "'tiny'",
        "sizes",
    ):
        assert part in str(error.value)
    assert "dim=" not in str(error.value)
    with pytest.raises(MismatchError, match="settings are equal, their weights or whitening"):
        InstanceCollection.open(lite, name, encoder=TinyEncoder(weights="b"))


@pytest.mark.parametrize(
    ("metric", "dim", "message"),
    [("L2", 8, "metric L2, .* need IP"), ("IP", 16, "descriptors of 16 numbers, .* gives 8")],
)
def test_another_metric_or_dimension_is_refused_with_both_values(place, name, metric, dim, message):
    with InstanceCollection.create(place, name, TinyEncoder()) as photos:
        mark = photos.store.mark_of(name)
        photos.store.call("drop_collection", name)
        schema = replace(photos.layout, dim=dim).schema()
        kind = {"index_type": "FLAT", "metric_type": metric}
        photos.store.create(name, schema, "descriptor", kind, mark=mark)
    with pytest.raises(MismatchError, match=message):
        InstanceCollection.open(place, name)


def test_a_missing_collection_is_named_with_those_that_are_there(place, name):
    InstanceCollection.create(place, name, TinyEncoder()).close()
    with pytest.raises(CollectionError, match=f"no collection 'other'.*{name}"):
        InstanceCollection.open(place, "other")


def test_a_collection_of_another_program_is_not_opened(lite):
    client = MilvusClient(lite)
    client.create_collection("theirs", dimension=8)
    with pytest.raises(CollectionError, match="was not made by cwf-milvus"):
        InstanceCollection.open(lite, "theirs")
    client.close()


@pytest.mark.parametrize(
    "bad", ["", "1a", "a-b", "a b", 'a"; drop', "é", "a" * 202, "a_encoder", "a_classes", None]
)
def test_names_that_no_collection_can_have_are_refused(lite, bad):
    with pytest.raises(SettingsError, match="collection name"):
        InstanceCollection.create(lite, bad, TinyEncoder())
    assert not Path(lite).exists()


def test_settings_that_do_not_fit_a_row_are_refused_before_anything_is_made(lite, name):
    with pytest.raises(SettingsError, match="at most 4096"):
        InstanceCollection.create(lite, name, TinyEncoder(n_classes=5000))
    with pytest.raises(SettingsError, match="fields, and Milvus has 64"):
        InstanceCollection.create(lite, name, TinyEncoder(dim=8192, n_classes=1000))
    with pytest.raises(SettingsError, match="only FLAT"):
        InstanceCollection.create(lite, name, TinyEncoder(), index={"index_type": "HNSW"})
    assert not InstanceCollection.exists(lite, name)


def test_float16_can_be_asked_for_and_is_remembered(place, name):
    stored = encoding()
    with InstanceCollection.create(place, name, TinyEncoder(), precision="float16") as photos:
        photos.upsert([stored])
        assert photos.info()["precision"] == "float16"
    with pytest.raises(MismatchError, match="precision='float16', precision='int8' was asked for"):
        InstanceCollection.create(place, name, TinyEncoder(), precision="int8", exist_ok=True)
    with InstanceCollection.create(place, name, TinyEncoder(), exist_ok=True) as photos:
        assert_same(
            photos.get([stored.uri], vectors=True)[0].unpack(), stored, atol=5e-4, kept=np.asarray
        )
        assert photos.verify().ok
        photos.drop()


def test_a_collection_of_the_first_format_is_read_as_float16(lite, name, monkeypatch):
    def first_format(store, collection, encoder, **about):
        del about["precision"]
        with monkeypatch.context() as then:
            then.setattr(sidecar, "FORMAT", 1)
            return create(store, collection, encoder, **about)

    create = Sidecar.create
    monkeypatch.setattr(Sidecar, "create", first_format)
    stored = encoding()
    with InstanceCollection.create(lite, name, TinyEncoder(), precision="float16") as photos:
        assert photos.sidecar.manifest["format"] == 1
        photos.upsert([stored])
    with InstanceCollection.open(lite, name, encoder=TinyEncoder()) as photos:
        assert photos.layout.precision == "float16"
        assert_same(
            photos.get([stored.uri], vectors=True)[0].unpack(), stored, atol=5e-4, kept=np.asarray
        )


def test_an_unknown_precision_is_refused_before_anything_is_made(lite, name):
    with pytest.raises(SettingsError, match="precision='int3': give one of int4, int8, float16"):
        InstanceCollection.create(lite, name, TinyEncoder(), precision="int3")
    assert not InstanceCollection.exists(lite, name)


def test_all_thousand_classes_can_be_stored(place, name):
    stored = encoding(dim=512, n_classes=1000, n_regions=21)
    encoder = TinyEncoder(dim=512, n_classes=1000, n_regions=21)
    with InstanceCollection.create(place, name, encoder) as photos:
        photos.upsert([stored])
        assert_same(photos.get([stored.uri], vectors=True)[0].unpack(), stored)
        photos.drop()


@pytest.mark.server
def test_a_server_can_have_another_index(server, name):
    index = {"index_type": "HNSW", "params": {"M": 8, "efConstruction": 64}}
    with InstanceCollection.create(server.uri, name, TinyEncoder(), index=index) as photos:
        photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(100)])
        query = encoding(seed=7).descriptor
        assert photos.search_vectors(query, limit=3, params={"ef": 64})[0][0].uri == "/p/7.jpg"
        assert photos.info()["index"] == "HNSW"
        photos.drop()


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    "index",
    [
        {"index_type": "IVF_SQ8", "params": {"nlist": 128}},  # fewer than the lists searched
        {"index_type": "HNSW", "params": {"M": 8, "efConstruction": 64}},
    ],
    ids=lambda index: index["index_type"],
)
def test_an_index_finds_what_flat_does_where_nobody_says_how_to_search_it(server, name, index):
    with InstanceCollection.create(server.uri, name, TinyEncoder(), index=index) as photos:
        stored = [encoding(f"/p/{i}.jpg", i) for i in range(1500)]  # from 1,024 it is indexed
        photos.upsert(stored)
        photos.store.call("flush", name)
        while photos.store.index(name, "descriptor")["indexed_rows"] < len(stored):
            time.sleep(0.1)
        photos.store.load(name)
        cosines = np.stack([one.descriptor for one in stored]) @ stored[7].descriptor
        for limit in (20, 300):
            nearest = {stored[i].uri for i in np.argsort(-cosines)[:limit]}
            found = {row.uri for row in photos.search_vectors(stored[7].descriptor, limit=limit)[0]}
            assert len(found & nearest) > 0.9 * limit
        photos.drop()


@pytest.mark.server
def test_an_index_that_a_server_refuses_leaves_nothing_behind(server, name):
    with pytest.raises(StoreError, match="NONSENSE"):
        InstanceCollection.create(server.uri, name, TinyEncoder(), index={"index_type": "NONSENSE"})
    assert not InstanceCollection.exists(server.uri, name)


def test_a_creation_that_was_interrupted_can_be_repeated(lite, name):
    with InstanceCollection.create(lite, name, TinyEncoder(), class_rows=True) as photos:
        photos.store.call("drop_collection", name)  # the main collection is made last
    assert not InstanceCollection.exists(lite, name)
    with InstanceCollection.create(lite, name, TinyEncoder(weights="b")) as photos:
        photos.upsert([encoding()])
        assert photos.verify().ok


def test_of_two_creators_at_once_one_makes_it_and_the_other_is_refused(place, name, monkeypatch):
    first, second = TinyEncoder(), TinyEncoder(weights="b")
    made = []
    write = Sidecar.create.__func__

    def held_up(cls, store, collection, encoder, **about):
        if encoder is second and not made:
            made.append(InstanceCollection.create(place, name, first, class_rows=True))
            made[0].upsert([encoding()])
        return write(cls, store, collection, encoder, **about)

    monkeypatch.setattr(Sidecar, "create", classmethod(held_up))
    with pytest.raises(CollectionError, match="already"):
        InstanceCollection.create(place, name, second, class_rows=True)
    assert made[0].count() == made[0].class_rows.count() // 3 == 1
    assert made[0].verify().ok
    with InstanceCollection.open(place, name) as photos:
        assert photos.sidecar.state() == first.state()
        made[0].close()
        photos.drop()
    assert not [left for left in collections_at(place) if left.startswith(name)]


def test_a_creator_who_comes_second_opens_it_if_that_is_all_right(place, name, monkeypatch):
    made = []
    write = Sidecar.create.__func__

    def held_up(cls, *args, **about):
        if not made:
            made.append(None)
            made[0] = InstanceCollection.create(place, name, TinyEncoder())
            made[0].upsert([encoding()])
        return write(cls, *args, **about)

    monkeypatch.setattr(Sidecar, "create", classmethod(held_up))
    with InstanceCollection.create(place, name, TinyEncoder(), exist_ok=True) as photos:
        assert photos.count() == 1
        made[0].close()
        photos.drop()


def test_of_many_threads_one_creates_and_the_others_open(place, name):
    def create(_):
        return InstanceCollection.create(place, name, TinyEncoder(), exist_ok=True)

    with ThreadPoolExecutor(8) as threads:
        photos = list(threads.map(create, range(8)))
    photos[0].upsert([encoding()])
    assert [one.count() for one in photos] == [1] * 8
    for one in photos[1:]:
        one.close()
    photos[0].drop()


def test_rows_of_classes_that_another_left_are_never_dropped(lite, name):
    with InstanceCollection.create(lite, name, TinyEncoder(), class_rows=True) as photos:
        photos.upsert([encoding()])
        photos.store.call("drop_collection", name)
        with pytest.raises(CollectionError, match="rows of an earlier collection"):
            InstanceCollection.create(lite, name, TinyEncoder(), class_rows=True)
        assert photos.class_rows.count()


def test_several_writers_keep_one_ledger(photos):
    with InstanceCollection.open(photos.store.uri, photos.name) as other:
        photos.upsert([encoding("/p/1.jpg", 1), encoding("/p/2.jpg", 2)])
        other.upsert([encoding("/p/3.jpg", 3)])
        photos.upsert([encoding("/p/4.jpg", 4)])
        assert other.remove(["/p/1.jpg", "/p/2.jpg"]) == 2
        assert photos.verify().expected == other.verify().expected == photos.count() == 2


def test_two_objects_in_one_process_share_a_database(place, name):
    with InstanceCollection.create(place, name, TinyEncoder()) as one:
        with InstanceCollection.open(place, name) as two:
            one.upsert([encoding("/p/1.jpg", 1)])
            two.upsert([encoding("/p/2.jpg", 2)])
            assert one.count() == two.count() == 2
        one.upsert([encoding("/p/3.jpg", 3)])  # closing the other left this one open
        assert one.verify().ok
        one.drop()


def test_a_closed_collection_says_so(lite, name):
    photos = InstanceCollection.create(lite, name, TinyEncoder())
    photos.close()
    photos.close()
    with pytest.raises(StoreError, match="closed: open the collection again"):
        photos.count()


# Verifying


def test_lost_rows_are_counted_until_they_are_accepted(photos):
    photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(6)])
    assert photos.verify().ok
    photos.store.delete(photos.name, "uri", ["/p/1.jpg", "/p/2.jpg"])  # behind our back
    lost = photos.verify()
    assert (lost.ok, lost.lost, lost.rows, lost.expected) == (False, 2, 4, 6)
    assert "2 rows are lost" in str(lost)
    assert photos.verify(accept=True).lost == 2
    assert photos.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        {"content": "f" * 64},
        {"width": 641},
        {"place": "Oslo"},
        {"more": 1},
        {"class_ids": [1, 2, 3]},
        {"class_scores": [0.5, 0.25, 0.125]},
        {"descriptor": np.eye(8, dtype=np.float32)[0]},
        {"class_vectors_0": "AAAA"},
        {"region_boxes": ""},
    ],
)
def test_a_changed_row_is_found(lite, name, change):
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        photos.upsert([encoding(), encoding("/p/1.jpg", 1)], [{"place": "Rome"}, None])
        (row,) = photos.raw_rows(["/p/0.jpg"]).values()
        photos.store.write(name, [{**row, **change}])
        outcome = photos.verify()
        assert outcome.damaged == [("/p/0.jpg", "its checksum is another")]
        assert not outcome.ok
        assert json.loads(json.dumps(outcome.to_dict()))["ok"] is False


def test_a_damaged_encoder_is_found_and_never_used(lite, name):
    with InstanceCollection.create(lite, name, TinyEncoder()) as photos:
        key = f"{photos.sidecar.prefix}whitening.safetensors/1"
        photos.store.write(
            photos.sidecar.name, [{"key": key, "value": "AAAA", "vector": [0.0, 0.0]}]
        )
        assert "'whitening.safetensors' of the encoder" in str(photos.verify())
        with pytest.raises(CollectionError, match=r"'whitening\.safetensors'.*damaged"):
            photos.sidecar.state()
        photos.store.delete(photos.sidecar.name, "key", [f"{photos.sidecar.prefix}manifest"])
    with pytest.raises(CollectionError, match=r"the manifest in .* is missing"):
        InstanceCollection.open(lite, name)


def test_rows_that_milvus_lite_lost_without_a_word_are_found(lite, name, tmp_path):
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_collection import *
photos = InstanceCollection.create({lite!r}, {name!r}, TinyEncoder())
for i in range(10):
    photos.upsert([encoding(f"/p/{{i}}.jpg", i)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    with InstanceCollection.open(lite, name) as photos:
        assert photos.verify().ok  # a kill loses nothing
    assert (
        subprocess.run(
            [
                sys.executable,
                "-c",
                script.replace("create", "open")
                .replace(", TinyEncoder()", "")
                .replace("range(10)", "range(10, 20)"),
            ],
            check=False,
        ).returncode
        == -9
    )
    (log,) = Path(lite).glob(f"collections/{name}/wal/wal_data_*.arrow")
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    with InstanceCollection.open(lite, name) as photos:
        outcome = photos.verify()
        assert outcome.expected == 20
        assert outcome.lost == 20 - photos.count() > 0
        photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(20)])
        assert photos.count() == 20
        photos.verify(accept=True)
        assert photos.verify().ok


# With the real encoder


@pytest.mark.slow
def test_the_encoder_is_restored_from_milvus_alone(place, name):
    data = pytest.importorskip("skimage.data")
    from cwf_milvus.encode.encoder import Encoder

    encoder = Encoder("efficientnet_lite0", whitening=None, n_classes=4, image_size=256)
    with InstanceCollection.create(place, name, encoder) as photos:
        (cat,) = encoder.encode([data.chelsea()])
        photos.upsert([cat])
    with InstanceCollection.open(place, name) as photos:
        assert photos.encoder.fingerprint == encoder.fingerprint
        (again,) = photos.encoder.encode([data.chelsea()])
        ((hit,),) = photos.search_vectors(again.descriptor, limit=1, vectors=True)
        assert hit.score == pytest.approx(1, abs=1e-4)
        assert_same(hit.unpack(), cat)
        assert photos.verify().ok
        photos.drop()
