"""Queries and hits with random stored vectors, for stages alone."""

from __future__ import annotations

import numpy as np

from cwf_milvus.answers.hits import Hit, Query, StageScore
from cwf_milvus.encode.encoding import Encoding, Vectors

DIM = 16


def units(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def boxes(n: int) -> np.ndarray:
    return np.array([[i, i, i + 10, i + 20] for i in range(n)], np.float32).reshape(-1, 4)


def query(seed: int = 0, n_classes: int = 6, n_regions: int = 5, content: str = "") -> Query:
    rng = np.random.default_rng(seed)
    encoding = Encoding(
        descriptor=units(DIM, seed=seed),
        class_ids=rng.permutation(12)[:n_classes],
        class_scores=np.ones(n_classes, np.float32),
        class_vectors=units(n_classes, DIM, seed=seed + 1),
        region_boxes=boxes(n_regions),
        region_vectors=units(n_regions, DIM, seed=seed + 2),
        uri="query",
        content=content,
        width=100,
        height=100,
    )
    return Query(encoding, "query")


def hit(
    name: str, score: float, seed: int, n_classes: int = 4, n_regions: int = 3, content: str = "-"
) -> Hit:
    ids = np.random.default_rng(seed).permutation(12)[:n_classes]
    vectors = Vectors(
        content,
        ids,
        descriptor=units(DIM, seed=seed),
        class_vectors=units(n_classes, DIM, seed=seed + 1),
        region_boxes=boxes(n_regions),
        region_vectors=units(n_regions, DIM, seed=seed + 2),
    )
    stages = (StageScore("descriptor", score, 1),)
    return Hit(name, score, width=100, height=100, stages=stages, vectors=vectors)


def hits(n: int = 8, **options: int) -> list[Hit]:
    """n hits, best first by a score that has nothing to do with their vectors."""
    return [hit(f"hit{i}", 1 - i / 10, seed=10 * (i + 1), **options) for i in range(n)]


def names(found: list[Hit]) -> list[str]:
    return [one.uri for one in found]
