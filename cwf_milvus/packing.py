"""Vectors in and out of text: little-endian float16 in base64, for Milvus' VARCHAR fields.

Text is by far the quickest way to store and fetch many vectors with a row: Milvus Lite knows no
array of vectors, and arrays of floats or rows of their own cost four to ten times as much. pybase64
decodes it forty times as fast as the standard library, which took most of the time of re-ranking.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence

import numpy as np
import pybase64

from cwf_milvus.errors import CollectionError, SettingsError

FIELD_BYTES = 65_535  # the longest VARCHAR of a Milvus server


class Text(str):
    """A string that iterates over itself as one item.

    pymilvus checks a row's VARCHAR by iterating over it, one character at a time: 7 ms for a row
    of 230 kB, most of the time of an upsert. This makes its check one step.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        yield str(self)


def fields_needed(n_vectors: int, dim: int) -> int:
    """Return how many fields hold `n_vectors` vectors of `dim` numbers, whole vectors in each.

    Raises:
        SettingsError: a vector that no field can hold.
    """
    return -(-n_vectors // _vectors_per_field(dim))


def pack_vectors(vectors: np.ndarray, n_fields: int) -> list[Text]:
    """Pack vectors of shape (N, d) into `n_fields` texts, the last ones "" where N is small.

    float16 keeps 11 bits: a cosine of unit vectors changes by less than 1e-3.

    Raises:
        SettingsError: more vectors than the fields can hold, or numbers that are not finite or
            beyond float16.
    """
    vectors = np.asarray(vectors)
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    if not np.isfinite(halves).all():
        raise SettingsError(
            "a vector has numbers that are not finite, or beyond 65,504: nothing was stored"
        )
    each = _vectors_per_field(vectors.shape[1])
    if len(vectors) > each * n_fields:
        raise SettingsError(
            f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {n_fields} fields: these "
            f"hold {each * n_fields}"
        )
    return [
        Text(pybase64.b64encode_as_string(halves[i * each : (i + 1) * each].tobytes()))
        for i in range(n_fields)
    ]


def unpack_vectors(texts: Sequence[str], dim: int) -> np.ndarray:
    """Return the vectors in `pack_vectors`' texts, float32 of shape (N, d).

    Raises:
        CollectionError: a text that is damaged.
    """
    halves = np.frombuffer(b"".join(map(_decoded, texts)), "<f2")
    return _shaped(halves, dim).astype(np.float32)


def pack_boxes(boxes: np.ndarray) -> Text:
    """Pack boxes of shape (R, 4), kept as float32, into one text.

    Raises:
        SettingsError: more boxes than a field can hold.
    """
    text = Text(pybase64.b64encode_as_string(np.asarray(boxes, "<f4").tobytes()))
    if len(text) > FIELD_BYTES:
        raise SettingsError(f"{len(boxes)} boxes in a field: it holds {FIELD_BYTES // 4 * 3 // 16}")
    return text


def unpack_boxes(text: str) -> np.ndarray:
    """Return the boxes in `pack_boxes`' text, float32 of shape (R, 4).

    Raises:
        CollectionError: a text that is damaged.
    """
    return _shaped(np.frombuffer(_decoded(text), "<f4"), 4).astype(np.float32)


def _vectors_per_field(dim: int) -> int:
    each = FIELD_BYTES // 4 * 3 // (2 * dim)
    if each < 1:
        raise SettingsError(
            f"dim={dim}: a Milvus text field holds vectors of at most "
            f"{FIELD_BYTES // 4 * 3 // 2} numbers"
        )
    return each


def _decoded(text: str) -> bytes:
    try:
        data = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise CollectionError(
            f"stored vectors are damaged ({error}): add the photo again"
        ) from error
    if len(data) % 2:
        raise CollectionError("stored vectors are damaged (half a number): add the photo again")
    return data


def _shaped(numbers: np.ndarray, width: int) -> np.ndarray:
    if numbers.size % width:
        raise CollectionError(
            f"stored vectors are damaged ({numbers.size} numbers do not make rows of {width}): "
            "add the photo again"
        )
    return numbers.reshape(-1, width)
