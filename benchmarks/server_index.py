"""Indexes of the descriptors on a Milvus server: recall over FLAT, and time.

    python benchmarks/server_index.py PHOTOS [PHOTOS ...] --folder DIR [--rows 100000]

Made-up descriptors that are as near to each other as those of PHOTOS (`like_real.py`), on the
Milvus server of the tests, kept in DIR. Recall is the share of FLAT's first 10, and first 100, that
an index finds too, over queries that are further photos of stored things. Milliseconds are those of
queries asked one at a time for 100 hits, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from like_real import LikeReal, neighbours, real_descriptors
from made_up_server import fill_server, server

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import StoreError

LIMIT = 100
_PATIENCE = (3600.0, 120.0)  # seconds; with DISKANN, which this server begins and never ends
Params = dict[str, int]
# An index, and what it is searched with.
INDEXES: tuple[tuple[str, Params, str, Sequence[int]], ...] = (
    ("HNSW", {"M": 16, "efConstruction": 200}, "ef", (100, 200, 400, 800)),
    ("HNSW", {"M": 32, "efConstruction": 400}, "ef", (100, 200, 400, 800)),
    ("IVF_SQ8", {"nlist": 1024}, "nprobe", (16, 64, 128, 256)),
    ("DISKANN", {}, "search_list", (100, 200, 400)),
)


def server_index(
    photos: Sequence[str],
    folder: Path,
    rows: int = 100_000,
    queries: int = 100,
    only: Sequence[str] = (),
    most: int | None = None,
) -> dict[str, float]:
    """Return recall, milliseconds a query and their share of FLAT's, and seconds of building.

    Args:
        photos: folders of real photos.
        folder: where all is kept.
        rows: how many.
        queries: how many.
        only: types of `INDEXES`; empty for all.
        most: photos that are encoded; None for all.
    """
    real = real_descriptors(photos, folder / "descriptors.npy", most)
    made = LikeReal(real, rows)
    show("real", real)
    show("made up", next(iter(LikeReal(real, len(real)))))
    asked = made.queries(queries)
    found: dict[str, float] = {}
    name = f"rows_{rows}"
    with server(folder / "server") as uri, fill_server(uri, name, rows, real) as collection:
        remake(collection, "FLAT", {})
        truth, base = answers(collection, asked, {})
        note(found, "FLAT, ms", 1000 * base)
        for kind, params, knob, values in INDEXES:
            if only and kind not in only:
                continue
            title = ", ".join([kind, *(f"{k}={v}" for k, v in params.items())])
            try:
                note(found, f"{title}, seconds to build", remake(collection, kind, params))
                for value in values:
                    got, spent = answers(collection, asked, {knob: value})
                    what = f"{title}, {knob}={value}"
                    note(found, f"{what}, recall@10", recall(truth, got, 10))
                    note(found, f"{what}, recall@100", recall(truth, got, 100))
                    note(found, f"{what}, ms", 1000 * spent)
                    note(found, f"{what}, ms over FLAT", spent / base)
            except StoreError as error:
                print(f"{title}: {error}")
        remake(collection, "FLAT", {})
    return found


def show(what: str, vectors: np.ndarray) -> None:
    """Print how near neighbours are."""
    lines = [
        f"{rank}: {', '.join(f'{q:.2f}' for q in quarters)}"
        for rank, quarters in neighbours(vectors).items()
    ]
    print(f"{what}: cosine to the n-th neighbour, quartiles: {'; '.join(lines)}", flush=True)


def note(found: dict[str, float], what: str, value: float) -> None:
    found[what] = value
    print(f"{what:56s} {value:10.3f}", flush=True)


def remake(collection: InstanceCollection, kind: str, params: Params) -> float:
    """Index the descriptors anew and load them; return the seconds until it could be searched."""
    store, name = collection.store, collection.name
    store.call("release_collection", name)
    for index in store.call("list_indexes", name):
        store.call("drop_index", name, index)
    started = time.perf_counter()
    store.ensure_index(name, "descriptor", {"index_type": kind, "params": params})
    state: dict[str, Any] = {"state": "never asked for"}
    while state.get("state") not in (None, "Finished") or state.get("pending_index_rows"):
        spent = time.perf_counter() - started
        if state.get("state") == "Failed" or spent > _PATIENCE[kind == "DISKANN"]:
            raise StoreError(f"after {spent:.0f} s the index is {state}")
        time.sleep(0.5)
        state = store.index(name, "descriptor")
    store.load(name)
    return time.perf_counter() - started


def answers(
    collection: InstanceCollection, asked: np.ndarray, params: Params
) -> tuple[list[list[str]], float]:
    """Return the uris that each query finds, and the median of the seconds."""
    found, spent = [], []
    for query in [*asked[:3], *asked]:  # the first warm up
        started = time.perf_counter()
        rows = collection.search_vectors(query[None], limit=LIMIT, params=params)[0]
        spent.append(time.perf_counter() - started)
        found.append([row.uri for row in rows])
    return found[3:], statistics.median(spent[3:])


def recall(truth: Sequence[list[str]], got: Sequence[list[str]], n: int) -> float:
    """Return the share of the first n that were found."""

    def shares() -> Iterator[float]:
        for right, found in zip(truth, got, strict=True):
            yield len(set(right[:n]) & set(found[:n])) / n

    return statistics.mean(shares())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help="folders of real photos")
    parser.add_argument("--folder", type=Path, required=True, help="with room for the rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=(), metavar="TYPE")
    options = parser.parse_args()
    server_index(options.photos, options.folder, options.rows, options.queries, options.only)


if __name__ == "__main__":
    main()
