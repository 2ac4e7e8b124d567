"""Searches of descriptors on a Milvus server, over those of a bare client.

    python benchmarks/server_rows.py --folder DIR [--rows 1000000]

Random descriptors on the Milvus server of the tests, kept in DIR and filled once, FLAT: 20 hits of
1, 8 and 32 queries in one call. Milliseconds are medians of five; the two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from figures import show
from made_up_server import fill_server, server
from pymilvus import MilvusClient
from server_index import remake

LIMIT = 20


def server_rows(folder: Path, rows: int = 1_000_000, rounds: int = 5) -> dict[str, float]:
    """Return milliseconds and ratios, and the seconds until the rows could be searched.

    Args:
        folder: where the server keeps its rows: 8 GB for a million.
        rows: how many.
        rounds: of each number of queries, after one that warms up.
    """
    found: dict[str, float] = {}
    name = f"rows_{rows}"
    with server(folder / "server") as uri, fill_server(uri, name, rows) as collection:
        found["seconds until loaded"] = remake(collection, "FLAT", {})
        bare = MilvusClient(uri)
        rng = np.random.default_rng(5)
        for n in (1, 8, 32):
            times: list[tuple[float, float]] = []
            for _ in range(rounds + 1):
                asked = rng.standard_normal((n, collection.layout.dim), dtype=np.float32)
                asked /= np.linalg.norm(asked, axis=1, keepdims=True)
                start = time.perf_counter()
                bare.search(
                    name, list(asked), limit=LIMIT, anns_field="descriptor", output_fields=["uri"]
                )
                middle = time.perf_counter()
                collection.search_vectors(asked, limit=LIMIT)
                times.append((middle - start, time.perf_counter() - middle))
            firsts, ours = zip(*times[1:], strict=True)
            found[f"{n} queries: bare, ms"] = 1000 * statistics.median(firsts)
            found[f"{n} queries: ours, ms"] = 1000 * statistics.median(ours)
            found[f"{n} queries: ours over bare"] = statistics.median(
                one / first for first, one in times[1:]
            )
        bare.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with room for the rows")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    show(server_rows(options.folder, options.rows))


if __name__ == "__main__":
    main()
