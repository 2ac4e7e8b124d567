"""Spatial verification: is it the same thing, and where (Philbin et al., CVPR 2007).

Each match of two keypoints proposes a map of its own, from their places, scales and directions: a
turn, a scaling and a shift. All of them are tried, so that nothing is drawn by chance, and the best
are refined to affine maps by least squares on the matches that agree (Chum et al., "Locally
optimized RANSAC", DAGM 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from cwf_milvus.method.keypoint_codes import Keypoints

Corners: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the upright original, half open."""

RATIO: Final = 0.9
"""A match is nearer than this share of the distance to the second nearest. Lowe's is .8; maps that
must agree in scale and direction too bear more wrong matches, and gain by the right ones."""

TOLERANCE: Final = 0.015
"""How far off a match may be, as a share of the hit's longest side."""

MIN_INLIERS: Final = 6
"""Matches that agree, below which nothing is verified."""


@dataclass(frozen=True, eq=False)
class Verified:
    """Where a hit shows what the query shows.

    Attributes:
        affine: (2, 3) float64, from pixels of the query to pixels of the hit.
        query_points: (inliers, 2) float32, the matched points in the query.
        hit_points: (inliers, 2) float32, their partners in the hit.
        polygon: (4, 2) float64, the corners of the query's box in the hit, clipped to it, clockwise
            from the top left of the query's.
        box: around the thing in it, clipped too; of a turned polygon it leaves out the corners.
    """

    affine: np.ndarray
    query_points: np.ndarray
    hit_points: np.ndarray
    polygon: np.ndarray
    box: Corners

    @property
    def inliers(self) -> int:
        """How many matches agree with the map."""
        return len(self.hit_points)


def spatial_score(scores: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    """Return ``score + .1 * clip((inliers - 5) / 10, 0, 1)``, of any one shape.

    Args:
        scores: squared late interaction.
        inliers: of the hits that were verified, and 0 for all others.
    """
    return np.asarray(scores + 0.1 * np.clip((np.asarray(inliers) - 5) / 10, 0, 1))


def verify(
    query: Keypoints, hit: Keypoints, box: Corners | None = None, mirrored: Keypoints | None = None
) -> Verified | None:
    """Verify one hit; see `verify_hits`."""
    return verify_hits(query, [hit], box, mirrored)[0]


def verify_hits(
    query: Keypoints,
    hits: Sequence[Keypoints],
    box: Corners | None = None,
    mirrored: Keypoints | None = None,
) -> list[Verified | None]:
    """Look for the query's thing in each hit; None where fewer than MIN_INLIERS matches agree.

    Photos without keypoints, boxes with none inside, points on a line or all in one place, and
    numbers that are not finite are not verified; they never raise.

    Args:
        query: keypoints of the query photo.
        hits: keypoints of each hit.
        box: of the thing in the query; None for the whole photo.
        mirrored: keypoints of the query photo with left and right exchanged (they cannot be had
            from `query`: SIFT is not symmetric). Each hit is then tried both ways, and a map that
            mirrors is answered where more matches agree with it.
    """
    corners = box or (0.0, 0.0, float(query.width), float(query.height))
    found = [_verified(match, corners) for match in _maps(query, hits, corners)]
    if mirrored is None:
        return found
    flip = np.array([[-1.0, 0, mirrored.width], [0, 1, 0], [0, 0, 1]])
    x1, y1, x2, y2 = corners
    there = (mirrored.width - x2, y1, mirrored.width - x1, y2)
    for i, match in enumerate(_maps(mirrored, hits, there)):
        if match is not None:
            points = match.query_points.copy()
            points[:, 0] = mirrored.width - points[:, 0]
            turned = _Map(match.affine @ flip, points, match.hit_points, match.width, match.height)
            other, one = _verified(turned, corners), found[i]
            if other and (one is None or other.inliers > one.inliers):
                found[i] = other
    return found


# --- which keypoint is which ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Map:
    affine: np.ndarray
    query_points: np.ndarray
    hit_points: np.ndarray
    width: int
    height: int


def _maps(query: Keypoints, hits: Sequence[Keypoints], box: Corners) -> list[_Map | None]:
    """Return the best map to each hit."""
    x, y = query.positions.T
    asked = query[(x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3]) & _usable(query)]
    room = np.empty(len(asked) * max((len(hit) for hit in hits), default=0), np.float32)
    maps: list[_Map | None] = []
    for hit in hits:
        mine, theirs = _matches(asked.descriptors, hit.descriptors, room)
        near, far = asked[mine], hit[theirs]
        kept = _one_to_one(near, far)
        maps.append(_affine(near[kept], far[kept]) if len(kept) >= MIN_INLIERS else None)
    return maps


def _usable(keypoints: Keypoints) -> np.ndarray:
    """Return which have finite places, directions and scales above 0."""
    sums = keypoints.positions.sum(axis=1) + keypoints.angles + keypoints.scales
    return np.isfinite(sums) & (keypoints.scales > 0)


def _matches(query: np.ndarray, hit: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the keypoints that match, the surest first.

    ``d1 < RATIO * d2``, with the distances to the nearest and the second nearest in the hit.
    """
    n, m = len(query), len(hit)
    if n < MIN_INLIERS or m < MIN_INLIERS:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # |q - h|² = |q|² - 2 (q·h - |h|²/2): the nearest has the largest bracket.
    with np.errstate(invalid="ignore", over="ignore"):
        closeness = np.matmul(query, hit.T, out=room[: n * m].reshape(n, m))
        closeness -= np.einsum("ij,ij->i", hit, hit) / 2
        lengths = np.einsum("ij,ij->i", query, query)
        rows = np.arange(n)
        nearest = closeness.argmax(axis=1)
        first = lengths - 2 * closeness[rows, nearest]
        closeness[rows, nearest] = -np.inf
        second = lengths - 2 * closeness.max(axis=1)
        share = np.maximum(first, 0) / np.maximum(second, np.finfo(np.float32).tiny)
        matched = np.flatnonzero(share < RATIO**2)
    order = matched[np.argsort(share[matched], kind="stable")]
    return order, nearest[order]


def _one_to_one(near: Keypoints, far: Keypoints) -> np.ndarray:
    """Return which matches to keep: of those that share a place in either photo, the first.

    A window that many windows match would else count as many, and so would one place that has
    keypoints in several directions.
    """
    kept = np.flatnonzero(_usable(near) & _usable(far))
    for side in (far, near):
        places = np.rint(side.positions[kept] / _SAME_PLACE)
        _, first = np.unique(places @ np.array([1, 1j]), return_index=True)
        kept = kept[np.sort(first)]
    return kept


# --- the map that most of them agree with ---------------------------------------------------------


def _affine(near: Keypoints, far: Keypoints) -> _Map | None:
    """Return the affine map that most matches agree with, or None.

    In complex numbers a turn and a scaling is one factor, and match i proposes
    ``p -> q_i + factor_i (p - p_i)``.
    """
    p = near.positions.astype(np.float64) @ np.array([1, 1j])
    q = far.positions.astype(np.float64) @ np.array([1, 1j])
    tolerance = TOLERANCE * max(far.width, far.height)
    tried = slice(_PROPOSALS)
    turns = far.angles[tried].astype(np.float64) - near.angles[tried]
    factors = far.scales[tried] / near.scales[tried].astype(np.float64) * np.exp(1j * turns)
    errors = np.abs(factors[:, None] * (p - p[tried, None]) - (q - q[tried, None]))
    support = np.maximum(0, 1 - (errors / (_LOOSE * tolerance)) ** 2).sum(axis=1)
    best = np.argsort(-support, kind="stable")[:_REFINED]
    agree = errors[best] < _LOOSE * tolerance
    if agree.sum(axis=1).max() < MIN_INLIERS:
        return None
    linear = np.stack([factors[best].real, -factors[best].imag], axis=1)
    for share in (1.5, 1.0, 1.0):
        maps = _least_squares(p, q, agree, linear, tolerance)
        errors = np.abs(_mapped(maps, p) - q)
        agree = errors < share * tolerance
    support = np.maximum(0, 1 - (errors / tolerance) ** 2).sum(axis=1)
    support[(agree.sum(axis=1) < MIN_INLIERS) | ~_plausible(maps)] = 0
    winner = int(support.argmax())
    if not support[winner]:
        return None
    inside = agree[winner]
    if _on_a_line(p[inside]) or _on_a_line(q[inside]):
        return None
    return _Map(maps[winner], near.positions[inside], far.positions[inside], far.width, far.height)


def _least_squares(
    p: np.ndarray, q: np.ndarray, agree: np.ndarray, linear: np.ndarray, tolerance: float
) -> np.ndarray:
    """Return the affine maps (k, 2, 3) that bring p (m,) nearest to q where `agree` (k, m).

    The linear part is held near the proposal's, as far as errors of `tolerance` leave it open: a
    few points close together say little about the corners of a box.
    """
    weights = agree / np.maximum(agree.sum(axis=1, keepdims=True), 1)
    p_mean, q_mean = weights @ p, weights @ q
    x = _plane(p - p_mean[:, None])
    y = _plane(q - q_mean[:, None])
    counted = x * agree[:, :, None]
    proposed = linear[:, :1, None] * np.eye(2) + linear[:, 1:, None] * np.array([[0, 1], [-1, 0]])
    held = (tolerance / _FREEDOM) ** 2 / (linear**2).sum(axis=1)[:, None, None]
    normal = np.swapaxes(counted, 1, 2) @ x + held * np.eye(2)
    wanted = np.swapaxes(counted, 1, 2) @ y + held * np.swapaxes(proposed, 1, 2)
    matrix = np.swapaxes(np.linalg.solve(normal, wanted), 1, 2)
    shift = _plane(q_mean)[:, :, None] - matrix @ _plane(p_mean)[:, :, None]
    return np.concatenate([matrix, shift], axis=2)


def _on_a_line(points: np.ndarray) -> bool:
    """Whether complex points leave one direction open, less than a pixel off a line."""
    return bool(np.linalg.eigvalsh(np.cov(_plane(points).T))[0] < 1)


def _plane(numbers: np.ndarray) -> np.ndarray:
    """Return complex numbers as (..., 2)."""
    return np.stack([numbers.real, numbers.imag], axis=-1)


def _mapped(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return complex points (m,) through each of the maps (k, 2, 3), complex (k, m)."""
    rows = maps[:, :, 0, None] * points.real + maps[:, :, 1, None] * points.imag + maps[:, :, 2:]
    return np.asarray(rows[:, 0] + 1j * rows[:, 1])


def _plausible(maps: np.ndarray) -> np.ndarray:
    """Return which maps neither mirror, nor shrink or stretch to nothing, nor squeeze one way.

    The determinant is between .02 and 50, and the singular values differ by a factor of 4 at most:
    for these, ``s1/s2 + s2/s1 = |A|² / det A``.
    """
    a = maps[:, :, :2]
    area = a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0]
    squeeze = (a**2).sum(axis=(1, 2))
    return np.asarray((area >= 0.02) & (area <= 50) & (squeeze <= (4 + 1 / 4) * area))


def _verified(found: _Map | None, box: Corners) -> Verified | None:
    """Return the query's box in the hit; None where nothing of it lies there.

    A turned box has corners that the thing in it seldom fills. So the box around it is that of a
    thing with rounded corners (a superellipse): with half sides h, along each axis
    ``(Σ |a_j h_j|^1.5)^(1/1.5)``, between the parallelogram's (power 1) and an ellipse's (2).
    """
    if found is None:
        return None
    x1, y1, x2, y2 = box
    clip = (found.width, found.height)
    corners = np.array([[x1, y1, 1], [x2, y1, 1], [x2, y2, 1], [x1, y2, 1]])
    polygon = np.clip(corners @ found.affine.T, 0, clip)
    centre = found.affine @ ((x1 + x2) / 2, (y1 + y2) / 2, 1)
    sides = np.abs(found.affine[:, :2]) * ((x2 - x1) / 2, (y2 - y1) / 2)
    reach = (sides**_ROUNDED).sum(axis=1) ** (1 / _ROUNDED)
    left, top = np.clip(centre - reach, 0, clip).tolist()
    right, bottom = np.clip(centre + reach, 0, clip).tolist()
    if not (right > left and bottom > top):
        return None
    framed = (left, top, right, bottom)
    return Verified(found.affine, found.query_points, found.hit_points, polygon, framed)


_SAME_PLACE = 2.0  # pixels
_PROPOSALS = 128  # the surest matches
_REFINED = 5  # proposals
_LOOSE = 3.0  # a proposal is as rough as one keypoint's scale and direction
_FREEDOM = 0.3  # how far the linear part may differ from the proposal's, as a share of it
_ROUNDED = 1.5
