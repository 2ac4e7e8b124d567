import struct
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from skimage import data as photos

from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.errors import CollectionError
from cwf_milvus.method.keypoint_codes import (
    DIM,
    MAX_KEYPOINTS,
    PACKED_HEADER,
    PACKED_KEYPOINT,
    Keypoints,
    compact_descriptors,
    pack_keypoints,
    unpack_keypoints,
)


def drawn(n, width=640, height=480, seed=0):
    rng = np.random.default_rng(seed)
    return Keypoints(
        positions=(rng.random((n, 2)) * (width, height)).astype(np.float32),
        scales=np.float32(2.0) ** rng.uniform(0, 6, n).astype(np.float32),
        angles=rng.uniform(0, 2 * np.pi, n).astype(np.float32),
        descriptors=rng.standard_normal((n, DIM)).astype(np.float32) + 3,
        width=width,
        height=height,
    )


@pytest.fixture(scope="module")
def cat():
    pixels = photos.chelsea()
    return extract_keypoints(pixels, pixels.shape[1], pixels.shape[0], 500)


def test_eight_hundred_keypoints_fit_24_kilobytes_of_base64():
    packed = pack_keypoints(drawn(800))
    assert len(packed) == PACKED_HEADER + 800 * PACKED_KEYPOINT
    assert -(-len(packed) // 3) * 4 <= 24_000


@pytest.mark.parametrize("n", [0, 1, 2, 800, MAX_KEYPOINTS])
def test_keypoints_come_back_in_their_order(n):
    keypoints = drawn(n)
    back = unpack_keypoints(pack_keypoints(keypoints))
    assert len(back) == n
    assert (back.width, back.height) == (640, 480)
    assert back.positions.dtype == back.descriptors.dtype == np.float32
    np.testing.assert_allclose(back.positions, keypoints.positions, atol=640 / 65_535)
    np.testing.assert_allclose(back.scales, keypoints.scales, rtol=0.02)
    turns = np.exp(1j * back.angles) / np.exp(1j * keypoints.angles)
    assert (np.abs(np.angle(turns)) <= np.pi / 256 + 1e-3).all()


def test_a_single_descriptor_comes_back_as_it_was():
    keypoints = drawn(1)
    back = unpack_keypoints(pack_keypoints(keypoints))
    np.testing.assert_allclose(back.descriptors, keypoints.descriptors, rtol=1e-3)


def test_two_bits_lose_of_a_normal_distribution_what_four_levels_must():
    keypoints = drawn(MAX_KEYPOINTS)
    back = unpack_keypoints(pack_keypoints(keypoints))
    lost = np.mean((back.descriptors - keypoints.descriptors) ** 2)
    assert lost == pytest.approx(0.1175, abs=0.003)  # Max, 1960, table I


def test_the_four_levels_are_the_means_between_their_bounds():
    from cwf_milvus.method.keypoint_codes import _BOUNDS, _LEVELS

    edges = np.array([-np.inf, *_BOUNDS, np.inf])
    means = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    np.testing.assert_allclose(means, _LEVELS, atol=1e-3)


def test_packing_what_was_unpacked_keeps_places_scales_and_angles(cat):
    once = unpack_keypoints(pack_keypoints(cat))
    twice = unpack_keypoints(pack_keypoints(once))
    for part in ("positions", "scales", "angles"):
        np.testing.assert_allclose(getattr(twice, part), getattr(once, part), rtol=1e-5)


def test_places_beyond_the_photo_are_brought_to_its_edge():
    far = replace(drawn(1), positions=np.array([[-5, 1e9]], np.float32))
    np.testing.assert_allclose(unpack_keypoints(pack_keypoints(far)).positions, [[0, 640]])


def test_compact_distances_are_nearly_those_of_whole_descriptors():
    sift = np.random.default_rng(0).integers(0, 256, (200, 128)).astype(np.float32)
    smooth = sift.reshape(-1, 4, 4, 8)
    smooth = smooth + np.roll(smooth, 1, axis=3) + np.roll(smooth, -1, axis=3)
    sift = smooth.reshape(-1, 128)
    roots = np.sqrt(sift.astype(np.float64) / sift.sum(axis=1, keepdims=True))
    whole = np.linalg.norm(roots[:, None] - roots, axis=2)
    compact = compact_descriptors(sift).astype(np.float64)
    kept = np.linalg.norm(compact[:, None] - compact, axis=2)
    assert (kept <= whole + 1e-6).all()


def test_the_basis_keeps_most_of_what_differs_between_a_photos_descriptors():
    import cv2

    grey = cv2.cvtColor(photos.astronaut(), cv2.COLOR_RGB2GRAY)
    sift = cv2.SIFT.create(500).detectAndCompute(grey, None)[1]
    roots = np.sqrt(sift / sift.sum(axis=1, keepdims=True))
    assert compact_descriptors(sift).var(axis=0).sum() > 0.85 * roots.var(axis=0).sum()


def test_the_basis_is_orthonormal():
    units = compact_descriptors(np.eye(128, dtype=np.float32))
    np.testing.assert_allclose(units.T @ units, np.eye(DIM), atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 801])
def test_descriptors_are_the_same_alone_and_among_any_number(n):
    sift = np.random.default_rng(n).integers(0, 200, (n, 128)).astype(np.float32)
    alone = [compact_descriptors(one[None])[0] for one in sift]
    together = compact_descriptors(sift)
    assert together.shape == (n, DIM)
    np.testing.assert_allclose(together, np.reshape(alone, (n, DIM)), atol=1e-6)


def test_an_empty_descriptor_gives_zeros():
    assert not compact_descriptors(np.zeros((2, 128), np.float32)).any()


def test_more_keypoints_than_a_code_holds_are_refused():
    with pytest.raises(CollectionError, match="holds 4096"):
        pack_keypoints(drawn(MAX_KEYPOINTS + 1))


@pytest.mark.parametrize("part", ["positions", "scales", "angles", "descriptors"])
def test_numbers_that_are_not_finite_are_not_packed(part):
    keypoints = drawn(3)
    getattr(keypoints, part)[1] = np.nan
    with pytest.raises(CollectionError, match="not finite"):
        pack_keypoints(keypoints)


@pytest.mark.parametrize("length", [0, 1, 10, PACKED_HEADER - 1, PACKED_HEADER + 1, -1])
def test_bytes_cut_off_are_refused_with_a_remedy(length):
    with pytest.raises(CollectionError, match=r"damaged \(.*add the photo again"):
        unpack_keypoints(pack_keypoints(drawn(5))[:length])


def test_bytes_too_many_are_refused():
    with pytest.raises(CollectionError, match="damaged"):
        unpack_keypoints(pack_keypoints(drawn(5)) + b"\0")


def test_a_code_of_another_version_is_refused_with_a_remedy():
    with pytest.raises(CollectionError, match=r"version 9.*newer cwf-milvus"):
        unpack_keypoints(b"\x09" + pack_keypoints(drawn(5))[1:])


def test_a_count_beyond_the_limit_is_refused_before_anything_is_made():
    header = struct.pack("<BHII", 1, 65_535, 640, 480)
    body = bytes(PACKED_HEADER - len(header) + 65_535 * PACKED_KEYPOINT)
    with pytest.raises(CollectionError, match="for 65535 keypoints"):
        unpack_keypoints(header + body)


def test_a_photo_without_area_is_refused():
    packed = bytearray(pack_keypoints(drawn(5)))
    packed[3:7] = bytes(4)
    with pytest.raises(CollectionError, match="0 x 480"):
        unpack_keypoints(bytes(packed))


def test_any_bytes_give_finite_keypoints_or_an_error_of_ours():
    rng = np.random.default_rng(0)
    size = PACKED_HEADER + 5 * PACKED_KEYPOINT
    read = 0
    for _ in range(300):
        data = struct.pack("<BHII", 1, 5, *rng.integers(1, 2**32, 2)) + rng.bytes(size - 11)
        try:
            keypoints = unpack_keypoints(data)
        except CollectionError:
            continue
        read += 1
        parts = (keypoints.positions, keypoints.scales, keypoints.angles, keypoints.descriptors)
        assert all(np.isfinite(part).all() for part in parts)
        assert (keypoints.scales > 0).all()
    assert read
