"""Time re-ranking by stored regions against the descriptor search alone, on Milvus Lite.

    python benchmarks/rerank_speed.py --folder /tmp/speed

Builds, once, a collection of 10,000 rows of random unit vectors in the default layout (time does
not depend on their values; random queries share hardly any candidates, the worst case for a
batch), then alternates the two and prints the best time, and the median ratio of the rounds:
machines are rarely idle, and what disturbs one half of a round mostly disturbs the other. "cold"
has no vectors in the cache, "warm" those of the same queries.

    python benchmarks/rerank_speed.py --cam PHOTOS

times the stage `cam` on 64 photos of a folder, reading included, against their bare forward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.rerank import Cam, Context, Regions, Stage
from cwf_milvus.search.search import ask, search_queries
from cwf_milvus.search.seen_again import feature_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path)
    where.add_argument("--cam", type=Path, metavar="PHOTOS")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.cam:
        measure_cam(arguments.cam, arguments.rounds)
        return
    place, name = arguments.folder / "speed.db", f"rows_{arguments.rows}_{arguments.precision}"
    if not InstanceCollection.exists(place, name):
        build(place, name, arguments.rows, arguments.precision)
    with InstanceCollection.open(place, name) as photos:
        for n_queries in (1, 32):
            measure(photos, n_queries, arguments.rounds)


def measure(photos: InstanceCollection, n_queries: int, rounds: int) -> None:
    cache = photos.vector_cache
    times: dict[str, list[float]] = {"alone": [], "cold": [], "warm": []}
    for turn in range(rounds):
        queries = [Query(encoding(-1 - turn * 1000 - i), "q") for i in range(n_queries)]
        times["alone"].append(seconds(photos, queries, []))
        cache.clear()
        times["cold"].append(seconds(photos, queries, [Regions()]))
        times["warm"].append(seconds(photos, queries, [Regions()]))
    report(f"{n_queries} queries, 100 candidates", times)


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print the best time of each, and the median of its rounds' ratios to the first."""
    base = next(iter(times.values()))
    for what, found in times.items():
        ratio = np.median([one / other for one, other in zip(found, base, strict=True)])
        print(
            f"{title}: {what:5s} best {min(found) * 1e3:9.1f} ms, {ratio:5.2f} x  "
            f"(all rounds: {', '.join(f'{t * 1e3:.0f}' for t in found)})",
            flush=True,
        )


def measure_cam(folder: Path, rounds: int) -> None:
    encoder = Encoder()

    class Photos:
        def __init__(self) -> None:
            self.encoder = encoder

    uris = list_photos(str(folder))[:64]
    query = ask(encoder, [uris[0]])[0]
    images = [encoder.read(uri) for uri in uris]
    hits = [Hit(i.uri, 0.0, width=i.width, height=i.height) for i in images]
    prepared = [encoder.prepare(image) for image in images]
    groups = list(batches(prepared, encoder.batch_size, lambda one: one.grid[0]))

    @torch.no_grad()
    def bare() -> None:
        for group in groups:
            encoder.backbone(torch.stack([one.view for one in group]).to(encoder.device))
        if encoder.device.type == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {"bare": [], "cam": [], "again": []}
    for _ in range(rounds):
        times["bare"].append(timed(bare))
        feature_cache(encoder).batches.clear()
        times["cam"].append(timed(lambda: Cam()(query, hits, Context(Photos()))))
        times["again"].append(timed(lambda: Cam()(query, hits, Context(Photos()))))
    report(f"{len(hits)} candidates in {len(groups)} batches", times)


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


def build(place: Path, name: str, rows: int, precision: str) -> None:
    with InstanceCollection.create(place, name, Encoder(), precision=precision) as photos:
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
