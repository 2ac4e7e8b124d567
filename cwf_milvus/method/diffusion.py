"""Diffusion on the graph of stored photos: what resembles a query's best hits is an answer too.

Zhou et al., NIPS 2003; Iscen et al., CVPR 2017; rows computed beforehand: Yang et al., AAAI 2019.
Rows and columns of all matrices are photos, in one order.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cwf_milvus.errors import SettingsError

NEIGHBOURS = 10
GAMMA = 3.0
VERIFIED_GAMMA = 2.0
ALPHA = 0.8
KEPT = 50
SEEDS = 5
VERIFIED_SEEDS = 10

_TOLERANCE = 1e-3  # of what is passed on; a photo's own entry is 1 or more
_BLOCK = 512  # rows computed together
_SCORE_SHARE = 0.1


def verified(similarities: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    """Return ``s + .1 · clip((inliers - 5) / 20, 0, 1)``: 5 inliers prove nothing, 25 are enough.

    Args:
        similarities: squared late interaction, of pairs of photos or of a query and its hits.
        inliers: of the same shape; 0 where nothing was verified.
    """
    return similarities + 0.1 * np.clip((np.asarray(inliers, np.float64) - 5) / 20, 0, 1)


def nearest_edges(similarities: sparse.sparray, neighbours: int = NEIGHBOURS) -> sparse.csr_array:
    """Keep the similarities of i and j where j is among i's k nearest or i among j's.

    Of equal neighbours the first are the nearest. What was kept and the similarities of what is new
    give the edges of both (`changed_photos`): no kept edge can return that was dropped before.

    Args:
        similarities: s, of shape (N, N), symmetric; what is not stored was not compared. The
            diagonal is not looked at.
        neighbours: k.

    Returns:
        Of shape (N, N), symmetric.

    Raises:
        SettingsError: similarities that are not square, not symmetric, negative or not finite, or
            a k below 1.

    Example:
        >>> edges = nearest_edges(similarities)
        >>> rows = diffusion_rows(normalised(affinities(edges)), np.arange(edges.shape[0]))
    """
    nearest = largest(_checked(similarities), neighbours).tocsr()
    return nearest.maximum(nearest.T).tocsr()


def affinities(
    edges: sparse.csr_array, neighbours: int = NEIGHBOURS, gamma: float = GAMMA
) -> sparse.csr_array:
    """Return ``a_ij = (s_ij / √(σ_i σ_j))^γ``, tuned to how crowded it is around a photo.

    σ_i is the k-th largest s of photo i, or its smallest where it has fewer (Zelnik-Manor and
    Perona, NIPS 2004).

    Args:
        edges: what `nearest_edges` returned, of shape (N, N).
        neighbours: k, the same as there.
        gamma: γ.

    Returns:
        A, of shape (N, N), symmetric.
    """
    nearest = largest(edges, neighbours)
    sigma = np.full(edges.shape[0], np.inf)
    np.minimum.at(sigma, nearest.coords[0], nearest.data)
    a = sparse.coo_array(edges)
    i, j = a.coords
    weights = (a.data / np.sqrt(sigma[i] * sigma[j])) ** gamma
    return sparse.csr_array((weights, (i, j)), shape=edges.shape)


def normalised(affinities: sparse.sparray) -> sparse.csr_array:
    """Return ``W = D^-½ A D^-½`` of A, of shape (N, N); D has the sums of its rows."""
    a = sparse.coo_array(affinities)
    degrees = a.sum(axis=1)
    i, j = a.coords
    return sparse.csr_array((a.data / np.sqrt(degrees[i] * degrees[j]), (i, j)), shape=a.shape)


def diffusion_rows(
    walk: sparse.csr_array, photos: np.ndarray, alpha: float = ALPHA, kept: int = KEPT
) -> sparse.csr_array:
    """Return rows of ``L = (I - αW)^-1``, of each the largest entries.

    ``L = Σ_t (αW)^t`` is summed from the photo outwards: each round adds to the row what has
    arrived at photos in an amount worth passing on, and passes α of it on to their neighbours
    (Andersen et al., FOCS 2006). What a row costs depends on its neighbourhood, not on N.

    Args:
        walk: W, of shape (N, N).
        photos: which rows, of shape (n,).
        alpha: α, at least 0 and below 1: how far the diffusion goes.
        kept: entries of a row that stay.

    Returns:
        Of shape (n, N); not negative. Row i has an entry of at least 1 at photo i.

    Raises:
        SettingsError: an alpha or a number of entries out of range.
    """
    if not 0 <= alpha < 1:
        raise SettingsError(f"alpha={alpha!r}: give a number of at least 0 and below 1")
    photos = np.asarray(photos, dtype=np.int64)
    passed_on = (alpha * walk).tocsr()
    blocks = [
        largest(_summed(passed_on, photos[start : start + _BLOCK]), kept).tocsr()
        for start in range(0, len(photos), _BLOCK)
    ]
    return sparse.vstack(blocks, "csr") if blocks else sparse.csr_array((0, walk.shape[0]))


def changed_photos(before: sparse.csr_array, after: sparse.csr_array) -> np.ndarray:
    """Return the photos whose own edges changed: those whose rows of L are to be computed anew.

    Rows further away change too, but by little: left as they are, they cost .002 mAP at most
    (docs/graph.md).

    Args:
        before: what `nearest_edges` returned of the first photos.
        after: of these and of new ones after them.

    Returns:
        Of shape (n,), in order.
    """
    before = before.copy()
    before.resize(after.shape)
    return np.flatnonzero((before != after).sum(axis=1))


def largest(matrix: sparse.sparray, count: int) -> sparse.coo_array:
    """Return the largest entries of each row, in order of row and size; of equals, the first.

    Raises:
        SettingsError: a count below 1.
    """
    if count < 1:
        raise SettingsError(f"{count} neighbours or entries a row: give at least 1")
    coo = sparse.coo_array(matrix)
    rows, columns = coo.coords
    order = np.lexsort((columns, -coo.data, rows))
    starts = np.searchsorted(rows[order], np.arange(coo.shape[0]))
    keep = order[np.arange(len(order)) - starts[rows[order]] < count]
    return sparse.coo_array((coo.data[keep], (rows[keep], columns[keep])), shape=coo.shape)


def seed_weights(scores: np.ndarray, seeds: int = SEEDS, gamma: float = GAMMA) -> np.ndarray:
    """Return y: ``score^γ`` of the best hits, 0 of all others.

    Args:
        scores: of shape (H,), NaN for hits that are no seeds, such as the query's own photo.
        seeds: how many; `VERIFIED_SEEDS` where the scores have inliers in them.
        gamma: γ; then `VERIFIED_GAMMA`.

    Returns:
        Of shape (H,).
    """
    weights = np.zeros(len(scores))
    order = np.argsort(-scores, kind="stable")  # NaN last
    best = order[:seeds][scores[order[:seeds]] > 0]
    weights[best] = scores[best] ** gamma
    return weights


def fused(diffused: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return ``f / max f + .1 · score / best score``.

    Args:
        diffused: f, of shape (H,), 0 where the graph does not reach: these keep the order of their
            scores, after all that it reaches with more than .1.
        scores: of shape (H,), 0 for photos that the graph alone brought in.
    """
    f, s = (np.maximum(values, 0) for values in (diffused, scores))
    highest, best = f.max(initial=0), s.max(initial=0)
    return f / (highest or 1) + _SCORE_SHARE * s / (best or 1)


def _summed(passed_on: sparse.csr_array, photos: np.ndarray) -> sparse.csr_array:
    """Return rows of Σ_t passed_on^t."""
    shape = len(photos), passed_on.shape[0]
    arrived = sparse.csr_array(
        (np.ones(len(photos)), (np.arange(len(photos)), photos)), shape=shape
    )
    total = sparse.csr_array(shape)
    while True:
        enough = arrived.data >= _TOLERANCE
        if not enough.any():
            return total
        moving, waiting = arrived.copy(), arrived
        moving.data[~enough] = 0
        waiting.data[enough] = 0
        moving.eliminate_zeros()
        waiting.eliminate_zeros()
        total = total + moving
        arrived = waiting + moving @ passed_on


def _checked(similarities: sparse.sparray) -> sparse.coo_array:
    s = sparse.coo_array(similarities, dtype=np.float64)
    if s.shape[0] != s.shape[1]:
        raise SettingsError(f"similarities of shape {s.shape}: give one of (photos, photos)")
    if not np.isfinite(s.data).all() or (s.data < 0).any():
        raise SettingsError("similarities that are negative or not finite: compare the photos anew")
    if abs(s - s.T).data.max(initial=0) > 1e-6:
        raise SettingsError("similarities are not symmetric: give the mean of both directions")
    i, j = s.coords
    edges = (i != j) & (s.data > 0)
    return sparse.coo_array((s.data[edges], (i[edges], j[edges])), shape=s.shape)
