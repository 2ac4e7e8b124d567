"""Vectors in and out of text, for Milvus' VARCHAR fields: int4, int8 or float16, in base64.

A vector in int8 is d bytes, and before them the float32 that they are to be multiplied by, its
largest number over 127; one in int4 is d / 2 bytes (`method.int4`) after such a factor. Everything
is little-endian.

Text is by far the quickest way to store and fetch many vectors with a row: Milvus Lite knows no
array of vectors, and arrays of floats or rows of their own cost four to ten times as much. pybase64
decodes it forty times as fast as the standard library, which took most of the time of re-ranking.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import pybase64

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.int4 import Int4Vectors
from cwf_milvus.method.int8 import Int8Vectors
from cwf_milvus.method.late_interaction import VectorSet

FIELD_BYTES = 65_535  # the longest VARCHAR of a Milvus server

Precision = Literal["int4", "int8", "float16"]
"""How vectors are kept. A cosine of two of 1,024 numbers moves by up to .03 in int4, 2e-3 in int8,
1e-4 in float16; what is found stays the same (docs/decisions.md)."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Text(str):
    """A string that iterates over itself as one item.

    pymilvus checks a row's VARCHAR by iterating over it, one character at a time: 7 ms for a row
    of 230 kB, most of the time of an upsert. This makes its check one step.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        yield str(self)


def vector_bytes(dim: int, precision: Precision) -> int:
    """Return the size of a vector before base64.

    Raises:
        SettingsError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"precision={precision!r}: give one of {', '.join(PRECISIONS)}")
    numbers = {"int4": (dim + 1) // 2, "int8": dim, "float16": 2 * dim}[precision]
    return numbers + (0 if precision == "float16" else _SCALE.itemsize)


def vectors_per_field(dim: int, precision: Precision) -> int:
    """Return how many vectors a field holds.

    Raises:
        SettingsError: a vector that no field can hold.
    """
    room = FIELD_BYTES // 4 * 3
    each = room // vector_bytes(dim, precision)
    if each < 1:
        most = {"int4": 2 * (room - 4), "int8": room - 4, "float16": room // 2}[precision]
        raise SettingsError(
            f"dim={dim}: a Milvus text field holds vectors of at most {most} numbers in {precision}"
        )
    return each


def fields_needed(n_vectors: int, dim: int, precision: Precision) -> int:
    """Return how many fields hold `n_vectors` vectors of `dim` numbers, whole vectors in each.

    Raises:
        SettingsError: a vector that no field can hold.
    """
    return -(-n_vectors // vectors_per_field(dim, precision))


def pack_vectors(vectors: np.ndarray, n_fields: int, precision: Precision) -> list[Text]:
    """Pack vectors of shape (N, d) into `n_fields` texts, the last ones "" where N is small.

    Raises:
        SettingsError: more vectors than the fields can hold, or numbers that are not finite or
            beyond float16.
    """
    vectors = np.asarray(vectors)
    each = vectors_per_field(vectors.shape[1], precision)
    if len(vectors) > each * n_fields:
        raise SettingsError(
            f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {n_fields} fields: these "
            f"hold {each * n_fields}"
        )
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    if not np.isfinite(halves).all():
        raise SettingsError(
            "a vector has numbers that are not finite, or beyond 65,504: nothing was stored"
        )
    packed = halves
    if precision != "float16":
        packed = _to_int8(vectors) if precision == "int8" else _to_int4(vectors)
    return [
        Text(pybase64.b64encode_as_string(packed[i * each : (i + 1) * each].tobytes()))
        for i in range(n_fields)
    ]


def unpack_vectors(texts: Sequence[str], dim: int, precision: Precision) -> np.ndarray:
    """Return the vectors in `pack_vectors`' texts, float32 of shape (N, d).

    Raises:
        CollectionError: a text that is damaged.
    """
    return np.asarray(read_vectors(texts, dim, precision))


def read_vectors(texts: Sequence[str], dim: int, precision: Precision) -> VectorSet:
    """Return the vectors in `pack_vectors`' texts; those in int4 and int8 as they are.

    Raises:
        CollectionError: a text that is damaged.
    """
    data = b"".join(map(decoded, texts))
    if precision == "float16":
        if len(data) % 2:
            raise CollectionError("stored vectors are damaged (half a number): add the photo again")
        return _shaped(np.frombuffer(data, "<f2"), dim).astype(np.float32)
    rows = _shaped(np.frombuffer(data, np.uint8), vector_bytes(dim, precision))
    scales = np.ascontiguousarray(rows[:, : _SCALE.itemsize]).view(_SCALE)[:, 0]
    if not np.isfinite(scales).all():
        raise CollectionError("stored vectors are damaged (not finite): add the photo again")
    numbers = rows[:, _SCALE.itemsize :]
    if precision == "int4":
        return Int4Vectors(numbers, scales, dim)
    return Int8Vectors(numbers.view(np.int8), scales)


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
    rows = _shaped(np.frombuffer(decoded(text), np.uint8), 4 * _BOX.itemsize)
    return rows.view(_BOX).astype(np.float32)


_BOX = _SCALE = np.dtype("<f4")
_LEVELS = 127


def _to_int8(vectors: np.ndarray) -> np.ndarray:
    """Return the bytes of vectors, of shape (N, 4 + d)."""
    scales = (np.abs(vectors).max(axis=1, initial=0) / _LEVELS).astype(_SCALE)
    levels = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None])
    numbers = np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8)
    return np.hstack([scales[:, None].view(np.uint8), numbers.view(np.uint8)])


def _to_int4(vectors: np.ndarray) -> np.ndarray:
    """Return the bytes of vectors, of shape (N, 4 + d / 2)."""
    packed = Int4Vectors.of(vectors)
    factors = packed.factors.astype(_SCALE)[:, None].view(np.uint8)
    return np.hstack([factors, packed.codes])


def decoded(text: str) -> bytes:
    """Return the bytes in base64; raises `CollectionError` for a text that is damaged."""
    try:
        data = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise CollectionError(
            f"stored vectors are damaged ({error}): add the photo again"
        ) from error
    return data


def _shaped(numbers: np.ndarray, width: int) -> np.ndarray:
    if numbers.size % width:
        raise CollectionError(
            f"stored vectors are damaged ({numbers.size} numbers do not make rows of {width}): "
            "add the photo again"
        )
    return numbers.reshape(-1, width)
