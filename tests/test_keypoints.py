from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from skimage import data as photos
from sklearn.datasets import load_sample_image

from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.method.keypoint_codes import DIM

PARTS = ("positions", "scales", "angles", "descriptors")
CAT = photos.chelsea()
PALACE = load_sample_image("china.jpg")


def extracted(pixels, limit=300):
    height, width = pixels.shape[:2]
    return extract_keypoints(pixels, width, height, limit)


def equal(one, other):
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_a_photo_gives_as_many_keypoints_as_are_asked_for():
    keypoints = extracted(PALACE, 300)
    assert len(keypoints) == 300
    assert keypoints.positions.shape == (300, 2)
    assert keypoints.descriptors.shape == (300, DIM)
    assert all(getattr(keypoints, part).dtype == np.float32 for part in PARTS)
    assert (keypoints.width, keypoints.height) == (640, 427)


def test_fewer_keypoints_are_the_strongest_of_more():
    few, many = extracted(PALACE, 100), extracted(PALACE, 400)
    assert equal(few, many[:100])


def test_positions_are_inside_the_photo():
    x, y = extracted(PALACE, 2000).positions.T
    assert (x > 0).all()
    assert (x < 640).all()
    assert (y > 0).all()
    assert (y < 427).all()


def test_a_blob_is_found_where_it_was_drawn():
    pixels = np.full((240, 320, 3), 90, np.uint8)
    cv2.circle(pixels, (200, 100), 9, (250, 250, 250), -1, cv2.LINE_AA)
    positions = extracted(pixels, 50).positions
    assert np.linalg.norm(positions - (200.5, 100.5), axis=1).min() < 1


def test_a_reduced_decode_gives_positions_and_scales_in_original_pixels():
    half = cv2.resize(PALACE, (320, 214), interpolation=cv2.INTER_AREA)
    whole, reduced = extracted(PALACE, 200), extract_keypoints(half, 640, 427, 200)
    apart = np.linalg.norm(whole.positions[:, None] - reduced.positions, axis=2)
    partner = apart.argmin(axis=1)
    near = apart.min(axis=1) < 3
    assert near.mean() > 0.3
    ratio = reduced.scales[partner[near]] / whole.scales[near]
    assert np.median(ratio) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (1, 10_000), (10_000, 1), (3, 700)])
@pytest.mark.parametrize("value", [0, 90, 255])
def test_plain_and_tiny_photos_have_no_keypoints(shape, value):
    keypoints = extracted(np.full((*shape, 3), value, np.uint8))
    assert len(keypoints) == 0
    assert keypoints.positions.shape == (0, 2)
    assert keypoints.descriptors.shape == (0, DIM)


def test_a_grey_photo_gives_what_its_colours_would():
    grey = cv2.cvtColor(CAT, cv2.COLOR_RGB2GRAY)
    keypoints = extracted(np.repeat(grey[:, :, None], 3, axis=2))
    assert equal(keypoints, extracted(CAT))


def test_strided_and_read_only_pixels_are_taken():
    view = PALACE[:, ::-1]
    copy = view.copy()
    copy.flags.writeable = False
    assert equal(extracted(view), extracted(copy))


def test_threads_give_the_same_keypoints_as_one_after_the_other():
    asked = [CAT, PALACE, photos.astronaut(), photos.coffee()] * 3
    alone = [extracted(pixels) for pixels in asked]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(extracted, asked))
    assert all(map(equal, alone, together))


def test_opencvs_number_of_threads_stays_as_the_program_set_it():
    before = cv2.getNumThreads()
    extracted(CAT)
    assert cv2.getNumThreads() == before
