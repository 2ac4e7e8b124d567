from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.int4 import Int4Vectors, inner_products
from cwf_milvus.method.rotation import rotate, rotate_back


def units(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


ROTATED_RAMP = "debb2307db6dd470c71ab2d02f832fd59fd13ffd9a68133107224d500c01af10"
DIMENSIONS = [1, 2, 3, 7, 512, 1000, 1024]


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_a_rotation_keeps_inner_products_and_can_be_undone(dim):
    vectors = units(9, dim)
    turned = rotate(vectors)
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-5)
    np.testing.assert_allclose(rotate_back(turned), vectors, atol=1e-5)


@pytest.mark.parametrize("dim", [512, 1000])
def test_a_rotation_spreads_a_single_number_over_all(dim):
    for place in (0, dim // 2, dim - 1):
        turned = rotate(np.eye(dim, dtype=np.float32)[place : place + 1])
        assert abs(turned).max() < 0.3


def test_the_rotation_never_changes():
    """Stored vectors can be read only by the rotation that they were stored with."""
    ramp = np.arange(12, dtype=np.float32)[None]
    assert hashlib.sha256(rotate(ramp).astype("<f4").tobytes()).hexdigest() == ROTATED_RAMP


def test_a_rotation_does_not_depend_on_what_else_is_rotated():
    vectors = units(5, 96)
    np.testing.assert_array_equal(rotate(vectors)[2:3], rotate(vectors[2:3]))


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_a_number_takes_four_bits_and_a_vector_one_factor(dim):
    stored = Int4Vectors.of(units(3, dim))
    assert stored.codes.dtype == np.uint8
    assert stored.codes.shape == (3, -(-dim // 2))
    assert stored.factors.dtype == np.float32
    assert (len(stored), stored.shape) == (3, (3, dim))
    assert stored.nbytes == 3 * (-(-dim // 2) + 4)


@pytest.mark.parametrize("dim", [512, 1000, 1023])
def test_rounded_vectors_point_where_the_true_ones_do(dim):
    vectors = units(50, dim)
    rounded = np.asarray(Int4Vectors.of(vectors))
    assert rounded.dtype == np.float32
    cosines = (rounded * vectors).sum(axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.99


def test_an_inner_product_of_a_vector_and_its_rounded_self_is_right():
    vectors = 3 * units(50, 256)
    np.testing.assert_allclose(
        (np.asarray(Int4Vectors.of(vectors)) * vectors).sum(axis=1), 9, rtol=1e-4
    )


def test_sparse_vectors_lose_no_more_than_others():
    """Without the rotation most of their numbers would round to what is not 0."""
    vectors = np.eye(1024, dtype=np.float32)[::100]
    rounded = np.asarray(Int4Vectors.of(vectors))
    assert (np.linalg.norm(rounded - vectors, axis=1) < 0.2).all()


def test_an_all_zero_vector_stays_so():
    stored = Int4Vectors.of(np.zeros((2, 64), np.float32))
    assert not np.asarray(stored).any()
    assert not inner_products(units(3, 64), [stored]).any()


def test_no_vectors_are_no_vectors():
    stored = Int4Vectors.of(np.zeros((0, 64), np.float32))
    assert np.asarray(stored).shape == stored.shape == (0, 64)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_that_are_not_finite_are_refused(wrong):
    vectors = units(3, 64)
    vectors[1, 7] = wrong
    with pytest.raises(SettingsError, match="not finite"):
        Int4Vectors.of(vectors)


def test_they_are_never_seen_as_floats_without_a_copy():
    with pytest.raises(ValueError, match="copy"):
        np.array(Int4Vectors.of(units(3, 64)), copy=False)


@pytest.mark.parametrize("dim", [7, 64, 1000])
@pytest.mark.parametrize("counts", [[3], [1, 0, 5], [0], [700, 2, 900]])
def test_inner_products_are_those_of_the_rounded_vectors(dim, counts):
    query = units(4, dim)
    stored = [Int4Vectors.of(units(n, dim, seed=n)) for n in counts]
    expected = np.concatenate([np.asarray(one) for one in stored]) @ query.T
    found = inner_products(query, stored)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
