"""Vectors in 4 bits a number: an eighth of float32, and their inner products in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.rotation import rotate, rotate_back

_MIDDLE = 7.5  # code 0 stands for -7.5 steps, code 15 for 7.5
_STEP = 0.3352  # of 16 even levels, that of least squared error on a Gaussian (Max, IRE 1960)
_LARGEST = 65_504  # what float16 holds, so that all precisions take the same vectors
_BUFFER_BYTES = 2**20  # unpacked at once: what stays in a core's cache


@dataclass(frozen=True, eq=False)
class Int4Vectors:
    """Vectors ``rotate_back((codes - 7.5) * factors)``; `numpy.asarray` gives float32.

    Rotated, the numbers of a vector look Gaussian, so that one set of even levels fits them all.
    They stay rotated: `inner_products` rotates the query once instead.

    Attributes:
        codes: of shape (N, ⌈d/2⌉), uint8. Number i is in the low 4 bits of byte i, number ⌈d/2⌉ + i
            in the high ones.
        factors: of shape (N,), float32.
        dim: d.
    """

    codes: np.ndarray
    factors: np.ndarray
    dim: int

    @classmethod
    def of(cls, vectors: np.ndarray) -> Int4Vectors:
        """Round vectors of shape (N, d) to 4 bits.

        A factor is such that a vector's inner product with its rounded self is right, which makes
        those with other vectors right on average (Gao and Long, SIGMOD 2024).

        Raises:
            SettingsError: numbers that are not finite, or beyond 65,504.
        """
        if not (np.abs(vectors) <= _LARGEST).all():
            raise SettingsError(
                "a vector has numbers that are not finite, or beyond 65,504: encode the photo again"
            )
        turned = _even(rotate(vectors))
        dim = np.shape(vectors)[1]
        squares = np.einsum("nd,nd->n", turned, turned)
        steps = (np.sqrt(squares / dim) * np.float32(_STEP))[:, None]
        levels = np.floor(turned / np.where(steps > 0, steps, 1)) + 8
        codes = np.clip(levels, 0, 15).astype(np.uint8)
        against = np.einsum("nd,nd->n", turned, codes - np.float32(_MIDDLE))
        factors = np.divide(squares, against, out=np.zeros_like(squares), where=against > 0)
        low, high = np.split(codes, 2, axis=1)
        return cls(low | high << 4, factors, dim)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return len(self.codes), self.dim

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.codes.nbytes + self.factors.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return them as float32, or as `dtype`; always a copy, so that `copy=False` fails."""
        if copy is False:
            raise ValueError("vectors in int4 cannot be seen as floats without a copy")
        numbers = np.hstack([self.codes & 15, self.codes >> 4])[:, : self.dim]
        turned = (numbers - np.float32(_MIDDLE)) * self.factors[:, None]
        return rotate_back(turned).astype(dtype or np.float32, copy=False)


def inner_products(query_vectors: np.ndarray, stored: Sequence[Int4Vectors]) -> np.ndarray:
    """Return the inner products of all stored vectors with the query's.

    Args:
        query_vectors: of shape (Q, d).
        stored: of n vectors each, of d numbers.

    Returns:
        float32 of shape (sum of n, Q).
    """
    asked = np.ascontiguousarray(_even(rotate(query_vectors)).T)
    half = len(asked) // 2
    factors = np.concatenate([one.factors for one in stored])
    products = np.empty((len(factors), asked.shape[1]), dtype=np.float32)
    most = max(1, _BUFFER_BYTES // max(1, asked.itemsize * len(asked)))
    unpacked = np.empty((most, 2 * half), dtype=np.float32)
    done = 0
    for codes in _portions([one.codes for one in stored], most):
        numbers = unpacked[: len(codes)]
        np.copyto(numbers[:, :half], codes & 15)
        np.copyto(numbers[:, half:], codes >> 4)
        np.matmul(numbers, asked, out=products[done : done + len(codes)])
        done += len(codes)
    products -= np.float32(_MIDDLE) * asked.sum(axis=0)
    products *= factors[:, None]
    return products


def _even(vectors: np.ndarray) -> np.ndarray:
    """Return vectors with a zero more where their number of numbers is odd."""
    return np.pad(vectors, ((0, 0), (0, vectors.shape[1] % 2)))


def _portions(arrays: Sequence[np.ndarray], most: int) -> Iterator[np.ndarray]:
    """Yield the rows of arrays in their order, at most so many at once."""
    waiting: list[np.ndarray] = []
    n_waiting = 0
    for array in arrays:
        if waiting and n_waiting + len(array) > most:
            yield np.concatenate(waiting)
            waiting, n_waiting = [], 0
        if len(array) > most:
            yield from np.split(array, range(most, len(array), most))
        elif len(array):
            waiting.append(array)
            n_waiting += len(array)
    if waiting:
        yield np.concatenate(waiting)
