from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from skimage import data as photos
from sklearn.datasets import load_sample_image

from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.method import spatial
from cwf_milvus.method.keypoint_codes import Keypoints, pack_keypoints, unpack_keypoints
from cwf_milvus.method.spatial import MIN_INLIERS, spatial_score, verify, verify_hits

pytestmark = pytest.mark.filterwarnings("error")  # of numpy: none on any input

PHOTOS = {
    "astronaut": photos.astronaut(),
    "cat": photos.chelsea(),
    "coffee": photos.coffee(),
    "flower": load_sample_image("flower.jpg"),
    "palace": load_sample_image("china.jpg"),
}
THING = (150.0, 100.0, 400.0, 300.0)
MAPS = {
    "shift": np.array([[1, 0, 60], [0, 1, 35]], float),
    "half": np.array([[0.5, 0, 100], [0, 0.5, 80]], float),
    "larger": np.array([[1.6, 0, -200], [0, 1.6, -120]], float),
    "turned": np.array([[0.8, -0.5, 200], [0.5, 0.8, -60]], float),
    "upside down": np.array([[-0.9, 0, 600], [0, -0.9, 450]], float),
    "sheared": np.array([[1, 0.3, -40], [0.1, 0.8, 20]], float),
}


def extracted(pixels, limit=800):
    height, width = pixels.shape[:2]
    return extract_keypoints(pixels, width, height, limit)


@cache
def keypoints_of(name):
    return extracted(PHOTOS[name])


@cache
def warped(name, matrix):
    pixels = cv2.warpAffine(PHOTOS[name], MAPS[matrix], (640, 480))
    return unpack_keypoints(pack_keypoints(extracted(pixels)))


def corners(box, matrix):
    x1, y1, x2, y2 = box
    points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    return np.clip(points @ matrix[:, :2].T + matrix[:, 2], 0, (640, 480))


def around(polygon):
    return (*polygon.min(axis=0), *polygon.max(axis=0))


def iou(one, other):
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("matrix", MAPS)
@pytest.mark.parametrize("name", ["astronaut", "palace", "coffee"])
def test_a_thing_is_found_again_where_it_was_moved(name, matrix):
    found = verify(keypoints_of(name), warped(name, matrix), THING)
    assert found is not None
    truth = corners(THING, MAPS[matrix])
    assert np.abs(found.polygon - truth).max() < 12
    assert iou(around(found.polygon), around(truth)) > 0.9
    if matrix not in ("turned", "sheared"):  # of these it leaves out the corners
        assert iou(found.box, around(truth)) > 0.9


def test_the_map_brings_the_matched_points_to_their_partners():
    found = verify(keypoints_of("palace"), warped("palace", "turned"), THING)
    assert found.inliers == len(found.query_points) == len(found.hit_points) > 30
    mapped = found.query_points @ found.affine[:, :2].T + found.affine[:, 2]
    assert np.linalg.norm(mapped - found.hit_points, axis=1).max() < spatial.TOLERANCE * 640


def test_only_keypoints_in_the_box_are_asked_for():
    found = verify(keypoints_of("palace"), warped("palace", "shift"), THING)
    x, y = found.query_points.T
    assert ((x >= 150) & (x < 400) & (y >= 100) & (y < 300)).all()


def test_without_a_box_the_whole_photo_is_looked_for():
    found = verify(keypoints_of("astronaut"), warped("astronaut", "half"))
    assert iou(found.box, (100, 80, 356, 336)) > 0.95


def test_the_box_is_clipped_to_the_hit():
    left, top, right, bottom = verify(
        keypoints_of("palace"), warped("palace", "larger"), (0, 0, 640, 427)
    ).box
    assert (left, top) == (0, 0)
    assert right == 640
    assert bottom == 480


def test_the_box_of_a_turned_thing_lies_between_that_of_its_corners_and_of_an_ellipse():
    found = verify(keypoints_of("palace"), warped("palace", "turned"), THING)
    outer = around(found.polygon)
    centre = found.affine @ ((150 + 400) / 2, (100 + 300) / 2, 1)
    reach = np.hypot(*(found.affine[:, :2] * (125, 100)).T)
    inner = (*(centre - reach), *(centre + reach))
    assert iou(found.box, outer) < 1
    assert all(o <= b <= i for o, b, i in zip(outer[:2], found.box[:2], inner[:2], strict=True))
    assert all(i <= b <= o for o, b, i in zip(outer[2:], found.box[2:], inner[2:], strict=True))


@pytest.mark.parametrize("name", PHOTOS)
def test_other_photos_are_not_verified(name):
    others = [keypoints_of(other) for other in PHOTOS if other != name]
    assert verify_hits(keypoints_of(name), others) == [None] * len(others)


def test_many_hits_give_what_each_alone_gives():
    hits = [warped("palace", "half"), keypoints_of("cat"), warped("palace", "sheared")]
    hits.insert(1, hits[0][:0])
    together = verify_hits(keypoints_of("palace"), hits, THING)
    for found, hit in zip(together, hits, strict=True):
        alone = verify(keypoints_of("palace"), hit, THING)
        assert (found is None) == (alone is None)
        if found is not None:
            np.testing.assert_array_equal(found.affine, alone.affine)
            np.testing.assert_array_equal(found.hit_points, alone.hit_points)


def test_the_answer_is_the_same_each_time_and_in_threads():
    ask = lambda _: verify(keypoints_of("palace"), warped("palace", "turned"), THING)  # noqa: E731
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(12)))
    for answer in answers:
        np.testing.assert_array_equal(answer.affine, answers[0].affine)
        assert answer.box == answers[0].box


# --- mirrored -------------------------------------------------------------------------------------


def test_a_mirrored_thing_is_found_whole_where_it_is_asked_for():
    pixels = PHOTOS["cat"]
    hit = extracted(np.ascontiguousarray(pixels[:, ::-1]))
    query = keypoints_of("cat")
    box = (100.0, 50.0, 300.0, 250.0)
    alone = verify(query, hit, box)  # what is symmetric in it
    found = verify(query, hit, box, mirrored=extracted(pixels[:, ::-1]))
    assert found.inliers > 5 * (alone.inliers if alone else 1)
    np.testing.assert_allclose(found.affine, [[-1, 0, 451], [0, 1, 0]], atol=0.5)
    assert iou(found.box, (151, 50, 351, 250)) > 0.98
    assert (found.query_points[:, 0] < 300).all()


def test_a_thing_that_is_not_mirrored_keeps_its_map_when_both_are_tried():
    query = keypoints_of("cat")
    found = verify(query, query, THING, mirrored=extracted(PHOTOS["cat"][:, ::-1]))
    np.testing.assert_allclose(found.affine, [[1, 0, 0], [0, 1, 0]], atol=1e-2)


# --- bad input ------------------------------------------------------------------------------------


def with_positions(keypoints, positions):
    return replace(keypoints, positions=np.asarray(positions, np.float32))


def bad_keypoints():
    good = keypoints_of("palace")
    n = len(good)
    line = np.stack([np.linspace(0, 600, n), np.full(n, 200)], axis=1)
    slanted = np.linspace([0, 0], [600, 400], n)
    return {
        "none": good[:0],
        "one": good[:1],
        "too few": good[: MIN_INLIERS - 1],
        "all in one place": with_positions(good, np.full((n, 2), 200)),
        "two places": with_positions(good, np.repeat([[100, 100], [300, 300]], [9, n - 9], axis=0)),
        "places not finite": with_positions(good, np.full((n, 2), np.nan)),
        "places infinite": with_positions(good, np.full((n, 2), np.inf)),
        "descriptors not finite": replace(good, descriptors=good.descriptors * np.float32(np.nan)),
        "descriptors infinite": replace(good, descriptors=np.full_like(good.descriptors, np.inf)),
        "descriptors alike": replace(good, descriptors=np.ones_like(good.descriptors)),
        "descriptors zero": replace(good, descriptors=np.zeros_like(good.descriptors)),
        "scales zero": replace(good, scales=np.zeros_like(good.scales)),
        "scales not finite": replace(good, scales=good.scales * np.float32(np.nan)),
        "angles not finite": replace(good, angles=good.angles * np.float32(np.nan)),
        "line against photo": with_positions(good, line),
        "slanted line against photo": with_positions(good, slanted),
    }


@pytest.mark.parametrize("kind", bad_keypoints())
def test_bad_keypoints_are_not_verified_and_raise_nothing(kind):
    good, bad = keypoints_of("palace"), bad_keypoints()[kind]
    assert verify_hits(good, [bad, good[:0]]) == [None, None]
    assert verify_hits(bad, [good, bad[:0]]) == [None, None]
    assert verify(bad, bad) is None


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (5000, 5000, 6000, 6000), (300, 200, 300, 200), (float("nan"),) * 4]
)
def test_a_box_without_keypoints_is_not_verified(box):
    assert verify(keypoints_of("palace"), keypoints_of("palace"), box) is None


def test_some_keypoints_that_are_not_finite_do_not_spoil_the_others():
    good = keypoints_of("palace")
    bad = replace(good, positions=good.positions.copy())
    bad.positions[::5] = np.nan
    assert verify(bad, good).inliers > 100
    assert verify(good, bad).inliers > 100


def test_no_hits_give_no_answers():
    assert verify_hits(keypoints_of("palace"), []) == []


def test_a_pattern_that_repeats_counts_once():
    """One window of the hit is matched by forty windows of the query."""
    good = keypoints_of("palace")
    windows = Keypoints(
        np.random.default_rng(0).uniform(0, 400, (40, 2)).astype(np.float32),
        np.full(40, good.scales[0]),
        np.full(40, good.angles[0]),
        np.repeat(good.descriptors[:1], 40, axis=0),
        640,
        427,
    )
    assert verify(windows, good) is None


# --- against plain references ---------------------------------------------------------------------


def test_matches_are_those_of_distances_in_double_precision():
    query, hit = keypoints_of("palace").descriptors, warped("palace", "turned").descriptors
    room = np.empty(len(query) * len(hit), np.float32)
    mine, theirs = spatial._matches(query, hit, room)
    apart = np.linalg.norm(query.astype(float)[:, None] - hit.astype(float), axis=2)
    nearest = np.sort(apart, axis=1)
    ratio = nearest[:, 0] / nearest[:, 1]
    sure = np.abs(ratio - spatial.RATIO) > 1e-4
    expected = np.flatnonzero((ratio < spatial.RATIO) & sure)
    assert sorted(set(mine[sure[mine]].tolist())) == expected.tolist()
    np.testing.assert_array_equal(theirs, apart.argmin(axis=1)[mine])
    assert (np.diff(ratio[mine]) > -1e-4).all()


def test_the_map_of_many_points_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 500, (200, 2))
    truth = MAPS["turned"]
    q = p @ truth[:, :2].T + truth[:, 2] + rng.normal(0, 2, p.shape)
    plain = np.linalg.lstsq(np.c_[p, np.ones(200)], q)[0].T
    one = np.array([1, 1j])
    agree = np.ones((1, 200), bool)
    held = spatial._least_squares(p @ one, q @ one, agree, np.array([[0.8, 0.5]]), 5.0)[0]
    np.testing.assert_allclose(held, plain, atol=0.05)


def test_few_points_close_together_keep_to_the_proposed_map():
    p = np.array([[100, 100], [102, 100], [101, 102]], float)
    q = p + np.array([[0, 0], [3, 1], [-2, 2]])
    one = np.array([1, 1j])
    agree = np.ones((1, 3), bool)
    held = spatial._least_squares(p @ one, q @ one, agree, np.array([[1.0, 0.0]]), 8.0)[0]
    np.testing.assert_allclose(held[:, :2], np.eye(2), atol=0.05)
    np.testing.assert_allclose(held @ (101, 302 / 3, 1), q.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("linear", "plausible"),
    [
        ([[1, 0], [0, 1]], True),
        ([[0, -1], [1, 0]], True),
        ([[3.9, 0], [0, 1]], True),
        ([[4.1, 0], [0, 1]], False),
        ([[-1, 0], [0, 1]], False),
        ([[0.1, 0], [0, 0.1]], False),
        ([[8, 0], [0, 8]], False),
        ([[1, 1], [1, 1]], False),
        ([[np.nan, 0], [0, 1]], False),
    ],
)
def test_only_maps_that_a_camera_could_have_made_are_plausible(linear, plausible):
    maps = np.concatenate([np.array([linear], float), np.zeros((1, 2, 1))], axis=2)
    assert spatial._plausible(maps).tolist() == [plausible]


def test_inliers_raise_a_score_by_a_tenth_at_most():
    scores = spatial_score(np.full(5, 0.4), np.array([0, 5, 10, 15, 400]))
    np.testing.assert_allclose(scores, [0.4, 0.4, 0.45, 0.5, 0.5])
