"""What the benchmarks share: taking a time, and showing what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes by the clock."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(found: Mapping[str, float], title: str = "") -> None:
    """Print figures, a line each."""
    for what, value in found.items():
        print(f"{title:10s} {what:60s} {value:11.3f}".strip(), flush=True)
