"""Print how long the default search takes without the network, against bare pymilvus.

    python benchmarks/auto_speed.py --folder DIR [--rows 10000]

Made-up rows in Milvus Lite, kept in DIR: the default encoder's descriptors in clusters of 20
photos, region vectors and 800 keypoints a photo without any sense, so that none agree and all of
the 60 hits are looked at to the end, and 50 entries a row of the graph. In turns: a descriptor
search by a bare `MilvusClient` for 20 hits, and `auto` (200 candidates by regions, 60 by keypoints,
the graph) of a query that was encoded before. "first" has none of its candidates' vectors in
memory, "again" all of them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from figures import seconds, show
from graph_speed import AT_ONCE, CLUSTER, row

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.method.keypoint_codes import DIM, Keypoints
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.search import search_queries
from cwf_milvus.store.graph import Head

QUERIES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with room for the rows")
    parser.add_argument("--rows", type=int, default=10_000, metavar="N")
    options = parser.parse_args()
    show(auto_speed(options.folder, options.rows))


def auto_speed(folder: Path, rows: int = 10_000) -> dict[str, float]:
    """Return milliseconds of the default search, and how often bare pymilvus goes into them."""
    place, name = folder / "auto.db", f"made_up_{rows}"
    if not InstanceCollection.exists(place, name):
        with InstanceCollection.create(place, name, Encoder()) as photos:
            fill(photos, rows)
    with InstanceCollection.open(place, name) as photos:
        return measure(photos, rows)


def fill(photos: InstanceCollection, n: int) -> None:
    rng = np.random.default_rng(0)
    photos.graph.create()
    for start in range(0, n, AT_ONCE):
        centres = np.repeat(
            rng.standard_normal((AT_ONCE // CLUSTER, photos.layout.dim)), CLUSTER, 0
        )
        made = [photo(start + i, centre) for i, centre in enumerate(centres)]
        photos.upsert(made)
        photos.graph.write([row(start + i, one, n, rng) for i, one in enumerate(made)])
        print(f"{start + AT_ONCE} rows", end="\r", flush=True)
    photos.graph.write_head(Head(10, True, next=n, complete=True, rows=n))
    photos.graph.warm()


def photo(number: int, centre: np.ndarray | float = 0.0) -> Encoding:
    rng = np.random.default_rng(number)

    def unit(n: int, dim: int) -> np.ndarray:
        vectors = rng.standard_normal((n, dim), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    descriptor = centre + rng.standard_normal(1024)
    points = Keypoints(
        (rng.random((800, 2)) * (640, 480)).astype(np.float32),
        np.full(800, 8, np.float32),
        np.zeros(800, np.float32),
        unit(800, DIM),
        640,
        480,
    )
    return Encoding(
        (descriptor / np.linalg.norm(descriptor)).astype(np.float32),
        rng.permutation(1000)[:32],
        np.ones(32, np.float32),
        unit(32, 1024),
        np.tile(np.array([0, 0, 640, 480], np.float32), (30, 1)),
        unit(30, 1024),
        f"photo-{number:07d}",
        f"{number:064x}",
        640,
        480,
        points,
    )


def measure(photos: InstanceCollection, rows: int) -> dict[str, float]:
    stages = chosen_stages(gallery=photos)
    print(f"{rows} rows, auto is {', '.join(stage.name for stage in stages)}")
    stored = photos.get([f"photo-{i:07d}" for i in range(0, rows, rows // QUERIES)], vectors=True)
    times: dict[str, list[float]] = {"bare pymilvus": [], "auto, first": [], "auto, again": []}
    for i, one in enumerate(one for one in stored if one is not None):
        encoding = replace(photo(-1 - i + 2**32), descriptor=one.unpack().descriptor)
        query = Query(encoding, "query")
        call = {"data": [encoding.descriptor.tolist()], "limit": 20, "output_fields": ["uri"]}
        times["bare pymilvus"].append(
            seconds(lambda call=call: photos.store.call("search", photos.name, **call))
        )
        for what in ("auto, first", "auto, again"):
            times[what].append(
                seconds(
                    lambda query=query: search_queries(
                        photos, [query], limit=20, filter=None, stages=stages, candidates=200
                    )
                )
            )
    base = times["bare pymilvus"][1:]  # the first query warms up
    figures = {f"{what}, ms": 1000 * float(np.median(found[1:])) for what, found in times.items()}
    for what, found in times.items():
        ratios = [a / b for a, b in zip(found[1:], base, strict=True)]
        figures[f"{what} over bare pymilvus"] = float(np.median(ratios))
    del figures["bare pymilvus over bare pymilvus"]
    return figures


if __name__ == "__main__":
    main()
