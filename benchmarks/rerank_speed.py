"""Time re-ranking by stored regions against the descriptor search alone, on Milvus Lite.

    python benchmarks/rerank_speed.py --folder /tmp/speed

Builds, once, a collection of 10,000 rows of random unit vectors in the default layout (time does
not depend on their values; random queries share hardly any candidates, the worst case for a
batch), then alternates the two and prints the best of the rounds: machines are rarely idle, and
noise only ever adds. "cold" has no vectors in the cache, "warm" those of the same queries.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encoder import Encoder
from cwf_milvus.encoding import Encoding
from cwf_milvus.hits import Query
from cwf_milvus.rerank import Regions, Stage
from cwf_milvus.rerank.vectors import vector_cache
from cwf_milvus.search import search_queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    place, name = arguments.folder / "speed.db", f"rows_{arguments.rows}"
    if not InstanceCollection.exists(place, name):
        build(place, name, arguments.rows)
    with InstanceCollection.open(place, name) as photos:
        vector_cache(photos).most_bytes = 2**30
        for n_queries in (1, 32):
            measure(photos, n_queries, arguments.rounds)


def measure(photos: InstanceCollection, n_queries: int, rounds: int) -> None:
    cache = vector_cache(photos)
    times: dict[str, list[float]] = {"alone": [], "cold": [], "warm": []}
    for turn in range(rounds):
        queries = [Query(encoding(-1 - turn * 1000 - i), "q") for i in range(n_queries)]
        times["alone"].append(seconds(photos, queries, []))
        cache.clear()
        times["cold"].append(seconds(photos, queries, [Regions()]))
        times["warm"].append(seconds(photos, queries, [Regions()]))
    alone = min(times["alone"])
    for what, found in times.items():
        best = min(found)
        print(
            f"{n_queries:3d} queries, 100 candidates: {what:5s} {best * 1e3:8.1f} ms  "
            f"{best / alone:5.2f} x  (all rounds: {', '.join(f'{t * 1e3:.0f}' for t in found)})",
            flush=True,
        )


def seconds(photos: InstanceCollection, queries: Sequence[Query], stages: Sequence[Stage]) -> float:
    return timed(
        lambda: search_queries(
            photos, queries, limit=100, filter=None, stages=stages, candidates=100
        )
    )


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def build(place: Path, name: str, rows: int) -> None:
    with InstanceCollection.create(place, name, Encoder()) as photos:
        for start in range(0, rows, 100):
            photos.upsert([encoding(i) for i in range(start, start + 100)])
            print(f"{start + 100} rows", end="\r", flush=True)


def encoding(number: int) -> Encoding:
    rng = np.random.default_rng(number % 2**32)

    def unit(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, 1024), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return Encoding(
        unit(1)[0],
        rng.permutation(1000)[:32],
        np.ones(32, np.float32),
        unit(32),
        np.tile(np.array([0, 0, 640, 480], np.float32), (30, 1)),
        unit(30),
        f"/photos/{number:05d}.jpg",
        f"{number % 2**32:064x}",
        640,
        480,
    )


if __name__ == "__main__":
    main()
