"""From an image's class vectors to one descriptor, or one score (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.pooling import l2_normalize


def offline(vectors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the offline aggregation ``D = l2(sum_c v_c)``: one descriptor an image.

    Args:
        vectors: whitened class vectors of the image's own top classes, of shape (B, N, d).
        weights: of shape (B, N); None for equal ones.

    Returns:
        Of shape (B, d), unit; zero where all vectors are.
    """
    if weights is None:
        return l2_normalize(vectors.sum(dim=1))
    return l2_normalize(torch.bmm(weights.to(vectors.dtype).unsqueeze(1), vectors)[:, 0])


def online(vectors: Tensor, class_ids: Tensor, query_ids: Tensor, fallback: Tensor) -> Tensor:
    """Return the online aggregation: each image described by the query's classes.

    The vectors of the query's classes that an image has are summed; those that it lacks are left
    out. An image that has none of them keeps its fallback.

    Args:
        vectors: stored whitened class vectors, of shape (B, N, d).
        class_ids: whose they are, of shape (B, N), each id once in a row.
        query_ids: the query's top classes, of shape (Nq,).
        fallback: of shape (B, d), such as the stored descriptors.

    Returns:
        Of shape (B, d), unit.
    """
    shared = torch.isin(class_ids, query_ids)
    sums = offline(vectors, shared)
    empty = ~sums.any(dim=1, keepdim=True)
    return torch.where(empty, l2_normalize(fallback), sums)


def class_matched_scores(
    query_vectors: Tensor, query_ids: Tensor, vectors: Tensor, class_ids: Tensor
) -> Tensor:
    """Return, for each image, the mean cosine between its and the query's vectors of equal class.

    A class that only one of them has is left out, as is one whose vector is zero on either side.
    With no class left the score is 0: no evidence ranks as chance, which is where the cosines of
    unrelated whitened vectors lie.

    Args:
        query_vectors: unit, of shape (Nq, d).
        query_ids: of shape (Nq,), each id once.
        vectors: unit, of shape (B, N, d).
        class_ids: of shape (B, N), each id once in a row.

    Returns:
        Of shape (B,), in [-1, 1].
    """
    # Few of the N * Nq pairs share a class: only their vectors are read.
    image, own, asked = (class_ids.unsqueeze(2) == query_ids).nonzero(as_tuple=True)
    stored, query = vectors[image, own], query_vectors[asked]
    cosines = (stored * query).sum(dim=1)
    counted = (torch.linalg.vector_norm(stored, dim=1) > 0) & (
        torch.linalg.vector_norm(query, dim=1) > 0
    )
    zeros = cosines.new_zeros(len(vectors))
    counts = zeros.index_add(0, image, counted.to(zeros.dtype))
    return zeros.index_add(0, image, cosines) / counts.clamp_min(1)


def count_classes(class_ids: Sequence[Sequence[int] | np.ndarray | Tensor], n: int) -> list[int]:
    """Return the n classes that most of a set of queries show: the predefined class list.

    Args:
        class_ids: the top classes of each representative query, the most likely first.
        n: how many; fewer come back when fewer occur.

    Returns:
        Ids ordered by how many queries show them; of equally frequent ones, those with the better
        mean rank first, then the lower ids.

    Raises:
        SettingsError: n is under 1, or there is no query.
    """
    lists = [np.asarray(ids, dtype=np.int64).ravel() for ids in class_ids]
    if n < 1 or not lists:
        raise SettingsError(f"cannot choose {n} classes from {len(lists)} queries: give at least 1")
    ids, which = np.unique(np.concatenate(lists), return_inverse=True)
    ranks = np.concatenate([np.arange(len(own)) for own in lists])
    counts = np.bincount(which, minlength=len(ids))
    mean_ranks = np.bincount(which, weights=ranks, minlength=len(ids)) / np.maximum(counts, 1)
    order = np.lexsort((ids, mean_ranks, -counts))
    return [int(i) for i in ids[order][:n]]
