"""Vectors in int8, with a factor each, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Int8Vectors:
    """Vectors ``numbers * scales``, a quarter of their size; `numpy.asarray` gives float32.

    Attributes:
        numbers: of shape (N, d), int8.
        scales: of shape (N,), float32.
    """

    numbers: np.ndarray
    scales: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""
        return self.numbers.shape

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.numbers.nbytes + self.scales.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return them as float32, or as `dtype`; always a copy, so that `copy=False` fails."""
        if copy is False:
            raise ValueError("vectors in int8 cannot be seen as floats without a copy")
        return np.multiply(self.numbers, self.scales[:, None], dtype=dtype or np.float32)
