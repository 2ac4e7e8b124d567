"""How alike a photo and its nearest are: late interaction, and keypoints that agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.method.late_interaction import VectorSet, mutual_interaction
from cwf_milvus.method.spatial import Verified, verify_hits

CANDIDATES = 50
"""Of a photo: those whose descriptors are nearest are compared with it."""
VERIFIED = 20
"""Of these, the most alike, whose keypoints are compared."""


def similarities(regions: VectorSet | None, others: Sequence[VectorSet | None]) -> np.ndarray:
    """Return the squared late interaction of a photo and others, float32 of shape (n,).

    Args:
        regions: the photo's region vectors; None for none.
        others: those of the others.

    Returns:
        0 where one of the two has none, or numbers that are not finite.
    """
    own = np.zeros((0, 0), np.float32) if regions is None else np.asarray(regions, np.float32)
    own = own[own.any(axis=1)] if own.size else own
    scores = np.zeros(len(others), np.float32)
    has = [i for i, other in enumerate(others) if other is not None and len(other)]
    if has and len(own):
        compared = [other for other in others if other is not None and len(other)]
        scores[has] = mutual_interaction(own, compared)
    return np.where(np.isfinite(scores), scores, 0)


def agreement(
    keypoints: Keypoints | None, others: Sequence[Keypoints | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many keypoints of a photo and of others agree, and how much of both that frames.

    Returns:
        Inliers, of shape (n,), 0 where nothing was verified; and of the photo's share that is in
        the other, and the other's in it, the smaller one, from 0 to 1.
    """
    inliers, cover = np.zeros(len(others), np.int64), np.zeros(len(others))
    has = [i for i, other in enumerate(others) if other is not None and len(other)]
    if keypoints is None or not len(keypoints) or not has:
        return inliers, cover
    hits = [other for other in others if other is not None and len(other)]
    for i, hit, found in zip(has, hits, verify_hits(keypoints, hits), strict=True):
        if found is not None:
            inliers[i] = found.inliers
            cover[i] = _cover(found, keypoints, hit)
    return inliers, cover


def _cover(found: Verified, photo: Keypoints, hit: Keypoints) -> float:
    x, y = found.polygon.T
    framed = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    whole = photo.width * photo.height * abs(np.linalg.det(found.affine[:, :2]))
    return float(min(1.0, framed / (hit.width * hit.height), framed / whole))
