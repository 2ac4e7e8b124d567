"""A fixed rotation after which the numbers of any vector look drawn from one Gaussian."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

_SIGNS = b"cwf-milvus rotation"


def rotate(vectors: np.ndarray) -> np.ndarray:
    """Rotate vectors of shape (N, d): twice random signs, then a Walsh-Hadamard transform.

    The transform needs a power of two, p: it is done on the first p numbers, then on the last p,
    which together are all of them (Ailon and Chazelle, SICOMP 2009). Signs come from SHAKE-256, and
    all else is additions and a multiplication of each number, so that the bits are the same on
    every machine and with every version of NumPy: what is stored rotated can be read for ever.

    Returns:
        float32 of shape (N, d), of the same lengths and inner products.
    """
    turned = np.array(vectors, dtype=np.float32)
    for part, signs in _steps(turned.shape[1]):
        turned[:, part] = _hadamard(turned[:, part] * signs)
    return turned


def rotate_back(vectors: np.ndarray) -> np.ndarray:
    """Return what `rotate` was given, from its result of shape (N, d)."""
    turned = np.array(vectors, dtype=np.float32)
    for part, signs in reversed(_steps(turned.shape[1])):
        turned[:, part] = _hadamard(turned[:, part]) * signs
    return turned


@cache
def _steps(dim: int) -> list[tuple[slice, np.ndarray]]:
    size = 1 << (dim.bit_length() - 1)
    bits = hashlib.shake_256(_SIGNS).digest(2 * -(-size // 8))
    signs = 1 - 2 * np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.float32)
    first, second = signs.reshape(2, -1)[:, :size]
    return [(slice(0, size), first), (slice(dim - size, dim), second)]


def _hadamard(vectors: np.ndarray) -> np.ndarray:
    """Return the orthogonal Walsh-Hadamard transform of (N, p) vectors, its own inverse.

    Each of its log2 p steps puts the sums of neighbours before their differences, which keeps the
    inner loops long; after all of them the numbers stand in the usual order.
    """
    size = vectors.shape[1]
    for _ in range(size.bit_length() - 1):
        even, odd = vectors[:, 0::2], vectors[:, 1::2]
        vectors = np.concatenate([even + odd, even - odd], axis=1)
    return vectors * np.float32(size**-0.5)
