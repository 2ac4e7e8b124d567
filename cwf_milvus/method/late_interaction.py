"""Late interaction: what each of the query's vectors finds at best among a hit's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.int8 import Int8Vectors


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
    query_vectors: np.ndarray, hit_vectors: Sequence[np.ndarray | Int8Vectors] | np.ndarray
) -> Interaction:
    """Score hits by late interaction (MaxSim; Khattab and Zaharia, SIGIR 2020).

    ``score(hit) = mean over q of max over v in hit of q . v``. A hit without vectors scores 0.
    All-zero vectors of the query answer to nothing and do not count.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: unit, of shape (H, R, d), or H arrays of shape (R_h, d), in float32 or int8.

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
    asked = np.asarray(query_vectors, dtype=np.float32)
    counted = asked.any(axis=1) if n_queries else np.zeros(0, dtype=bool)
    if counted.any():
        for count in np.unique(counts[counts > 0]).tolist():  # nearly always one
            alike = np.flatnonzero(counts == count)
            products = _products(asked, [hit_vectors[i] for i in alike.tolist()])
            every = products.reshape(len(alike), count, n_queries)
            best = every.argmax(axis=1)
            matches[alike] = best
            cosines[alike] = np.take_along_axis(every, best[:, None], axis=1)[:, 0]
    scores = cosines[:, counted].mean(axis=1) if counted.any() else np.zeros(n_hits, np.float32)
    return Interaction(scores, cosines, matches)


def _products(asked: np.ndarray, stored: Sequence[np.ndarray | Int8Vectors]) -> np.ndarray:
    """Return the inner products of all stored vectors with the query's, of shape (sum n, Q)."""
    in_int8 = [one for one in stored if isinstance(one, Int8Vectors)]
    if len(in_int8) == len(stored):  # one conversion in place of one for each, and of a copy
        stacked = np.concatenate([one.numbers for one in in_int8], dtype=np.float32)
        _same_dimension(asked, stacked)
        return (stacked @ asked.T) * np.concatenate([one.scales for one in in_int8])[:, None]
    stacked = np.concatenate([np.asarray(one) for one in stored])
    _same_dimension(asked, stacked)
    return np.asarray(stacked @ asked.T)


def _same_dimension(query_vectors: np.ndarray, hit_vectors: np.ndarray) -> None:
    if query_vectors.shape[1] != hit_vectors.shape[1]:
        raise SettingsError(
            f"the query's vectors have {query_vectors.shape[1]} dimensions, the hits' "
            f"{hit_vectors.shape[1]}: encode both with one encoder"
        )
