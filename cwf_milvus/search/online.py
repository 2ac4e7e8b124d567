"""The stages `online` and `class-matched`: hits described by the query's classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_count
from cwf_milvus.method import aggregation
from cwf_milvus.method.pooling import l2_normalize
from cwf_milvus.search.stage import Context, Stage, reranked, stored_of, vectors_of

N_CLASSES = 16
_NO_CLASS = -1
_NONE_STORED = "no class vectors are stored with it"


class Online(Stage):
    """Aggregate each hit anew by the query's classes (section 3.3 of the paper, OnA).

    Query and hit are each the unit sum of the class vectors of the query's top classes; the score
    is their cosine. Classes that a hit has not stored are left out; a hit that has none of them
    keeps its offline descriptor, the sum of all that it has. With all classes stored
    (`--store-classes all`) this is the paper's online aggregation exactly, up to the rounding of
    storage.

    Args:
        n_classes: how many of the query's classes (the paper's N_C, there 64). With 16 what is
            stored decides least: 64 stored classes find as much as all 1000 (docs/reranking.md).

    Raises:
        SettingsError: n_classes under 1.
    """

    name = "online"
    needs = ("classes",)
    brief = True

    def __init__(self, n_classes: int = N_CLASSES) -> None:
        self.n_classes = checked_count("n_classes", n_classes)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`."""
        asked, ids = _of_query(query, self.n_classes)
        vectors, class_ids, has_vectors = _of_hits(hits)
        if not has_vectors.any() or not len(asked):
            return reranked(
                self.name, hits, np.full(len(hits), np.nan), why_not=lambda _: _NONE_STORED
            )
        descriptors = aggregation.online(
            vectors, class_ids, ids, fallback=aggregation.offline(vectors)
        )
        scores = (descriptors @ l2_normalize(asked.sum(dim=0))).numpy()
        scores = np.where(has_vectors, scores, np.nan)
        return reranked(self.name, hits, scores, why_not=lambda _: _NONE_STORED)


class ClassMatched(Stage):
    """Score by the mean cosine of the vectors of equal classes.

    A hit that shares no class with the query scores 0, as chance does.

    Args:
        n_classes: as in `Online`.
    """

    name = "class-matched"
    needs = ("classes",)
    brief = True

    def __init__(self, n_classes: int = N_CLASSES) -> None:
        self.n_classes = checked_count("n_classes", n_classes)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`."""
        asked, ids = _of_query(query, self.n_classes)
        vectors, class_ids, has_vectors = _of_hits(hits)
        scores = np.full(len(hits), np.nan)
        if has_vectors.any():
            found = aggregation.class_matched_scores(asked, ids, vectors, class_ids).numpy()
            scores = np.where(has_vectors, found, np.nan)
        return reranked(self.name, hits, scores, why_not=lambda _: _NONE_STORED)


def _of_query(query: Query, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return the query's top class vectors, of shape (n, d), and their ids."""
    encoding = query.encoding
    vectors = np.array(encoding.class_vectors[:n_classes], np.float32)
    return torch.from_numpy(vectors), torch.from_numpy(np.array(encoding.class_ids[:n_classes]))


def _of_hits(hits: Sequence[Hit]) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return class vectors (H, N, d), ids (H, N), padded by id -1, and which hits have any."""
    stored = [vectors_of(hit, "classes") for hit in hits]
    counts = np.array([len(vectors) for vectors in stored], dtype=np.int64)
    dim = max((vectors.shape[1] for vectors in stored), default=0)
    most = int(counts.max(initial=0))
    vectors = np.zeros((len(hits), most, dim), np.float32)
    ids = np.full((len(hits), most), _NO_CLASS, np.int64)
    for i, own in enumerate(stored):
        if len(own):
            vectors[i, : len(own)] = own
            ids[i, : len(own)] = stored_of(hits[i]).class_ids
    return torch.from_numpy(vectors), torch.from_numpy(ids), counts > 0
