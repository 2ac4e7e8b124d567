import numpy as np
import pytest

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.int8 import Int8Vectors
from cwf_milvus.store.packing import (
    FIELD_BYTES,
    PRECISIONS,
    Text,
    fields_needed,
    pack_boxes,
    pack_vectors,
    read_vectors,
    unpack_boxes,
    unpack_vectors,
    vectors_per_field,
)


def unit_vectors(n, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


SHAPES = [(64, 1024), (1000, 512), (1, 1), (21, 1280), (0, 512)]


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_vectors_come_back_within_half_precision(n, dim):
    vectors = unit_vectors(n, dim)
    texts = pack_vectors(vectors, fields_needed(n, dim, "float16"), "float16")
    back = unpack_vectors(texts, dim, "float16")
    assert back.shape == (n, dim)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, vectors.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_vectors_come_back_within_half_a_level_of_int8(n, dim):
    vectors = unit_vectors(n, dim)
    back = unpack_vectors(pack_vectors(vectors, fields_needed(n, dim, "int8"), "int8"), dim, "int8")
    assert back.shape == (n, dim)
    assert back.dtype == np.float32
    levels = np.abs(vectors).max(axis=1, keepdims=True, initial=0) / 127
    assert (np.abs(back - vectors) <= 0.5001 * levels).all()


def test_int8_keeps_zero_vectors_tiny_ones_and_the_largest_number():
    vectors = np.zeros((3, 8), np.float32)
    vectors[1, 2] = -1e-20
    vectors[2] = np.linspace(-5, 60_000, 8)
    back = unpack_vectors(pack_vectors(vectors, 1, "int8"), 8, "int8")
    np.testing.assert_allclose(back[:2], vectors[:2], rtol=1e-6)
    np.testing.assert_allclose(back[2], vectors[2], atol=60_000 / 254)
    assert back[2, 7] == 60_000


@pytest.mark.parametrize(("precision", "most"), [("int4", 0.04), ("int8", 2e-3), ("float16", 1e-4)])
def test_cosines_change_by_little(precision, most):
    vectors = unit_vectors(64, 1024)
    back = unpack_vectors(pack_vectors(vectors, 3, precision), 1024, precision)
    assert np.abs(back @ back.T - vectors @ vectors.T).max() < most


def test_int8_vectors_are_read_as_they_are_and_turn_into_the_same_floats():
    vectors = unit_vectors(70, 1024)
    texts = pack_vectors(vectors, 2, "int8")
    kept = read_vectors(texts, 1024, "int8")
    assert isinstance(kept, Int8Vectors)
    assert len(kept) == 70
    assert kept.shape == (70, 1024)
    assert kept.nbytes == 70 * 1028
    np.testing.assert_array_equal(np.asarray(kept), unpack_vectors(texts, 1024, "int8"))
    assert np.asarray(kept, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(kept, copy=False)


def test_int8_takes_half_the_fields_of_float16():
    assert vectors_per_field(1024, "int8") == 47
    assert vectors_per_field(1024, "float16") == 23


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_field_is_longer_than_a_server_takes(precision):
    for dim in (1, 128, 512, 1024, 1280, 24_574):
        n_fields = fields_needed(100, dim, precision)
        texts = pack_vectors(unit_vectors(100, dim), n_fields, precision)
        assert max(len(text.encode()) for text in texts) <= FIELD_BYTES


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fewer_vectors_than_the_fields_hold_leave_the_last_fields_empty(precision):
    texts = pack_vectors(unit_vectors(5, 1024), 3, precision)
    assert [bool(text) for text in texts] == [True, False, False]
    assert unpack_vectors(texts, 1024, precision).shape == (5, 1024)


@pytest.mark.parametrize(
    ("precision", "most"), [("float16", 24_574), ("int8", 49_145), ("int4", 98_290)]
)
def test_a_vector_too_long_for_any_field_is_refused(precision, most):
    assert fields_needed(1, most, precision) == 1
    with pytest.raises(SettingsError, match=rf"dim={most + 1}: .* at most {most} numbers"):
        fields_needed(1, most + 1, precision)


@pytest.mark.parametrize(("precision", "most"), [("float16", 46), ("int8", 94)])
def test_more_vectors_than_fit_are_refused(precision, most):
    with pytest.raises(
        SettingsError, match=f"95 vectors of 1024 numbers in 2 fields: these hold {most}"
    ):
        pack_vectors(unit_vectors(95, 1024), 2, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_numbers_that_float16_does_not_hold_are_refused(bad, precision):
    vectors = unit_vectors(2, 8)
    vectors[1, 3] = bad
    with pytest.raises(SettingsError, match="not finite"):
        pack_vectors(vectors, 1, precision)


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingsError, match="precision='int3': give one of int4, int8, float16"):
        fields_needed(1, 8, "int3")


def test_boxes_come_back_exactly():
    boxes = np.array([[0, 0, 4000.5, 3000.25], [1e-3, 7, 1e5, 9]], np.float32)
    np.testing.assert_array_equal(unpack_boxes(pack_boxes(boxes)), boxes)
    assert unpack_boxes(pack_boxes(np.empty((0, 4)))).shape == (0, 4)


@pytest.mark.parametrize("text", ["AAAA", "AAAAAA==", "AAAAAAAAAAA=", "AAAAAAAAAAAAAAAAAAAAAAA="])
def test_boxes_of_a_wrong_length_are_refused_as_damaged(text):  # found by a fuzzer
    with pytest.raises(CollectionError, match="damaged"):
        unpack_boxes(text)


def test_more_boxes_than_a_field_holds_are_refused():
    with pytest.raises(SettingsError, match="4000 boxes"):
        pack_boxes(np.zeros((4000, 4)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("damage", ["!!!!", "AAA", "AAAA", "\N{SNOWMAN}", "QUI="])
def test_damaged_text_is_named_as_such(damage, precision):
    with pytest.raises(CollectionError, match="damaged"):
        unpack_vectors([damage], 8, precision)


def test_a_damaged_factor_is_named_as_such():
    text = "/////wAAAAAAAAAA"  # NaN, then eight zeros
    assert unpack_vectors(["AACAPwAAAAAAAAAA"], 8, "int8").shape == (1, 8)
    with pytest.raises(CollectionError, match="not finite"):
        unpack_vectors([text], 8, "int8")


def test_text_is_a_string_that_iterates_over_itself_once():
    text = Text("abc")
    assert text == "abc"
    assert list(text) == ["abc"]
