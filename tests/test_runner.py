"""Features seen once, and the same answers from Milvus and from arrays, on real photos."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from small_encoders import CHELSEA, COFFEE, ROCKET, crops, tiny

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.cli.evaluate import read_boxes
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.arrays import rank
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.datasets.truth import Dataset
from cwf_milvus.evaluation.features import FeatureStore, Photo, encodings, read_field
from cwf_milvus.evaluation.paper import methods
from cwf_milvus.evaluation.runner import (
    BoxedQuery,
    Inputs,
    ask_boxes,
    ask_whole,
    evaluate,
    gather,
    score_vectors,
)
from cwf_milvus.photos.box import Box
from cwf_milvus.rerank import Context, Online, Stage

THINGS = {"cat": CHELSEA, "cup": COFFEE, "rocket": ROCKET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four views of each of three things, and twelve other photos to fit whitenings on."""
    root = tmp_path_factory.mktemp("dataset")
    names = []
    for thing, photo in THINGS.items():
        for i, (top, left) in enumerate([(0, 0), (20, 40), (40, 90), (60, 130)]):
            name = f"{thing}_{i}.jpg"
            PILImage.fromarray(photo[top : top + 200, left : left + 220]).save(root / name)
            names.append(name)
    queries = [
        {
            "image": f"{thing}_0.jpg",
            "positives": [f"{thing}_{i}.jpg" for i in (1, 2, 3)],
            "junk": [f"{thing}_0.jpg"],
            "bbox": [20, 30, 180, 170] if thing == "cat" else None,
            "group": thing,
        }
        for thing in THINGS
    ]
    (root / "gnd.json").write_text(json.dumps({"images": names, "queries": queries}))
    return root


@pytest.fixture(scope="module")
def fit_photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    for i, piece in enumerate(crops(24)):
        PILImage.fromarray(piece).save(root / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny(descriptor="both", dim=32).fit(crops(24))


@pytest.fixture(scope="module")
def inputs(folder, fit_photos, encoder, tmp_path_factory) -> Inputs:
    store = FeatureStore(encoder, tmp_path_factory.mktemp("cache"), cells=True)
    return gather(load_dataset(folder), store, fit_photos)


def test_kept_features_give_the_encodings_of_the_encoder(inputs, encoder):
    dataset = inputs.dataset
    paths = [str(dataset.path(name)) for name in dataset.images]
    pairs = [
        *zip(encodings(encoder, paths, inputs.images), encoder.encode(paths), strict=True),
        *zip(
            encodings(encoder, [q.image for q in dataset.queries], inputs.queries),
            encoder.encode_queries([(dataset.path(q.image), q.box) for q in dataset.queries]),
            strict=True,
        ),
    ]
    for kept, encoded in pairs:
        assert kept.content == encoded.content
        assert (kept.width, kept.height) == (encoded.width, encoded.height)
        np.testing.assert_array_equal(kept.class_ids, encoded.class_ids)
        np.testing.assert_allclose(kept.region_boxes, encoded.region_boxes, atol=1e-3)
        for name in ("descriptor", "class_vectors", "region_vectors"):
            np.testing.assert_allclose(getattr(kept, name), getattr(encoded, name), atol=0.02)
        assert kept.descriptor @ encoded.descriptor > 0.999


def test_the_network_sees_a_photo_once_and_a_run_that_was_killed_goes_on(
    folder, encoder, tmp_path, monkeypatch
):
    photos = [Photo(path) for path in sorted(folder.glob("*.jpg"))]
    seen = []
    real = Encoder.class_maps
    monkeypatch.setattr(
        Encoder, "class_maps", lambda self, batch: seen.append(len(batch)) or real(self, batch)
    )
    store = FeatureStore(encoder, tmp_path)

    def stop(done: int, total: int) -> None:
        assert total == len(photos)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.collect(photos, stop)
    finished = sum(seen)
    assert 0 < finished < len(photos)
    places = FeatureStore(encoder, tmp_path).collect(photos)
    assert sum(seen) == len(photos)
    assert FeatureStore(encoder, tmp_path).collect([*photos, photos[0]]) == [*places, places[0]]
    assert sum(seen) == len(photos)
    assert not list(tmp_path.rglob("*.part"))
    places[3].write_bytes(places[3].read_bytes()[:-100])  # a disk that was full
    assert store.collect(photos[3:4]) == [places[3]]
    assert sum(seen) == len(photos) + 1


def test_another_size_or_box_is_kept_apart_and_another_whitening_is_not(folder, encoder, tmp_path):
    photo = Photo(folder / "cat_0.jpg")
    boxed = Photo(photo.file, Box(20, 30, 180, 170))
    store = FeatureStore(encoder, tmp_path)
    whole, part = store.collect([photo, boxed])
    assert whole != part
    assert len(read_field([part], "crops")[0]) == 30
    assert FeatureStore(tiny(image_size=128), tmp_path).folder != store.folder
    assert FeatureStore(tiny(dim=8, descriptor="regions"), tmp_path).folder == store.folder


def test_a_features_file_that_was_removed_is_named(inputs, tmp_path):
    with pytest.raises(SettingsError, match=r"gone\.safetensors.*run again"):
        read_field([tmp_path / "gone.safetensors"], "raw")


@pytest.mark.parametrize(
    "stages", [{}, {"rerank": "regions", "expand": "local", "candidates": 8}, {"expand": "qe:2"}]
)
def test_milvus_and_arrays_agree(inputs, encoder, stages):
    through_milvus = evaluate(inputs, encoder, **stages)
    exact = evaluate(inputs, encoder, exact=True, **stages)
    assert (through_milvus.where, exact.where) == ("Milvus Lite", "arrays")
    assert through_milvus.result.mean_ap == pytest.approx(exact.result.mean_ap, abs=1e-3)
    assert exact.result.mean_ap > 0.5


def test_single_vectors_rank_alike_in_milvus_and_in_arrays(inputs):
    parts = [methods.pooled(places, "crow") for places in (inputs.queries, inputs.images)]
    exact = score_vectors(inputs.dataset, *parts, exact=True)
    assert score_vectors(inputs.dataset, *parts) == exact


def test_ranking_keeps_the_order_of_equal_scores():
    images = np.array([[0.5, 0], [1, 0], [0.5, 0], [0, 1]])
    assert rank(np.array([[1.0, 0]]), images).tolist() == [[1, 0, 2, 3]]


def test_fitting_from_kept_features_is_fitting(inputs, encoder, fit_photos):
    # Few leading dimensions: those of little variance turn with the float16 of kept vectors.
    fitted = methods.fit_encoder(tiny(descriptor="both", dim=8), inputs)
    again = tiny(descriptor="both", dim=8).fit(fit_photos)
    paths = [str(inputs.dataset.path(name)) for name in inputs.dataset.images]
    for kept, anew in zip(
        encodings(fitted, paths, inputs.images), again.encode(paths), strict=True
    ):
        assert kept.descriptor @ anew.descriptor > 0.99


def test_offline_aggregation_is_the_unit_sum_of_whitened_class_vectors(inputs):
    whitening = methods.fit_classes(inputs, 8, 32)
    found = methods.offline_descriptors(inputs.images, 4, whitening)
    mean, axes = (np.float64(part) for part in (whitening.mean_, whitening.components_))
    scale = whitening.explained_variance_.astype(np.float64) ** -0.5
    for vectors, descriptor in zip(read_field(inputs.images, "class_vectors"), found, strict=True):
        whitened = ((vectors[:4].astype(np.float64) - mean) @ axes.T) * scale
        whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
        expected = whitened.sum(0) / np.linalg.norm(whitened.sum(0))
        np.testing.assert_allclose(descriptor, expected, atol=1e-4)


def test_online_aggregation_describes_an_image_by_the_querys_classes(inputs):
    whitening = methods.fit_classes(inputs, 8, 32)
    found = methods.online_scores(inputs, 4, whitening)
    queries = methods.offline_descriptors(inputs.queries, 4, whitening)
    ids = read_field(inputs.images, "class_ids")
    vectors = read_field(inputs.images, "class_vectors")
    for q, asked in enumerate(read_field(inputs.queries, "class_ids")):
        for i, own in enumerate(ids):
            chosen = np.isin(own, asked[:4])
            chosen = chosen if chosen.any() else np.arange(len(own)) < 4
            total = whitening.transform(vectors[i][chosen]).astype(np.float64).sum(0)
            expected = total @ queries[q] / np.linalg.norm(total)
            assert found[q, i] == pytest.approx(expected, abs=1e-4)


def test_a_whitening_without_photos_asks_for_them(inputs, folder, encoder):
    without = gather(inputs.dataset, inputs.store)
    with pytest.raises(SettingsError, match="--whiten-from"):
        methods.fit_pooled(without, "raw")


def test_boxes_take_the_truth_of_their_photos_query_and_its_photo_is_junk(folder, tmp_path):
    dataset = load_dataset(folder)
    boxed = ask_boxes(dataset, [BoxedQuery("cup_0.jpg", Box(1, 2, 30, 40), "cup")])
    (query,) = boxed.queries
    assert query.box == Box(1, 2, 30, 40)
    assert query.positives == {"cup_1.jpg", "cup_2.jpg", "cup_3.jpg"}
    assert query.junk == {"cup_0.jpg"}
    assert [q.box for q in ask_whole(dataset).queries] == [None] * 3
    with pytest.raises(SettingsError, match=r"'cup_1\.jpg' of group None is no query"):
        ask_boxes(dataset, [BoxedQuery("cup_1.jpg", Box(1, 2, 30, 40))])


def test_a_file_of_boxes_is_read_for_its_dataset_and_refused_by_name(folder, tmp_path):
    dataset: Dataset = load_dataset(folder)
    file = tmp_path / "boxes.json"
    entry = {"image": "cat_0.jpg", "box": [1, 2, 3, 4]}
    file.write_text(json.dumps({dataset.name: [entry]}))
    assert read_boxes(file, dataset) == [BoxedQuery("cat_0.jpg", Box(1, 2, 3, 4))]
    for damaged in ("", "[]", json.dumps({dataset.name: [{"image": "cat_0.jpg"}]})):
        file.write_text(damaged)
        with pytest.raises(SettingsError, match=r"boxes\.json"):
            read_boxes(file, dataset)


@pytest.mark.filterwarnings("ignore::cwf_milvus.method.whitening.ReducedDimensionWarning")
def test_the_papers_encoder_searches_as_its_aggregations_are_computed(inputs, encoder):
    papers = methods.paper_encoder(encoder, inputs, 8)
    assert (papers.settings.descriptor, papers.n_classes) == ("classes", 64)
    whitening = methods.fit_classes(inputs, 8)
    queries, images = (
        methods.offline_descriptors(places, 64, whitening)
        for places in (inputs.queries, inputs.images)
    )
    offline = evaluate(inputs, papers, exact=True).result
    assert offline.to_dict() == score_vectors(inputs.dataset, queries, images, exact=True).to_dict()
    online = evaluate(inputs, papers, exact=True, rerank=Online(64)).result
    expected = methods.score(inputs, methods.online_scores(inputs, 64, whitening))
    assert online.to_dict() == expected.to_dict()


def test_a_stage_on_top_leaves_the_others_where_they_were_and_runs_once_a_query():
    class Backwards(Stage):
        name = "backwards"
        needs = ("regions",)
        runs = 0

        def __call__(self, query, hits, context):
            self.runs += 1
            assert "descriptor" in context.wanted
            return list(reversed(hits))

    backwards = Backwards()
    top = methods.OnTop(backwards, 3)
    assert (top.name, set(top.needed)) == ("backwards", {"regions", "descriptor"})
    hits = [Hit(f"{i}.jpg", 1 - i / 10) for i in range(5)]
    empty = Encoding(*[np.zeros((0, 2))] * 6, "q", "", 1, 1)
    for _ in range(2):
        found = top(Query(empty, "q"), hits, Context(wanted=frozenset()))
        assert [hit.uri for hit in found] == [f"{i}.jpg" for i in (2, 1, 0, 3, 4)]
    assert backwards.runs == 1
    top(Query(empty, "another"), hits, Context())
    top(Query(empty, "q"), hits[1:], Context())
    assert backwards.runs == 3
    with pytest.raises(SettingsError, match="hits=0"):
        methods.OnTop(Backwards(), 0)
