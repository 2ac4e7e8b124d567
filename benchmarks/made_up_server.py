"""Made-up descriptors, as near to each other as real ones, on the Milvus server of the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from graph_speed import photo
from like_real import LikeReal

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from milvus_server import MilvusServer, why_not

AT_ONCE = 2_000


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run the server, with its data kept under `folder`, and yield its address.

    Raises:
        RuntimeError: it cannot run here; says why.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    running = MilvusServer(folder)
    try:
        running.start()
        yield running.uri
    finally:
        running.close()


@contextmanager
def fill_server(
    uri: str, name: str, rows: int, real: np.ndarray | None = None
) -> Iterator[InstanceCollection]:
    """Open a collection of so many descriptors, filled once and without receipts.

    Args:
        uri: the server's.
        name: the collection's.
        rows: how many.
        real: descriptors for `LikeReal`; None for random ones in their place, which take FLAT the
            same time.
    """
    encoder = Encoder()
    with InstanceCollection.create(uri, name, encoder, exist_ok=True) as photos:
        there = photos.count()
        if there < rows:
            start = 0
            for vectors in descriptors(real, encoder.dim, rows):
                for first in range(0, len(vectors), AT_ONCE):
                    part = vectors[first : first + AT_ONCE]
                    if start >= there:  # begun earlier
                        made = [photo(start + i, vector) for i, vector in enumerate(part)]
                        photos.store.write(name, [photos.layout.pack(one, None) for one in made])
                    start += len(part)
                    print(f"\r{start} rows", end="", flush=True)
            print()
            photos.store.call("flush", name)
            photos.store.load(name)
        yield photos


def descriptors(real: np.ndarray | None, dim: int, rows: int) -> Iterator[np.ndarray]:
    """Yield made-up descriptors, some thousands at once."""
    if real is None:
        real = np.random.default_rng(1).standard_normal((1000, dim), dtype=np.float32)
    yield from LikeReal(real, rows)
