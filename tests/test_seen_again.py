from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import network_built_once, small

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.demo import write_photos
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Vectors
from cwf_milvus.errors import SettingsError
from cwf_milvus.method import cam
from cwf_milvus.method.pooling import (
    channel_weights,
    class_vectors,
    class_vectors_in_boxes,
    crow_spatial_weights,
    l2_normalize,
    region_vectors,
)
from cwf_milvus.method.regions import grid_boxes, heat_boxes
from cwf_milvus.rerank import Cam, Context
from cwf_milvus.search.expansion import QueryExpansion
from cwf_milvus.search.search import ask

NAMES = ("chelsea.png", "chelsea-turned.jpg", "coffee.png", "rocket.jpg", "china.jpg", "gravel.png")


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with network_built_once():
        yield Encoder(descriptor="classes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    write_photos(made)
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory, folder, encoder) -> Iterator[InstanceCollection]:
    path = tmp_path_factory.mktemp("cam") / "photos.db"
    with InstanceCollection.create(path, "photos", encoder) as made:
        made.add([str(folder / name) for name in NAMES], progress=False)
        yield made


@pytest.fixture
def query(encoder, folder) -> Query:
    return ask(encoder, [str(folder / "chelsea.png")], [(90, 5, 355, 275)])[0]


def candidates(folder: Path, photos: InstanceCollection) -> list[Hit]:
    rows = photos.get([str(folder / name) for name in NAMES], vectors=True)
    return [
        Hit(
            row.uri,
            1 - i / 10,
            width=row.width,
            height=row.height,
            vectors=Vectors(row.content, row.class_ids, descriptor=row.unpack().descriptor),
        )
        for i, row in enumerate(rows)
    ]


def reference(encoder: Encoder, query: Query, uri: str, thresholds: list[float]) -> float:
    """METHOD, section 6, one photo and one box at a time, sums and cosines in float64."""
    prepared = encoder.prepare(encoder.read(uri))
    ids = torch.from_numpy(query.encoding.class_ids[:6])[None]
    with torch.no_grad():
        maps = encoder.backbone(prepared.view[None])
        features = maps.features
        size = (features.shape[2], features.shape[3])
        cams = cam.class_activation_maps(maps.class_source, maps.class_weights(ids), size)
        (boxes,) = heat_boxes(cams[:, :2].mean(dim=1), thresholds)
        scores = []
        for x1, y1, x2, y2 in boxes:
            crop, part = features[..., y1:y2, x1:x2], cams[..., y1:y2, x1:x2]
            vectors = class_vectors(crop, part, channel_weights(crop))
            whitened = encoder.whiten(vectors, "classes")[0].double().numpy()
            descriptor = whitened.sum(axis=0)
            target = query.encoding.class_vectors[:6].astype(np.float64).sum(axis=0)
            lengths = np.linalg.norm(descriptor) * np.linalg.norm(target)
            scores.append(float(descriptor @ target) / lengths)
    return max(scores)


def test_the_score_is_that_of_the_best_region_of_the_querys_class_maps(
    encoder, photos, folder, query
):
    before = candidates(folder, photos)
    found = Cam()(query, before, Context(photos))
    thresholds = [0.01, 0.1, 0.2, 0.3, 0.4]
    expected = {h.uri: reference(encoder, query, h.uri, thresholds) for h in before}
    wanted = [expected[h.uri] for h in found]
    np.testing.assert_allclose([h.score for h in found], wanted, atol=1e-5)
    assert [h.uri for h in found] == sorted(expected, key=lambda uri: -expected[uri])
    assert {Path(h.uri).name for h in found[:2]} == {"chelsea.png", "chelsea-turned.jpg"}


def test_the_box_is_in_the_pixels_of_the_hit(photos, folder, query):
    for hit in Cam()(query, candidates(folder, photos), Context(photos)):
        assert 0 <= hit.box.x1 < hit.box.x2 <= hit.width + 0.01
        assert 0 <= hit.box.y1 < hit.box.y2 <= hit.height + 0.01


def test_what_was_seen_is_not_seen_again(encoder, photos, folder, query, monkeypatch):
    before = candidates(folder, photos)
    first = Cam()(query, before, Context(photos))

    def never(*_: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(encoder.backbone, "forward", never)
    again = Cam()(query, before, Context(photos))
    assert [h.uri for h in again] == [h.uri for h in first]
    np.testing.assert_allclose([h.score for h in again], [h.score for h in first], atol=1e-6)


def test_the_cache_of_feature_maps_keeps_to_its_bytes(encoder, photos, folder, query):
    cache = encoder.seen.batches
    most, before = cache.most_bytes, candidates(folder, photos)
    whole = Cam()(query, before, Context(photos))
    try:
        cache.most_bytes = 4 * 2**20  # of a batch, not of all
        again = Cam()(query, [replace(hit, vectors=None) for hit in before], Context(photos))
        assert 0 < cache.held_bytes <= 4 * 2**20
        assert [h.uri for h in again] == [h.uri for h in whole]
    finally:
        cache.most_bytes = most


def test_photos_that_cannot_be_read_keep_their_place_and_are_named(photos, folder, query, tmp_path):
    before = candidates(folder, photos)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not a photo")
    before[1] = replace(before[1], uri="/gone/away.jpg", vectors=None)
    before[3] = replace(before[3], uri=str(broken), vectors=None)
    found = Cam()(query, before, Context(photos))
    assert found[1].uri == "/gone/away.jpg"
    assert "away.jpg" in found[1].note
    assert found[3].uri == str(broken)
    assert "kept its place" in found[3].note
    rest = [h.score for i, h in enumerate(found) if i not in (1, 3)]
    assert rest == sorted(rest, reverse=True)


def test_the_best_regions_descriptor_takes_part_in_the_expansion_of_this_query_only(
    photos, folder, query
):
    before = candidates(folder, photos)
    found = Cam()(query, before, Context(photos))
    assert photos.encoder.settings.descriptor == "classes"
    target = query.encoding.class_vectors[:6].sum(axis=0)
    target /= np.linalg.norm(target)
    for hit in found:
        assert float(hit.vectors.descriptor @ target) == pytest.approx(hit.score, abs=1e-5)
    asked: list[np.ndarray] = []

    def find(queries, descriptors, n):
        asked.append(descriptors[0])
        return [before]

    QueryExpansion(2)(query, found, Context(photos, find))
    expected = found[0].vectors.descriptor + found[1].vectors.descriptor
    np.testing.assert_allclose(asked[0], expected / np.linalg.norm(expected), atol=1e-5)
    stored = {h.uri: h.vectors.descriptor for h in candidates(folder, photos)}
    assert all((stored[h.uri] == h.vectors.descriptor).all() for h in before)


def test_another_descriptor_of_the_best_region_is_the_encoders_of_that_crop(photos, folder, query):
    before = candidates(folder, photos)
    with network_built_once():
        both = Encoder(descriptor="both")
    assert both.settings.descriptor == "both"

    class Collection:
        encoder = both

    context = Context(Collection())
    stored = {hit.uri: hit.vectors.descriptor for hit in before}
    ids = torch.from_numpy(query.encoding.class_ids[:6])
    for hit in Cam()(query, before[:3], context):
        photo = both.prepare(both.read(hit.uri))
        with torch.no_grad():
            maps = both.backbone(photo.view[None])
            height, width = maps.features.shape[2:]
            cams = cam.class_activation_maps(
                maps.class_source, maps.class_weights(ids[None]), (height, width)
            )
            box = hit.box.scaled(width / hit.width, height / hit.height)
            x1, y1, x2, y2 = (round(side) for side in box)
            crop, part = maps.features[..., y1:y2, x1:x2], cams[..., y1:y2, x1:x2]
            weights = channel_weights(crop)
            of_classes = both.whiten(class_vectors(crop, part, channel_weights=weights), "classes")
            grid = grid_boxes(y2 - y1, x2 - x1, both.settings.region_levels)
            pooled = l2_normalize(region_vectors(crop, grid)[0] * weights)
            expected = both.describe(of_classes, [both.whiten(pooled, "regions")])[0]
        np.testing.assert_allclose(hit.vectors.descriptor, expected.numpy(), atol=1e-5)
        assert not np.allclose(hit.vectors.descriptor, stored[hit.uri], atol=0.05)
    few = Cam(n_described=2)(query, before, context)
    for hit in few[2:]:
        np.testing.assert_array_equal(hit.vectors.descriptor, stored[hit.uri])
    assert all((hit.vectors.descriptor != stored[hit.uri]).any() for hit in few[:2])
    for hit in Cam()(query, before[:3], replace(context, wanted=frozenset())):
        np.testing.assert_array_equal(hit.vectors.descriptor, stored[hit.uri])


def test_crow_weighting_of_features_is_done_over_each_region(folder):
    with network_built_once():
        crow = small(image_size=320, feature_weighting="crow", whitening=None)
    photo = crow.prepare(crow.read(str(folder / "coffee.png")))
    with torch.no_grad():
        maps = crow.backbone(photo.view[None])
        weights = maps.class_weights(torch.tensor([[967, 504]]))
        cams = cam.class_activation_maps(maps.class_source, weights, maps.features.shape[2:])
        boxes = [(0, 0, 5, 5), (2, 1, 8, 7)]
        found = class_vectors_in_boxes(maps.features[0], cams[0], boxes, "crow")
        for vectors, (x1, y1, x2, y2) in zip(found, boxes, strict=True):
            crop, part = maps.features[..., y1:y2, x1:x2], cams[..., y1:y2, x1:x2]
            weighted = crop * crow_spatial_weights(crop)[:, None]
            expected = class_vectors(weighted, part, channel_weights(crop))[0]
            torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_paper_compat_never_scores_the_40_percent_box(folder, monkeypatch):
    asked: list[tuple[float, ...]] = []

    def watched(heat, thresholds, min_side):
        asked.append(tuple(thresholds))
        return heat_boxes(heat, thresholds, min_side)

    monkeypatch.setattr("cwf_milvus.search.seen_again.heat_boxes", watched)
    with network_built_once():
        compat = small(whitening=None, n_classes=6, n_pooled=6, paper_compat=True)
    encoding = compat.encode_query(str(folder / "rocket.jpg"))
    hit = Hit(str(folder / "rocket.jpg"), 1.0, width=640, height=427)

    class Collection:
        encoder = compat

    Cam()(Query(encoding, "q"), [hit], Context(Collection()))
    assert asked == [(0.01, 0.1, 0.2, 0.3)]


def test_search_re_ranks_by_cam(photos, folder):
    hits = photos.search(
        str(folder / "chelsea.png"), box=(90, 5, 355, 275), rerank="cam", expand="qe:2", limit=4
    )
    assert [s.stage for s in hits[0].stages] == ["descriptor", "cam", "qe"]
    assert "chelsea" in Path(hits[0].uri).name


def test_no_hits_stay_no_hits(photos, query):
    assert Cam()(query, [], Context(photos)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"n_classes": 0},
        {"n_heat": 0},
        {"n_described": 0},
        {"thresholds": ()},
        {"thresholds": (0.1, 1.0)},
    ],
)
def test_numbers_that_cannot_be_are_refused(options):
    with pytest.raises(SettingsError, match="give"):
        Cam(**options)


def test_photos_cannot_be_seen_without_an_encoder(query):
    with pytest.raises(SettingsError, match="takes a collection's encoder"):
        Cam()(query, [Hit("a", 1.0)], Context())
