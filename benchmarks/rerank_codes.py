"""Re-ranking 1,000 candidates from 4-bit codes over 200 from int8: where the time goes.

    python benchmarks/rerank_codes.py [--rounds 5]

Rows of random unit vectors, 30 regions of 1,024 numbers, as text as Milvus keeps them: decoding and
scoring, without Milvus. Processor seconds; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from figures import show

from cwf_milvus.method.late_interaction import late_interaction
from cwf_milvus.store.packing import (
    Precision,
    fields_needed,
    pack_vectors,
    read_vectors,
)

_REGIONS, _DIM = 30, 1024


def rerank_codes(rounds: int = 5) -> dict[str, float]:
    """Return milliseconds of decoding and scoring, and the ratio of both together."""
    rng = np.random.default_rng(0)

    def unit(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, _DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    query = unit(_REGIONS)
    found: dict[str, float] = {}
    cases: tuple[tuple[int, Precision], ...] = ((200, "int8"), (200, "int4"), (1000, "int4"))
    for n, precision in cases:
        n_fields = fields_needed(_REGIONS, _DIM, precision)
        few = [pack_vectors(unit(_REGIONS), n_fields, precision) for _ in range(50)]
        rows = [few[i % 50] for i in range(n)]
        decoding, scoring = [], []
        for _ in range(rounds):
            start = time.process_time()
            stored = [read_vectors(row, _DIM, precision) for row in rows]
            middle = time.process_time()
            late_interaction(query, stored)
            scoring.append(time.process_time() - middle)
            decoding.append(middle - start)
        found[f"{n} {precision}, decoding ms"] = 1e3 * statistics.median(decoding)
        found[f"{n} {precision}, scoring ms"] = 1e3 * statistics.median(scoring)

    def both(case: str) -> float:
        return found[f"{case}, decoding ms"] + found[f"{case}, scoring ms"]

    found["1,000 int4 over 200 int8"] = both("1000 int4") / both("200 int8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    show(rerank_codes(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
