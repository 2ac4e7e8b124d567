"""Late interaction: what each of the query's vectors finds at best among a hit's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwf_milvus.errors import SettingsError


@dataclass(frozen=True, eq=False)
class Interaction:
    """How a query's Q vectors meet the vectors of H hits.

    Attributes:
        scores: of shape (H,): the mean over the query's vectors of their best cosine.
        cosines: of shape (H, Q): the best cosine of each of the query's vectors.
        matches: of shape (H, Q), int64: which of the hit's vectors gave it.
    """

    scores: np.ndarray
    cosines: np.ndarray
    matches: np.ndarray


def late_interaction(
    query_vectors: np.ndarray, hit_vectors: Sequence[np.ndarray] | np.ndarray
) -> Interaction:
    """Score hits by late interaction (MaxSim; Khattab and Zaharia, SIGIR 2020).

    ``score(hit) = mean over q of max over v in hit of q . v``. A hit without vectors scores 0.
    All-zero vectors of the query answer to nothing and do not count.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: unit, of shape (H, R, d), or H arrays of shape (R_h, d).

    Raises:
        SettingsError: vectors of different dimensions.

    Example:
        >>> found = late_interaction(query_vectors, [vectors for vectors in stored])
        >>> order = np.argsort(-found.scores, kind="stable")
    """
    counts = np.array([len(vectors) for vectors in hit_vectors], dtype=np.int64)
    n_queries, n_hits = len(query_vectors), len(counts)
    cosines = np.zeros((n_hits, n_queries), dtype=np.float32)
    matches = np.zeros((n_hits, n_queries), dtype=np.int64)
    filled = np.flatnonzero(counts)
    counted = np.asarray(query_vectors).any(axis=1) if n_queries else np.zeros(0, dtype=bool)
    if len(filled) and counted.any():
        stacked = np.concatenate([hit_vectors[int(i)] for i in filled])
        _same_dimension(query_vectors, stacked)
        every = query_vectors.astype(np.float32, copy=False) @ stacked.T
        starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
        best = np.maximum.reduceat(every, starts, axis=1)
        cosines[filled] = best.T
        matches[filled] = _first_of(every, best, starts, counts[filled])
    scores = cosines[:, counted].mean(axis=1) if counted.any() else np.zeros(n_hits, np.float32)
    return Interaction(scores, cosines, matches)


def _first_of(
    every: np.ndarray, best: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return, of shape (H, Q), the place in each hit of the first vector that gives `best`."""
    place = np.arange(every.shape[1]) - np.repeat(starts, counts)
    at_best = every == np.repeat(best, counts, axis=1)
    places = np.where(at_best, place, every.shape[1])
    return np.minimum.reduceat(places, starts, axis=1).T


def _same_dimension(query_vectors: np.ndarray, hit_vectors: np.ndarray) -> None:
    if query_vectors.shape[1] != hit_vectors.shape[1]:
        raise SettingsError(
            f"the query's vectors have {query_vectors.shape[1]} dimensions, the hits' "
            f"{hit_vectors.shape[1]}: encode both with one encoder"
        )
