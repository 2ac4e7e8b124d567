"""What the service takes from a photo sent to framed hits, and sixteen searches at once.

cwf-milvus index photos/ --uri photos.db
python benchmarks/service.py photos.db photos photos/
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from figures import show

from cwf_milvus.photos.listing import list_photos

_EVENTS = {"Accept": "text/event-stream"}


def searched(client: httpx.Client, photo: Path, share: float) -> tuple[float, float, int]:
    """Send a photo and search with a box in its middle: seconds to first and last hits."""
    started = time.perf_counter()
    sent = client.post(
        "/api/queries", content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}
    ).json()
    width, height = sent["width"], sent["height"]
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    box = [left, top, width - left, height - top] if share < 1 else None
    first, last, framed = 0.0, 0.0, 0
    asked = {"query": sent["query"], "box": box}
    with client.stream("POST", "/api/search", json=asked, headers=_EVENTS) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last = time.perf_counter() - started
                first = first or last
                hits = json.loads(line[len("data: ") :])["hits"]
                framed = sum(hit["framed_by"] is not None for hit in hits)
    return first, last, framed


def at_once(client: httpx.Client, photos: Sequence[Path], share: float, threads: int) -> float:
    """Return the seconds that searches with these photos take, so many at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda photo: searched(client, photo, share), photos))
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("collection")
    parser.add_argument("photos", nargs="+", help="query photos, files or folders")
    parser.add_argument("--share", type=float, default=0.6, help="of both sides, of the box")
    show(service(**vars(parser.parse_args())))


def service(
    uri: str,
    collection: str,
    photos: str | Sequence[str],
    share: float = 0.6,
    n: int = 32,
    groups: int = 3,
) -> dict[str, float]:
    """Return seconds to first and final hits of n searches; then groups of 16 at once."""
    queries = [Path(one) for one in list_photos(photos)]
    random.Random(1).shuffle(queries)
    found: dict[str, float] = {}
    with served(uri, collection) as client:
        at_once(client, queries[:4], share, 1)  # the first ones warm everything up
        alone = [searched(client, photo, share) for photo in queries[4 : 4 + n]]
        found["photos"] = client.get("/api/collections").json()[0]["photos"]
        for name, part in (("first hits", 0), ("final hits", 1)):
            seconds = sorted(one[part] for one in alone)
            found[f"{name}, median s"] = statistics.median(seconds)
            found[f"{name}, slowest s"] = seconds[-1]
        ratios = []
        for start in range(4 + n, 4 + n + 16 * groups, 16):
            some = queries[start : start + 16]
            one_by_one = at_once(client, some, share, 1)
            ratios.append(at_once(client, some, share, 16) / one_by_one)
        found["16 searches at once over one by one"] = statistics.median(ratios)
    return found


@contextmanager
def served(uri: str, collection: str) -> Iterator[httpx.Client]:
    """Run the service as a process of its own, and yield a client of it."""
    command = ["serve", "--uri", uri, "--collection", collection, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cwf_milvus.cli", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=address, timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
