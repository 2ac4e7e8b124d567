"""Plain sums for many photos: bytes, memory, nodes and hours, from figures that are named.

python benchmarks/sums.py          # the tables of docs/scale.md

Every figure that goes in is in FIGURES with where it is from: "run" by a script of this repository,
"read" in somebody's documentation; what comes out is "computed". Change one, and run again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from cwf_milvus import Encoder, InstanceCollection
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.store.graph import EDGE
from cwf_milvus.store.layout import Layout

PHOTOS = {"1 million": 10**6, "10 million": 10**7, "100 million": 10**8, "1 billion": 10**9}
SETTINGS = {
    "default": Layout(1024, 32, 30, "int4", 800),
    "without keypoints": Layout(1024, 32, 30, "int4", 0),
    "compact": Layout(1024, 1, 10, "int4", 460),
    "descriptor of 512, compact": Layout(512, 1, 10, "int4", 460),
}


@dataclass(frozen=True)
class Figure:
    value: float
    source: str


FIGURES = {
    "photos a second, 1 CPU core": Figure(6.9, "run: half of what docs/performance.md has for 2"),
    "photos a second, 1 GPU": Figure(500, "assumed: no GPU was to be had; a goal is 1,000"),
    "graph: photos a second, 1 CPU core": Figure(
        83, "run: `python benchmarks/sums.py --graph 600`, 30 regions, no keypoints, CPU time"
    ),
    "graph: edges of a photo": Figure(15, "run: docs/graph.md"),
    "graph: entries of a photo's row": Figure(50, "read: docs/graph.md"),
    "HNSW, M = 32: bytes a photo beside the vector": Figure(
        32 * 2 * 4 * 1.1, "computed: 2 M links of 4 bytes, and a tenth for the upper layers"
    ),
    "IVF_SQ8: bytes a dimension": Figure(1, "read: 8 bits a number, milvus.io/docs/ivf-sq8.md"),
    "DISKANN: share of the vectors in memory": Figure(
        0.25, "read: PQCodeBudgetGBRatio and SearchCacheBudgetGBRatio, milvus.io/docs/disk_index.md"
    ),
    "memory of a query node, GB": Figure(64, "assumed"),
    "share of it for vectors": Figure(0.7, "assumed: the rest is growth and the system's"),
}


def value(name: str) -> float:
    return FIGURES[name].value


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e12:,.1f} TB" if n_bytes >= 1e12 else f"{n_bytes / 1e9:,.0f} GB"


def hours(seconds: float) -> str:
    if seconds >= 10 * 365.25 * 86400:
        return f"{seconds / 365.25 / 86400:,.0f} years"
    return f"{seconds / 86400:,.0f} days" if seconds >= 5 * 86400 else f"{seconds / 3600:,.0f} h"


def stored() -> str:
    rows = [
        [name, f"{layout.row_bytes:,}", *(gb(layout.row_bytes * n) for n in PHOTOS.values())]
        for name, layout in SETTINGS.items()
    ]
    return table(["setting", "bytes a photo", *PHOTOS], rows)


def searched(dim: int = 1024) -> str:
    room = value("memory of a query node, GB") * 1e9 * value("share of it for vectors")
    flat = 4 * dim
    kinds = {
        "FLAT": flat,
        "HNSW": flat + value("HNSW, M = 32: bytes a photo beside the vector"),
        "IVF_SQ8": dim * value("IVF_SQ8: bytes a dimension"),
        "DISKANN": flat * value("DISKANN: share of the vectors in memory"),
    }
    rows = [
        [kind, *(f"{gb(each * n)}, {-(-int(each * n) // int(room)):,}" for n in PHOTOS.values())]
        for kind, each in kinds.items()
    ]
    return table([f"index, {dim} dimensions", *(f"{name}: memory, nodes" for name in PHOTOS)], rows)


def encoding() -> str:
    rows = [
        [name, *(hours(n / value(rate)) for n in PHOTOS.values())]
        for name, rate in (
            ("1 CPU core", "photos a second, 1 CPU core"),
            ("1 GPU", "photos a second, 1 GPU"),
        )
    ]
    cores = value("photos a second, 1 CPU core")
    rows.append(
        ["cores for a week", *(f"{n / cores / 604800:,.0f}" for n in PHOTOS.values())],
    )
    return table(["encoding", *PHOTOS], rows)


def graphs() -> str:
    speed = value("graph: photos a second, 1 CPU core")
    edges = value("graph: edges of a photo") * EDGE.itemsize * 4 / 3
    each = edges + 8 * value("graph: entries of a photo's row") + 4 * 64 + 100  # hashes and a name
    rows = [
        ["comparing, 1 core", *(hours(n / speed) for n in PHOTOS.values())],
        [f"stored, {each:,.0f} bytes a photo", *(gb(n * each) for n in PHOTOS.values())],
    ]
    return table(["graph", *PHOTOS], rows)


def built(n: int) -> str:
    """Build the graph of made-up photos on Milvus Lite, and say what it took."""
    rng = np.random.default_rng(0)
    encoder = Encoder(keypoints=0)
    dim, n_classes, n_regions = encoder.dim, encoder.n_classes, encoder.n_regions

    def unit(count: int) -> np.ndarray:
        vectors = rng.standard_normal((count, dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encodings = [
        Encoding(
            descriptor=unit(1)[0],
            class_ids=np.arange(n_classes),
            class_scores=np.ones(n_classes, np.float32),
            class_vectors=unit(n_classes),
            region_boxes=np.tile(np.float32([0, 0, 64, 64]), (n_regions, 1)),
            region_vectors=unit(n_regions),
            uri=f"/made-up/{i}.jpg",
            content=f"{i:064x}",
            width=640,
            height=480,
        )
        for i in range(n)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        InstanceCollection.create(f"{folder}/a.db", "photos", encoder) as photos,
    ):
        photos.upsert(encodings)
        began = time.process_time()
        photos.build_graph(verify=False, progress=False)
        took = time.process_time() - began
    return f"{n} photos, {dim} dimensions, {n_regions} regions: {n / took:.0f} photos a CPU second"


def regions(dim: int = 1024) -> str:
    """A row a region, to be searched itself, in place of photos that are re-ranked."""
    rows = [
        [f"{n} regions a photo, IVF_SQ8", *(gb(n * dim * many) for many in PHOTOS.values())]
        for n in (10, 30)
    ]
    return table(["an index of regions: memory", *PHOTOS], rows)


def figures() -> str:
    rows = [[name, f"{one.value:,g}", one.source] for name, one in FIGURES.items()]
    return table(["figure", "value", "run, read or assumed"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=int, metavar="N", help="build one of N photos, and time it")
    arguments = parser.parse_args()
    if arguments.graph:
        print(built(arguments.graph))
        return
    for part in (figures, stored, searched, encoding, graphs, regions):
        print(f"<!-- {part.__name__} -->\n{part()}\n")


if __name__ == "__main__":
    main()
