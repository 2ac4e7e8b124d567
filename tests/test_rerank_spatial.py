"""The stage `spatial`: views of real photos, with keypoints stored with them or read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pybase64
import pytest
from PIL import Image as PilImage
from small_encoders import CHELSEA, COFFEE, ROCKET, tiny
from stage_hits import hit, names, query

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.arrays import ArrayCollection
from cwf_milvus.method.keypoint_codes import Keypoints, pack_keypoints
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image
from cwf_milvus.rerank import Context, Regions, Reranker, Spatial
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.search import search, steered_query

CAT = Box(90, 5, 355, 275)  # in CHELSEA
PART = CHELSEA[:, 80:400]  # of the photo: 80 to the left of it is cut off


def keypoints(pixels: np.ndarray, limit: int = 400) -> Keypoints:
    height, width = pixels.shape[:2]
    return extract_keypoints(pixels, width, height, limit)


def asking(pixels: np.ndarray = CHELSEA, box: Box | None = CAT) -> Query:
    asked = query()
    return replace(asked, encoding=replace(asked.encoding, keypoints=keypoints(pixels)), box=box)


def showing(name: str, score: float, shown: Keypoints | None) -> Hit:
    one = hit(name, score, seed=7)
    return replace(one, vectors=replace(one.vectors, keypoints=shown))


@pytest.fixture(scope="module")
def hits() -> list[Hit]:
    return [
        showing("coffee", 0.30, keypoints(COFFEE)),
        showing("rocket", 0.28, keypoints(ROCKET)),
        showing("part", 0.25, keypoints(PART)),
    ]


def test_a_verified_hit_gains_a_tenth_and_is_told_where_the_thing_is(hits):
    found = Spatial()(asking(), hits, Context())
    assert names(found) == ["part", "coffee", "rocket"]
    first = found[0]
    assert first.inliers >= 15
    assert first.score == pytest.approx(0.25 + 0.1)
    assert first.framed_by == "keypoints"
    np.testing.assert_allclose(first.box, (10, 5, 275, 275), atol=3)
    np.testing.assert_allclose(first.polygon, [(10, 5), (275, 5), (275, 275), (10, 275)], atol=3)
    assert first.points.shape == (first.inliers, 4)
    np.testing.assert_allclose(first.points[:, 0] - first.points[:, 2], 80, atol=6)
    assert first.stages[-1].stage == "spatial"


def test_a_hit_in_which_nothing_agrees_keeps_its_score_and_its_regions_box(hits):
    framed = replace(hits[0], box=Box(1, 2, 3, 4), framed_by="region")
    (found,) = Spatial()(asking(), [framed], Context())
    assert (found.score, found.inliers, found.polygon) == (0.30, 0, None)
    assert (found.box, found.framed_by) == (Box(1, 2, 3, 4), "region")
    assert found.note == ""


def test_hits_beyond_the_first_n_follow_as_they_were(hits):
    found = Spatial(n=2)(asking(), hits, Context())
    assert names(found) == ["coffee", "rocket", "part"]
    assert found[2] is hits[2]
    assert found[2].inliers is None


def test_a_hit_without_keypoints_keeps_its_place_and_says_so(hits):
    found = Spatial()(asking(), [showing("bare", 0.3, None), *hits], Context())
    assert names(found) == ["bare", "part", "coffee", "rocket"]
    assert "no keypoints" in found[0].note
    assert found[0].inliers is None


def bad(what: str) -> Keypoints:
    good = keypoints(CHELSEA)
    if what == "none":
        return good[:0]
    if what == "on a line":
        line = np.column_stack([np.linspace(0, 400, len(good)), np.full(len(good), 50)])
        return replace(good, positions=line.astype(np.float32))
    if what == "in one place":
        return replace(good, positions=np.full_like(good.positions, 9))
    return replace(good, positions=np.full_like(good.positions, np.nan))


@pytest.mark.parametrize("what", ["none", "on a line", "in one place", "nan"])
def test_keypoints_that_show_nothing_verify_nothing(what: str, hits):
    odd = showing("odd", 0.2, bad(what))
    found = Spatial()(asking(), [*hits, odd], Context())
    assert found[-1].uri == "odd"
    assert found[-1].inliers == 0
    asked = replace(asking(), encoding=replace(asking().encoding, keypoints=bad(what)))
    assert [one.inliers for one in Spatial()(asked, hits, Context())] == [0, 0, 0]


def test_a_box_with_no_keypoints_inside_verifies_nothing(hits):
    found = Spatial()(asking(box=Box(0, 0, 2, 2)), hits, Context())
    assert names(found) == names(hits)
    assert [one.inliers for one in found] == [0, 0, 0]


def test_no_hits_stay_no_hits():
    assert Spatial()(asking(), [], Context()) == []


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_hits_that_cannot_be_is_refused(n):
    with pytest.raises(SettingsError, match="at least 1"):
        Spatial(n=n)


# Of photos that are read again


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny(whitening=None, keypoints=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for name, pixels in (("chelsea", CHELSEA), ("coffee", COFFEE), ("part", PART)):
        PilImage.fromarray(pixels).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def gallery(encoder, files) -> ArrayCollection:
    return ArrayCollection(encoder, encoder.encode([str(file) for file in files]))


def test_photos_without_stored_keypoints_are_read_again_once(gallery, encoder, files):
    found = search(gallery, str(files[0]), box=CAT, rerank=["regions", "spatial"])
    assert [Path(one.uri).stem for one in found[:2]] == ["chelsea", "part"]
    assert found[1].framed_by == "keypoints"
    assert len(encoder.keypoints_read) == len(files)
    kept = encoder.keypoints_read.get((found[1].uri, load_image(found[1].uri).content))
    again = search(gallery, str(files[0]), box=CAT, rerank="spatial")
    assert len(encoder.keypoints_read) == len(files)
    assert again[1].inliers == found[1].inliers
    assert len(kept) > 100


def test_a_photo_that_is_gone_or_another_keeps_its_place_and_says_why(encoder, files, tmp_path):
    there = [tmp_path / file.name for file in files]
    for file, copy in zip(files, there, strict=True):
        copy.write_bytes(file.read_bytes())
    gallery = ArrayCollection(encoder, encoder.encode([str(copy) for copy in there]))
    query = there[0].read_bytes()
    bare = [one.uri for one in search(gallery, query, rerank="none")]
    there[0].unlink()
    there[1].write_bytes(query)
    found = search(gallery, query, rerank="spatial")
    gone = next(one for one in found if one.uri == str(there[0]))
    other = next(one for one in found if one.uri == str(there[1]))
    assert "chelsea.png" in gone.note
    assert "another" in other.note
    assert bare.index(other.uri) == [one.uri for one in found].index(other.uri)


def test_auto_reads_no_photos_again(gallery):
    assert [stage.name for stage in chosen_stages(gallery=gallery)] == ["regions"]


def test_a_query_of_stored_photos_is_verified_by_the_first_that_is_liked(gallery, files):
    asked, _ = steered_query(gallery, [str(files[0]), str(files[1])], [])
    (part,) = list(search(gallery, like=[str(files[0]), str(files[1])], rerank="spatial"))
    assert part.uri == str(files[2])
    assert part.inliers >= 15
    assert asked.encoding.uri == str(files[0])


def test_mirrored_things_are_found_where_they_are_asked_for(gallery, encoder, tmp_path):
    mirrored = tmp_path / "mirrored.png"
    PilImage.fromarray(np.ascontiguousarray(ROCKET[:, ::-1])).save(mirrored)
    there = ArrayCollection(encoder, encoder.encode([str(mirrored)]))
    plain, both = (
        search(there, ROCKET, stages=[Spatial(mirrored=mirrored)])[0] for mirrored in (False, True)
    )
    assert both.inliers > max(15, plain.inliers)
    with pytest.raises(SettingsError, match="mirrored"):
        search(there, like=str(mirrored), stages=[Spatial(mirrored=True)])


# Of hits of another's


def test_the_reranker_verifies_by_packed_keypoints(hits):
    texts = {
        one.uri: pybase64.b64encode_as_string(pack_keypoints(one.vectors.keypoints)) for one in hits
    }
    answer = [
        {"id": one.uri, "distance": one.score, "entity": {"points": texts[one.uri]}} for one in hits
    ]
    rerank = Reranker([Spatial()], keypoints="points")
    found = rerank(answer, asking().encoding)
    assert found[0].uri == "part"
    assert found[0].framed_by == "keypoints"
    answer[0]["entity"]["points"] = "nonsense!"
    with pytest.raises(SettingsError, match="holds no keypoints"):
        rerank(answer, asking().encoding)


def test_the_reranker_refuses_what_has_no_keypoints():
    with pytest.raises(SettingsError, match="keypoints=FIELD"):
        Reranker([Regions(), Spatial()], regions="patches")
    rerank = Reranker([Spatial()], keypoints="points")
    with pytest.raises(SettingsError, match="the query has no keypoints"):
        rerank([], regions=np.eye(4, dtype=np.float32))
