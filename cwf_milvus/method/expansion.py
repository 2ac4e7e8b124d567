"""Query expansion: a better query out of what the first one found, as functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.late_interaction import VectorSet, late_interaction


def query_expand(descriptors: np.ndarray) -> np.ndarray:
    """Return the new query ``l2(sum of the top n)`` (Chum et al., ICCV 2007; METHOD of the paper).

    Args:
        descriptors: of the top n hits, unit, of shape (n, d). The query is not among them.

    Returns:
        Of shape (d,), unit.

    Raises:
        SettingsError: no descriptors.
    """
    return _unit(np.asarray(descriptors, dtype=np.float32).sum(axis=0), len(descriptors))


def alpha_expand(
    query: np.ndarray, descriptors: np.ndarray, scores: np.ndarray | None = None, alpha: float = 3.0
) -> np.ndarray:
    """Return the alpha-weighted query ``l2(q + sum max(0, cos_i)^alpha d_i)``.

    The query is included with weight 1 (Radenovic, Tolias and Chum, TPAMI 2019).

    Args:
        query: unit, of shape (d,).
        descriptors: of the top n hits, unit, of shape (n, d).
        scores: their cosines with the query, of shape (n,); None to compute them.
        alpha: 0 weights all alike, a large one only the nearest.

    Returns:
        Of shape (d,), unit.

    Raises:
        SettingsError: no descriptors, or scores of another number.
    """
    if scores is None:
        scores = descriptors @ query
    if len(scores) != len(descriptors):
        raise SettingsError(
            f"{len(scores)} scores for {len(descriptors)} descriptors: give each one"
        )
    weights = np.maximum(np.asarray(scores, dtype=np.float32), 0) ** alpha
    return _unit(query + weights @ descriptors, len(descriptors))


def steer(like: np.ndarray, unlike: np.ndarray | None = None) -> np.ndarray:
    """Return a query towards some descriptors and away from others (Rocchio, 1971).

    Args:
        like: unit, of shape (n, d).
        unlike: unit, of shape (m, d), each with half the weight of one in `like`.

    Raises:
        SettingsError: nothing to steer towards, or what is left is zero.
    """
    towards = np.asarray(like, dtype=np.float32).sum(axis=0) / max(len(like), 1)
    if unlike is not None and len(unlike):
        towards = towards - 0.5 * np.asarray(unlike, dtype=np.float32).mean(axis=0)
    return _unit(towards, len(like))


def local_matches(
    query_vectors: np.ndarray, hit_vectors: Sequence[VectorSet], per_hit: int
) -> np.ndarray:
    """Return the stored vectors that answer a query best, to grow its set by.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: of the top n hits, n arrays of shape (R_i, d).
        per_hit: how many of each hit's vectors, those with the best cosine to any of the query's.

    Returns:
        Of shape (at most n * per_hit, d).
    """
    chosen = []
    for vectors in map(np.asarray, hit_vectors):
        if len(vectors):
            best = (vectors @ query_vectors.T).max(axis=1)
            chosen.append(vectors[np.argsort(-best, kind="stable")[:per_hit]])
    if not chosen:
        return np.zeros((0, query_vectors.shape[1]), dtype=np.float32)
    return np.concatenate(chosen)


def local_expand(
    query_vectors: np.ndarray,
    hit_vectors: Sequence[VectorSet],
    scores: np.ndarray,
    *,
    hits: int,
    per_hit: int,
    share: float,
    rounds: int = 1,
    lends: Sequence[bool] | None = None,
) -> np.ndarray:
    """Score candidates anew with a query grown by the best-matching vectors of its top hits.

    Late interaction is squared. No candidate is scored against itself: one that lends counts as
    much as the best of those that do not, or more where what the others lent says so, so that it
    keeps its place and gains no score by its own vectors; one that may not lend keeps its score.

    Args:
        query_vectors: unit, of shape (Q, d).
        hit_vectors: of the H candidates, H arrays of shape (R_i, d).
        scores: their late-interaction scores so far, of shape (H,), higher is better.
        hits: how many of the best lend vectors; a hit more in every further round.
        per_hit: how many vectors each lends.
        share: weight of the lent vectors' score, from 0 to 1; the rest is that of `scores`.
        rounds: how often.
        lends: of shape (H,), False for candidates that lend nothing, such as the query's own
            photo; None for all to lend.

    Returns:
        Of shape (H,).
    """
    may = np.ones(len(scores), bool) if lends is None else np.asarray(lends, bool)
    first = now = np.asarray(scores, dtype=np.float32)
    for extra in range(rounds):
        order = np.argsort(-now, kind="stable")
        top = order[may[order]][: hits + extra]
        lent = [local_matches(query_vectors, [hit_vectors[i]], per_hit) for i in top]
        lenders = np.repeat(top, [len(vectors) for vectors in lent])
        if not len(lenders):
            return now
        answers = np.maximum(late_interaction(np.concatenate(lent), hit_vectors).cosines, 0) ** 2
        found = answers.mean(axis=1)
        others = may & ~np.isin(np.arange(len(may)), top)
        best = found[others].max(initial=0)
        for i in top:
            of_others = answers[i, lenders != i]
            found[i] = max(best, of_others.mean() if len(of_others) else 0)
        found[~may] = first[~may]
        now = np.asarray((1 - share) * first + share * found, dtype=np.float32)
    return now


def _unit(vector: np.ndarray, n: int) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not n or length < 1e-12:
        raise SettingsError(
            f"nothing to expand a query with: {n} descriptors that sum to {length:g}; give at "
            "least one that differs"
        )
    return (vector / length).astype(np.float32)
