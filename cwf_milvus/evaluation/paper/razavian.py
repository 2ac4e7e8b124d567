"""Razavian's spatial search (Razavian, Sullivan, Maki, Carlsson, 2014): squares against squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

QUERY_CROPS = 14
"""How many of a photo's crops a query uses: those of the first three scales."""


def spatial_search(query_crops: np.ndarray, image_crops: Sequence[np.ndarray]) -> np.ndarray:
    """Score images by how near each crop of the query is to some crop of theirs.

    The distance of a query from an image is, for each of the query's crops, the least Euclidean
    distance to any of the image's, averaged over the query's.

    Args:
        query_crops: of shape (Q, d), unit; crops at several scales.
        image_crops: of N images, arrays of shape (R_i, d), unit; at as many scales or one more.

    Returns:
        Of shape (N,): the distances, negated, so that higher is better.
    """
    counts = [len(crops) for crops in image_crops]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    cosines = query_crops @ np.concatenate(list(image_crops)).T
    squared = np.maximum(2 - 2 * np.maximum.reduceat(cosines, starts, axis=1), 0)
    return -np.sqrt(squared).mean(axis=0)
