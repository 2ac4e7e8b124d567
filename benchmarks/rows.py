"""Searches among 10,000, 100,000 and 1,000,000 rows, over bare pymilvus and the scripts' way.

    python benchmarks/rows.py --folder DIR [--rows 10000 100000] [--queries 1 8 32] [--rounds 5]
    python benchmarks/rows.py --folder DIR --rows 1000000 --server

Made-up rows in Milvus Lite, or on the Milvus server of the tests (`--server`), kept in DIR. Up to
10,000 rows are whole: class and region vectors, 800 keypoints of which none agree, 50 entries of
the graph. Of more rows, those whose descriptors are among the 200 nearest of a query are whole, and
the others have a descriptor (and, on Lite, entries of the graph) alone: a row that is not fetched
costs no time. A server before 2.4 has no graph.

In turns, 20 hits of queries that were encoded before: a bare `MilvusClient` that searches the
descriptors, for the same fields; a search by descriptor alone; `auto` with none of the candidates'
vectors in memory. "scripts" is how the paper's published scripts rank: of each photo the query's
64 classes, of 512 numbers, are whitened and summed in Python; that is measured on 200 photos in
memory and multiplied. "+ network" adds what they re-rank 100 candidates by, a pass of the network
for each: the default network's, 640 x 480, measured and multiplied.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from auto_speed import fill as fill_whole
from auto_speed import photo
from figures import seconds
from graph_speed import fill as fill_descriptors
from made_up_server import fill_server, server
from search_speed import FIELDS

from cwf_milvus.answers.hits import Query
from cwf_milvus.backbones import create_backbone
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.method.whitening import Whitening
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.registry import CANDIDATES
from cwf_milvus.search.search import search_queries

WHOLE = 10_000
LIMIT = 20
_CLASSES, _OF_ALL, _DIM = 64, 1000, 512  # the scripts'
_RERANKED = 100  # the paper's R
Figures = dict[str, float]


def rows_speed(
    folder: Path,
    rows: Sequence[int] = (10_000, 100_000),
    queries: Sequence[int] = (1, 8, 32),
    rounds: int = 5,
    on_server: bool = False,
) -> dict[str, float]:
    """Return milliseconds, and ratios over bare pymilvus, of every number of rows and queries."""
    return {
        f"{n} rows, {count} queries: {what}": value
        for n in rows
        for count, figures in among(folder, n, queries, rounds, on_server).items()
        for what, value in figures.items()
    }


def among(
    folder: Path, rows: int, queries: Sequence[int], rounds: int, on_server: bool
) -> dict[int, Figures]:
    """Return the figures of each number of queries among so many rows."""
    apart = scripts_seconds()
    again = network_seconds()
    found = {}
    with collection_of(folder, rows, on_server) as photos:
        asked = queries_of(photos, rows, max(queries))
        complete(photos, asked)
        for count in queries:
            figures = measured(photos, asked[:count], rounds)
            bare = figures["bare pymilvus, ms"] / 1000
            figures["scripts over bare pymilvus"] = count * rows * apart / bare
            with_network = count * (rows * apart + _RERANKED * again)
            figures["scripts + network over bare pymilvus"] = with_network / bare
            figures["scripts over descriptor only"] = (
                count * rows * apart * 1000 / figures["descriptor only, ms"]
            )
            figures["scripts + network over auto"] = with_network * 1000 / figures["auto, ms"]
            found[count] = figures
    found[queries[0]]["scripts, ms a photo and query"] = 1000 * apart
    found[queries[0]]["network, ms a pass"] = 1000 * again
    return found


@contextmanager
def collection_of(folder: Path, rows: int, on_server: bool) -> Iterator[InstanceCollection]:
    """Open a collection of so many made-up rows, which is filled once."""
    name = f"rows_{rows}"
    if on_server:
        with server(folder / "server") as uri, fill_server(uri, name, rows) as photos:
            yield photos
        return
    place = folder / f"{name}.db"
    if not InstanceCollection.exists(place, name):
        with InstanceCollection.create(place, name, Encoder()) as photos:
            (fill_whole if rows <= WHOLE else fill_descriptors)(photos, rows)
    with InstanceCollection.open(place, name) as photos:
        yield photos


def queries_of(photos: InstanceCollection, rows: int, n: int) -> list[Query]:
    """Return queries whose descriptors are those of stored photos, all else of their own."""
    uris = [f"photo-{i:07d}" for i in range(0, rows, rows // n)][:n]
    stored = photos.get(uris, vectors=True)
    return [
        Query(replace(photo(-1 - i + 2**32), descriptor=row.unpack().descriptor), "query")
        for i, row in enumerate(stored)
        if row is not None
    ]


def complete(photos: InstanceCollection, asked: Sequence[Query]) -> None:
    """Give the rows that a query's first search finds all that a row has."""
    descriptors = np.stack([query.encoding.descriptor for query in asked])
    answers = photos.search_vectors(descriptors, limit=CANDIDATES)
    uris = sorted({row.uri for answer in answers for row in answer if not len(row.class_ids)})
    for start in range(0, len(uris), 100):
        stored = photos.get(uris[start : start + 100], vectors=True)
        photos.upsert([whole(row.unpack()) for row in stored if row is not None])
    if uris:
        photos.store.call("flush", photos.name)
        photos.store.load(photos.name)


def whole(one: Encoding) -> Encoding:
    """Return a photo with local vectors beside its descriptor."""
    return replace(photo(int(one.uri.partition("-")[2])), descriptor=one.descriptor)


def measured(photos: InstanceCollection, asked: Sequence[Query], rounds: int) -> Figures:
    """Return the medians of the milliseconds, and of the ratios of neighbours."""
    stages = chosen_stages(gallery=photos)
    client = photos.store._client
    assert client is not None
    data = [query.encoding.descriptor for query in asked]

    def bare() -> None:
        client.search(
            photos.name,
            data=data,
            anns_field="descriptor",
            limit=LIMIT,
            output_fields=FIELDS,
            search_params={"metric_type": "IP"},
        )

    def descriptor_only() -> None:
        search_queries(photos, asked, limit=LIMIT, filter=None)

    def auto() -> None:
        photos.vector_cache.clear()
        search_queries(photos, asked, limit=LIMIT, filter=None, stages=stages)

    runs = {"bare pymilvus": bare, "descriptor only": descriptor_only, "auto": auto}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        names = list(runs)
        for name in names[turn % 3 :] + names[: turn % 3]:  # none always comes after `auto`
            spent = seconds(runs[name])
            if turn:  # the first warms up
                times[name].append(spent)
    figures = {f"{name}, ms": 1000 * statistics.median(spent) for name, spent in times.items()}
    base = times.pop("bare pymilvus")
    for name, spent in times.items():
        ratios = [one / other for one, other in zip(spent, base, strict=True)]
        figures[f"{name} over bare pymilvus"] = statistics.median(ratios)
    return figures


def scripts_seconds(photos: int = 200, rounds: int = 3) -> float:
    """Return the seconds of a photo and a query, the scripts' way, with all vectors in memory."""
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((photos, _OF_ALL, _DIM), dtype=np.float32)
    query = rng.standard_normal(_DIM).astype(np.float32)
    ids = rng.permutation(_OF_ALL)[:_CLASSES]
    whitening = Whitening(_DIM).fit(stored[:4].reshape(-1, _DIM))

    def rank() -> None:
        scores = []
        for vectors in stored:
            summed = whitening.transform(vectors[ids]).sum(axis=0)
            scores.append(float(summed / np.linalg.norm(summed) @ query))
        np.argsort(scores)

    return statistics.median(seconds(rank) for _ in range(rounds + 1)) / photos


def network_seconds(passes: int = 11) -> float:
    """Return the seconds of a pass of the default network over a view of 640 x 480."""
    network = create_backbone(device="cpu")
    view = torch.randint(0, 256, (1, 3, 480, 640), dtype=torch.uint8)
    with torch.no_grad():
        network(view)
        return statistics.median(seconds(lambda: network(view)) for _ in range(passes))


def table(rows: int, of_rows: dict[int, Figures]) -> None:
    """Print the lines of so many rows."""
    for count, figures in of_rows.items():
        print(
            f"| {rows:,} | {count} | {figures['bare pymilvus, ms']:,.0f} | "
            f"{figures['descriptor only over bare pymilvus']:.2f} | "
            f"{figures['auto over bare pymilvus']:.1f} ({figures['auto, ms']:,.0f} ms) | "
            f"{figures['scripts over descriptor only']:,.0f} | "
            f"{figures['scripts + network over auto']:,.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with room for the rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", action="store_true", help="on the tests' Milvus server")
    options = parser.parse_args()
    print(
        "| rows | queries | bare pymilvus, ms | descriptor only | auto | scripts over descriptor "
    )
    print("| scripts + network over auto |\n|---|---|---|---|---|---|---|")
    for rows in options.rows:
        of_rows = among(
            options.folder, rows, options.queries, options.rounds, on_server=options.server
        )
        table(rows, of_rows)
        first = of_rows[options.queries[0]]
        for what in ("scripts, ms a photo and query", "network, ms a pass"):
            print(f"{what}: {first[what]:.2f}")


if __name__ == "__main__":
    main()
