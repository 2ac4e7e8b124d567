"""Print what fewer bits a number cost: mAP of late interaction on both sets, and its time.

    python benchmarks/bits.py --data DIR [--cache DIR]
    python benchmarks/bits.py --speed

DIR holds objects_dev and landmarks_dev, whose photos are all scored. The second times a query of 30
vectors against made-up hits: 200 of them in int8, and 1,000 in int4 with its parts. It prints the
best of some rounds, and the ratio, which is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from development_sets import Column, columns, print_table

from cwf_milvus.method.int4 import Int4Vectors, inner_products
from cwf_milvus.method.int8 import Int8Vectors
from cwf_milvus.method.late_interaction import late_interaction
from cwf_milvus.store.packing import fields_needed, pack_vectors, read_vectors

DIM, VECTORS, ROUNDS = 1024, 30, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="the folder with the data sets")
    what.add_argument("--speed", action="store_true")
    parser.add_argument("--cache", default="~/.cache/cwf-milvus", help="features")
    options = parser.parse_args()
    if options.speed:
        speed()
    else:
        quality(columns(options.data, options.cache))


def in_int8(vectors: np.ndarray) -> np.ndarray | Int8Vectors:
    dim = vectors.shape[1]
    return read_vectors(
        pack_vectors(vectors, fields_needed(len(vectors), dim, "int8"), "int8"), dim, "int8"
    )


KINDS: dict[str, Callable[[np.ndarray], np.ndarray | Int8Vectors | Int4Vectors]] = {
    "float32": np.asarray,
    "int8": in_int8,
    "int4": Int4Vectors.of,
}


def quality(found: Sequence[Column]) -> None:
    lines = []
    for what in ("region_vectors", "class_vectors"):
        for kind, stored_as in KINDS.items():
            values = []
            for column in found:
                stored = [stored_as(getattr(one, what)) for one in column.stored]
                scores = [late_interaction(getattr(a, what), stored).scores for a in column.asked]
                values.append(column.mean_ap(np.stack(scores)))
            size = stored[0].nbytes / len(stored[0])
            lines.append((f"{what}, {kind}, {size:,.0f} bytes a vector", values))
    print_table([f"`{column.title}`" for column in found], lines, digits=4)


def speed() -> None:
    rng = np.random.default_rng(0)

    def unit(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    query = unit(VECTORS)
    fewer = [in_int8(unit(VECTORS)) for _ in range(200)]
    more = [Int4Vectors.of(unit(VECTORS)) for _ in range(1000)]
    unpacked = np.concatenate([np.asarray(one) for one in more[:8]])  # in the cache, as in chunks
    runs: dict[str, Callable[[], object]] = {
        "200 hits in int8": lambda: late_interaction(query, fewer),
        "200 hits in int4": lambda: late_interaction(query, more[:200]),
        "1,000 hits in int4": lambda: late_interaction(query, more),
        "of these, inner products": lambda: inner_products(query, more),
        "of these, multiplication alone": lambda: [unpacked @ query.T for _ in range(125)],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    base = np.array(times["200 hits in int8"])
    print("| | best | ratio |\n|---|---|---|")
    for name, taken in times.items():
        ratio = np.median(np.array(taken) / base)
        print(f"| {name} | {1e3 * min(taken):.1f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
