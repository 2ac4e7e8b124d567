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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from figures import seconds, show

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.rerank import Cam, Context, Regions, Stage
from cwf_milvus.search.search import ask, search_queries


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
        show(cam_speed(arguments.cam, arguments.rounds))
        return
    show(
        rerank_speed(arguments.folder, arguments.rows, arguments.precision, rounds=arguments.rounds)
    )


def rerank_speed(
    folder: Path, rows: int = 10_000, precision: str = "int8", rounds: int = 5
) -> dict[str, float]:
    """Return milliseconds of 1 and 32 queries, and ratios over the descriptor search alone."""
    place, name = folder / "speed.db", f"rows_{rows}_{precision}"
    if not InstanceCollection.exists(place, name):
        build(place, name, rows, precision)
    with InstanceCollection.open(place, name) as photos:
        return measure(photos, 1, rounds) | measure(photos, 32, rounds)


def measure(photos: InstanceCollection, n_queries: int, rounds: int) -> dict[str, float]:
    cache = photos.vector_cache
    times: dict[str, list[float]] = {"alone": [], "cold": [], "warm": []}
    for turn in range(rounds):
        queries = [Query(encoding(-1 - turn * 1000 - i), "q") for i in range(n_queries)]
        times["alone"].append(spent(photos, queries, []))
        cache.clear()
        times["cold"].append(spent(photos, queries, [Regions()]))
        times["warm"].append(spent(photos, queries, [Regions()]))
    return ratios_of(f"{n_queries} queries", times)


def ratios_of(title: str, times: dict[str, list[float]]) -> dict[str, float]:
    """Return the best time of each, and the median of its rounds' ratios to the first."""
    (first, base), *others = times.items()
    found = {f"{title}: {what}, best ms": 1000 * min(one) for what, one in times.items()}
    for what, one in others:
        ratios = [a / b for a, b in zip(one, base, strict=True)]
        found[f"{title}: {what} over {first}"] = float(np.median(ratios))
    return found


def cam_speed(photos: Path, rounds: int = 5) -> dict[str, float]:
    """Return milliseconds of the stage `cam`, and its ratio to the bare forward passes."""
    encoder = Encoder()

    class Photos:
        def __init__(self) -> None:
            self.encoder = encoder

    uris = list_photos(str(photos))[:64]
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
        times["bare"].append(seconds(bare))
        encoder.seen.batches.clear()
        times["cam"].append(seconds(lambda: Cam()(query, hits, Context(Photos()))))
        times["again"].append(seconds(lambda: Cam()(query, hits, Context(Photos()))))
    return ratios_of(f"{len(hits)} candidates", times)


def spent(photos: InstanceCollection, queries: Sequence[Query], stages: Sequence[Stage]) -> float:
    return seconds(
        lambda: search_queries(
            photos, queries, limit=100, filter=None, stages=stages, candidates=100
        )
    )


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
