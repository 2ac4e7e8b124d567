"""Print how long the graph takes in a search, against the descriptor search on the same rows.

    python benchmarks/graph_speed.py [--rows 100000] [--place FOLDER]

Made-up rows in Milvus Lite: descriptors of the default encoder's size in clusters of 20 photos, and
50 entries a row of the graph, most of them in the cluster. One run, the parts in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from figures import seconds, show

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.index.graph import build_graph
from cwf_milvus.search.graph import GraphExpansion
from cwf_milvus.search.search import search_queries
from cwf_milvus.search.stage import Context, Stage
from cwf_milvus.store.graph import SETTLED, GraphRow, Head

CLUSTER, ENTRIES, AT_ONCE = 20, 50, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N")
    parser.add_argument("--place", type=Path, help="a folder with room for the rows")
    options = parser.parse_args()
    show(graph_speed(options.rows, options.place))


def graph_speed(rows: int = 100_000, place: Path | None = None) -> dict[str, float]:
    """Return milliseconds of the descriptor search and of the stage, and their ratio."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        encoder = Encoder(keypoints=0)
        with InstanceCollection.create(f"{folder}/made-up.db", "made_up", encoder) as photos:
            return measure(photos, fill(photos, rows))


def fill(photos: InstanceCollection, n: int) -> list[Encoding]:
    """Store n photos with a graph; return some of them as queries."""
    rng = np.random.default_rng(0)
    dim, asked = photos.layout.dim, []
    photos.graph.create()
    for start in range(0, n, AT_ONCE):
        centres = rng.standard_normal((AT_ONCE // CLUSTER, dim))
        vectors = np.repeat(centres, CLUSTER, axis=0) + rng.standard_normal((AT_ONCE, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        encodings = [photo(start + i, vector) for i, vector in enumerate(vectors)]
        photos.upsert(encodings)
        asked += encodings[:1]
        photos.graph.write([row(start + i, one, n, rng) for i, one in enumerate(encodings)])
    photos.graph.write_head(Head(10, False, next=n, complete=True, rows=n))
    print(f"the first search, which `graph` makes: {seconds(photos.graph.warm):.1f} s")
    return asked


def photo(number: int, descriptor: np.ndarray) -> Encoding:
    none = np.zeros((0, len(descriptor)), np.float32)
    return Encoding(
        descriptor.astype(np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        none,
        np.zeros((0, 4), np.float32),
        none,
        f"photo-{number:07d}",
        f"{number:064x}",
        640,
        480,
    )


def row(number: int, one: Encoding, n: int, rng: np.random.Generator) -> GraphRow:
    cluster = np.arange(number // CLUSTER * CLUSTER, number // CLUSTER * CLUSTER + CLUSTER)
    reached = np.union1d(cluster, rng.integers(0, n, ENTRIES - CLUSTER))
    amounts = dict(zip(reached.tolist(), (0.3 * rng.random(len(reached))).tolist(), strict=True))
    return GraphRow(one.uri, number, SETTLED, one.content, "", row=amounts | {number: 1.3})


class Timed(Stage):
    """A stage that notes how long it takes."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.seconds = stage, 0.0

    def run(self, queries, answers, context: Context):  # type: ignore[no-untyped-def]
        found = []
        self.seconds = seconds(lambda: found.append(self.stage.run(queries, answers, context)))
        return found[0]


def measure(photos: InstanceCollection, made: list[Encoding]) -> dict[str, float]:
    asked = [Query(replace(one, content=""), one.uri) for one in made[:: max(1, len(made) // 10)]]
    timed = Timed(GraphExpansion())
    searches, stages = [], []
    for query in [asked[0], *asked]:  # the first of them warms up
        descriptor = query.encoding.descriptor[None]
        searches.append(seconds(lambda d=descriptor: photos.search_vectors(d, limit=200)))
        search_queries(photos, [query], limit=20, filter=None, stages=[timed])
        stages.append(timed.seconds)
    search, stage = float(np.median(searches[1:])), float(np.median(stages[1:]))
    again = seconds(lambda: build_graph(photos, verify=False, neighbours=10, progress=False))
    return {
        "descriptor search, ms": 1000 * search,
        "graph, ms": 1000 * stage,
        "graph over descriptor search": stage / search,
        "a build that finds nothing new, s": again,
    }


if __name__ == "__main__":
    main()
