"""What is kept of a photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Encoding:
    """What is kept of one photo, or asked of one query. All arrays are numpy, all vectors unit.

    Attributes:
        descriptor: of shape (d,).
        class_ids: of shape (N,), int64, the most likely class first.
        class_scores: of shape (N,), the softmax at the class view; for people, never a weight.
        class_vectors: of shape (N, d).
        region_boxes: of shape (R, 4), x1, y1, x2, y2 in pixels of the upright original.
        region_vectors: of shape (R, d).
        uri: where the photo is.
        content: SHA-256 of its bytes, in hex.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
    """

    descriptor: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    class_vectors: np.ndarray
    region_boxes: np.ndarray
    region_vectors: np.ndarray
    uri: str
    content: str
    width: int
    height: int
