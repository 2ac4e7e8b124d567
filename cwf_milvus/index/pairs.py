"""Pairs of photos that were compared, and those of them that are edges of the graph.

Pairs are an array of `PAIR`, each pair once, sorted by key. Photos are named by their places.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cwf_milvus.method.diffusion import largest, nearest_edges, verified
from cwf_milvus.store.graph import MOST_EDGES

PAIR = np.dtype([("key", "<i8"), ("similarity", "<f4"), ("inliers", "<u2"), ("cover", "u1")])
_SECOND = 2**32
NONE = np.zeros(0, PAIR)


def pairs_of(
    one: np.ndarray,
    other: np.ndarray,
    similarity: np.ndarray,
    inliers: np.ndarray,
    cover: np.ndarray,
) -> np.ndarray:
    """Return pairs of photos, all arrays of shape (n,); of a photo with itself there is none."""
    apart = (one != other) & (similarity > 0)
    made = np.zeros(int(apart.sum()), PAIR)
    one, other = one[apart].astype(np.int64), other[apart].astype(np.int64)
    made["key"] = np.minimum(one, other) * _SECOND + np.maximum(one, other)
    made["similarity"], made["inliers"] = similarity[apart], inliers[apart]
    made["cover"] = cover[apart]
    return joined(made)


def joined(*several: np.ndarray) -> np.ndarray:
    """Return all pairs, of those that were compared more than once the higher numbers."""
    every = np.concatenate(several)
    every = every[np.lexsort((every["inliers"], every["key"]))]
    if not len(every):
        return every
    first = np.flatnonzero(np.diff(every["key"], prepend=-1))
    last = np.append(first[1:], len(every)) - 1
    kept = every[last]
    kept["similarity"] = np.maximum.reduceat(every["similarity"], first)
    return kept


def ends(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the photos of each pair."""
    return pairs["key"] // _SECOND, pairs["key"] % _SECOND


def incident(pairs: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Tell which pairs have an end in a mask of photos."""
    one, other = ends(pairs)
    return np.asarray(photos[one] | photos[other])


def members(pairs: np.ndarray, n: int) -> np.ndarray:
    """Return a mask, of shape (n,), of the photos that are in a pair."""
    mask = np.zeros(n, bool)
    for photos in ends(pairs):
        mask[photos] = True
    return mask


def matrix(pairs: np.ndarray, n: int) -> sparse.csr_array:
    """Return the weights of pairs, of shape (n, n), symmetric."""
    one, other = ends(pairs)
    weights = verified(pairs["similarity"].astype(np.float64), pairs["inliers"])
    coords = np.concatenate([one, other]), np.concatenate([other, one])
    return sparse.csr_array((np.concatenate([weights, weights]), coords), shape=(n, n))


def grown(edges: np.ndarray, new: np.ndarray, n: int, neighbours: int) -> np.ndarray:
    """Return the edges of a graph to which pairs are added: `nearest_edges` of both.

    Only photos in new pairs can lose or gain edges, and whether they do is told by the edges of
    those at the other ends; the rest of the graph is not looked at.

    Args:
        edges: pairs.
        new: pairs that were compared since.
        n: photos in all.
        neighbours: k.
    """
    both = joined(edges, new)
    touched = members(new, n)
    open_ = incident(both, touched)
    around = incident(both, members(both[open_], n))
    nearest = nearest_edges(matrix(both[around], n), neighbours)
    if int(np.diff(nearest.indptr).max(initial=0)) > MOST_EDGES:
        surest = largest(nearest, MOST_EDGES).tocsr()
        nearest = surest.minimum(surest.T).tocsr()
    one, other = sparse.coo_array(sparse.triu(nearest)).coords
    keys = one.astype(np.int64) * _SECOND + other
    return np.asarray(both[~open_ | np.isin(both["key"], keys)])


def changed(before: np.ndarray, after: np.ndarray, n: int) -> np.ndarray:
    """Return a mask, of shape (n,), of the photos whose edges differ."""
    mask = np.zeros(n, bool)
    for some, others in ((before, after), (after, before)):
        there = np.searchsorted(others["key"], some["key"])
        there = np.minimum(there, max(0, len(others) - 1))
        same = others[there] == some if len(others) else np.zeros(len(some), bool)
        mask |= members(some[~same], n)
    return mask
