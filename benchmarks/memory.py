"""What indexing many photos holds in memory, and what opening their collection does, on Lite.

    python benchmarks/memory.py [--photos 4000]

Drawn photos of 96 x 96 pixels through a network of 96 channels, in the default layout of rows (32
class vectors, 30 regions, 400 keypoints), so that the rows are few bytes smaller than real ones and
the network's own share is small. Memory is the resident set, in MiB, at each tenth of the run.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder


def resident() -> float:
    """Return this process's resident set in MiB (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def drawn(n: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        out = io.BytesIO()
        PIL.Image.fromarray(coarse).resize((96, 96), PIL.Image.Resampling.NEAREST).save(out, "JPEG")
        yield f"{i:06d}.jpg", out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=4000)
    n = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, data in drawn(n):
            (place / name).write_bytes(data)
        encoder = Encoder(
            "timm:test_resnet", weights="random", whitening=None, image_size=160, batch_size=8
        )
        uri = str(place / "photos.db")
        print(f"before: {resident():.0f} MiB", flush=True)
        with InstanceCollection.create(uri, "photos", encoder) as collection:
            done = threading.Event()

            def watch() -> None:
                step = 0
                while not done.wait(0.2):
                    count = collection.count()
                    if count >= step * n // 10:
                        print(f"{count:6d} photos: {resident():.0f} MiB", flush=True)
                        step = count * 10 // n + 1

            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.perf_counter()
            collection.add(folder, progress=False)
            done.set()
            watcher.join()
            row = collection.layout.row_bytes
        print(f"{n} photos in {time.perf_counter() - start:.0f} s, {row} bytes a row at most")
        before = resident()
        with InstanceCollection.open(uri, "photos", encoder=encoder) as collection:
            print(f"opened: {resident() - before:.0f} MiB more, {collection.count()} photos")


if __name__ == "__main__":
    main()
