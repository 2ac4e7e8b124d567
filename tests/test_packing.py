import numpy as np
import pytest

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.packing import (
    FIELD_BYTES,
    Text,
    fields_needed,
    pack_boxes,
    pack_vectors,
    unpack_boxes,
    unpack_vectors,
)


def unit_vectors(n, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "dim"), [(64, 1024), (1000, 512), (1, 1), (21, 1280), (0, 512)])
def test_vectors_come_back_within_half_precision(n, dim):
    vectors = unit_vectors(n, dim)
    texts = pack_vectors(vectors, fields_needed(n, dim))
    back = unpack_vectors(texts, dim)
    assert back.shape == (n, dim)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, vectors.astype(np.float16).astype(np.float32))


def test_cosines_change_by_less_than_a_thousandth():
    vectors = unit_vectors(64, 1024)
    back = unpack_vectors(pack_vectors(vectors, 3), 1024)
    assert np.abs(back @ back.T - vectors @ vectors.T).max() < 1e-3


def test_no_field_is_longer_than_a_server_takes():
    for dim in (1, 128, 512, 1024, 1280, 24_574):
        texts = pack_vectors(unit_vectors(100, dim), fields_needed(100, dim))
        assert max(len(text.encode()) for text in texts) <= FIELD_BYTES


def test_fewer_vectors_than_the_fields_hold_leave_the_last_fields_empty():
    texts = pack_vectors(unit_vectors(5, 1024), 3)
    assert [bool(text) for text in texts] == [True, False, False]
    assert unpack_vectors(texts, 1024).shape == (5, 1024)


def test_a_vector_too_long_for_any_field_is_refused():
    with pytest.raises(SettingsError, match=r"dim=24575: .* at most 24574"):
        fields_needed(1, 24_575)


def test_more_vectors_than_fit_are_refused():
    with pytest.raises(
        SettingsError, match="65 vectors of 1024 numbers in 2 fields: these hold 46"
    ):
        pack_vectors(unit_vectors(65, 1024), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_numbers_that_float16_does_not_hold_are_refused(bad):
    vectors = unit_vectors(2, 8)
    vectors[1, 3] = bad
    with pytest.raises(SettingsError, match="not finite"):
        pack_vectors(vectors, 1)


def test_boxes_come_back_exactly():
    boxes = np.array([[0, 0, 4000.5, 3000.25], [1e-3, 7, 1e5, 9]], np.float32)
    np.testing.assert_array_equal(unpack_boxes(pack_boxes(boxes)), boxes)
    assert unpack_boxes(pack_boxes(np.empty((0, 4)))).shape == (0, 4)


def test_more_boxes_than_a_field_holds_are_refused():
    with pytest.raises(SettingsError, match="4000 boxes"):
        pack_boxes(np.zeros((4000, 4)))


@pytest.mark.parametrize("damage", ["!!!!", "AAA", "AAAA", "\N{SNOWMAN}", "QUI="])
def test_damaged_text_is_named_as_such(damage):
    with pytest.raises(CollectionError, match="damaged"):
        unpack_vectors([damage], 8)


def test_text_is_a_string_that_iterates_over_itself_once():
    text = Text("abc")
    assert text == "abc"
    assert list(text) == ["abc"]
