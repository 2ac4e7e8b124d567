"""A search by descriptor over the same search by bare pymilvus, with the same output fields.

    python benchmarks/search_speed.py [--rows 100000] [--dim 1024] [--batch 32] [--rounds 9]

Rows are random unit vectors with real metadata fields; their local vectors are left as small as
the schema takes them, since neither side reads them. Both are timed in turn on one open Milvus
Lite collection; the median of the ratios of neighbours is shown. The network is not part of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from figures import seconds, show

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.search.search import search_queries

FIELDS = ["uri", "content", "width", "height", "class_ids", "class_scores", "$meta"]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def encoding(rng: np.random.Generator, name: str, dim: int, descriptor: np.ndarray) -> Encoding:
    return Encoding(
        descriptor,
        rng.choice(1000, 1, replace=False),
        rng.random(1, dtype=np.float32),
        unit(rng, 1, dim),
        np.array([[0, 0, 640, 480]], np.float32),
        unit(rng, 1, dim),
        name,
        f"{abs(hash(name)):064x}"[:64],
        640,
        480,
    )


def fill(collection: InstanceCollection, rows: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    for start in range(0, rows, 1000):
        descriptors = unit(rng, min(1000, rows - start), dim)
        names = [f"/photos/{start + i:07d}.jpg" for i in range(len(descriptors))]
        collection.upsert(
            [encoding(rng, n, dim, d) for n, d in zip(names, descriptors, strict=True)],
            [{"year": 2000 + i % 25, "place": "harbour"} for i in range(len(names))],
        )
        print(f"\r{start + len(names)} rows", end="", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    show(search_speed(**vars(options)))


def search_speed(
    rows: int = 100_000, dim: int = 1024, batch: int = 32, limit: int = 100, rounds: int = 9
) -> dict[str, float]:
    """Return milliseconds of both, and the median, least and largest ratio."""
    encoder = Encoder(dim=dim, n_classes=1, n_pooled=1, region_levels=(1, 2, 3, 4))
    rng = np.random.default_rng(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "speed.db")
        with InstanceCollection.create(uri, "speed", encoder) as collection:
            fill(collection, rows, dim)
            client = collection.store._client
            for n in (1, batch):
                wanted = unit(rng, n, dim)
                queries = [
                    Query(encoding(rng, f"query {i}", dim, vector), f"query {i}")
                    for i, vector in enumerate(wanted)
                ]

                def ours(queries=queries) -> None:
                    search_queries(collection, queries, limit=limit, filter=None)

                def bare(wanted=wanted) -> None:
                    client.search(
                        "speed",
                        data=list(wanted),
                        anns_field="descriptor",
                        limit=limit,
                        output_fields=FIELDS,
                        search_params={"metric_type": "IP"},
                    )

                bare(), ours()
                pairs = [(seconds(bare), seconds(ours)) for _ in range(rounds)]
                alone, with_us = (1000 * statistics.median(one) for one in zip(*pairs, strict=True))
                ratios = [b / a for a, b in pairs]
                found |= {
                    f"{n} queries: bare pymilvus, ms": alone,
                    f"{n} queries: ours, ms": with_us,
                    f"{n} queries: ours over bare pymilvus": statistics.median(ratios),
                    f"{n} queries: least ratio": min(ratios),
                    f"{n} queries: largest ratio": max(ratios),
                }
    return found


if __name__ == "__main__":
    main()
