"""Late interaction: what each of the query's vectors finds at best among a hit's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.int4 import Int4Vectors, inner_products
from cwf_milvus.method.int8 import Int8Vectors

VectorSet = np.ndarray | Int8Vectors | Int4Vectors
"""Vectors of shape (R, d) in float32, 8 or 4 bits."""


@dataclass(frozen=True, eq=False)
class Interaction:
    """How a query's Q vectors meet the vectors of H hits.

    Attributes:
        scores: of shape (H,): the mean over the query's vectors of ``max(0, best cosine)^power``.
        cosines: of shape (H, Q): the best cosine of each of the query's vectors.
        matches: of shape (H, Q), int64: which of the hit's vectors gave it.
    """

    scores: np.ndarray
    cosines: np.ndarray
    matches: np.ndarray


def late_interaction(
    query_vectors: np.ndarray,
    hit_vectors: Sequence[VectorSet] | np.ndarray,
    power: float = 2.0,
) -> Interaction:
    """Score hits by late interaction, squared.

    ``score(hit) = mean over q of max(0, max over v in hit of q . v)^power``: squares let a few good
    answers outweigh many poor ones (selective match kernels, Tolias et al., ICCV 2013). Power 1 is
    MaxSim (Khattab and Zaharia, SIGIR 2020), where negative cosines count too. A hit without
    vectors scores 0. All-zero vectors of the query answer to nothing and do not count.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: unit, of shape (H, R, d), or H of shape (R_h, d), in float32, int8 or int4.
        power: of the cosines, at least 1.

    Raises:
        SettingsError: vectors of different dimensions, or a power below 1.

    Example:
        >>> found = late_interaction(query_vectors, [vectors for vectors in stored])
        >>> order = np.argsort(-found.scores, kind="stable")
    """
    checked_power(power)
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
    return Interaction(_score(cosines[:, counted], power), cosines, matches)


def mutual_interaction(
    vectors: np.ndarray, others: Sequence[VectorSet] | np.ndarray, power: float = 2.0
) -> np.ndarray:
    """Return how alike a photo and others are: `late_interaction`, the mean of both directions.

    Args:
        vectors: the photo's, unit, of shape (R, d), none of them all zero.
        others: of H photos, as in `late_interaction`.
        power: of the cosines, at least 1.

    Returns:
        float32 of shape (H,); 0 where one of the two has no vectors.

    Raises:
        SettingsError: vectors of different dimensions, or a power below 1.
    """
    checked_power(power)
    scores = np.zeros(len(others), dtype=np.float32)
    if not len(vectors):
        return scores
    asked = np.asarray(vectors, dtype=np.float32)
    counts = np.array([len(one) for one in others], dtype=np.int64)
    for count in np.unique(counts[counts > 0]).tolist():
        alike = np.flatnonzero(counts == count)
        products = _products(asked, [others[i] for i in alike.tolist()])
        every = products.reshape(len(alike), count, len(asked))
        there, back = (_score(every.max(axis=axis), power) for axis in (1, 2))
        scores[alike] = (there + back) / 2
    return scores


def checked_power(power: float) -> float:
    """Return a power of cosines; raises `SettingsError` for less than 1."""
    if isinstance(power, bool) or not isinstance(power, int | float) or not 1 <= power < math.inf:
        raise SettingsError(f"power={power!r}: give a number of at least 1, 2 for squares")
    return float(power)


def _score(cosines: np.ndarray, power: float) -> np.ndarray:
    """Return the mean over the last axis of ``max(0, cosine)^power``, 0 over none."""
    if not cosines.shape[-1]:
        return np.zeros(cosines.shape[:-1], dtype=np.float32)
    answers = cosines if power == 1 else np.maximum(cosines, 0) ** power
    return np.asarray(answers.mean(axis=-1))


def _products(asked: np.ndarray, stored: Sequence[VectorSet]) -> np.ndarray:
    """Return the inner products of all stored vectors with the query's, of shape (sum n, Q)."""
    for one in stored:
        _same_dimension(asked, one)
    if _all_in_int4(stored):
        return inner_products(asked, stored)
    in_int8 = [one for one in stored if isinstance(one, Int8Vectors)]
    if len(in_int8) == len(stored):  # one conversion in place of one for each, and of a copy
        stacked = np.concatenate([one.numbers for one in in_int8], dtype=np.float32)
        return (stacked @ asked.T) * np.concatenate([one.scales for one in in_int8])[:, None]
    return np.asarray(np.concatenate([np.asarray(one) for one in stored]) @ asked.T)


def _all_in_int4(stored: Sequence[VectorSet]) -> TypeGuard[Sequence[Int4Vectors]]:
    return all(isinstance(one, Int4Vectors) for one in stored)


def _same_dimension(query_vectors: np.ndarray, hit_vectors: VectorSet) -> None:
    if query_vectors.shape[1] != hit_vectors.shape[1]:
        raise SettingsError(
            f"the query's vectors have {query_vectors.shape[1]} dimensions, the hits' "
            f"{hit_vectors.shape[1]}: encode both with one encoder"
        )
