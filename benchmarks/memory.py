"""What indexing many photos holds in memory, and what opening their collection does, on Lite.

    python benchmarks/memory.py [--photos 20000]

Drawn photos of 96 x 96 pixels through a network of 96 channels, so that the network's own share is
small. Rows have the default number of vectors (32 classes, 30 regions), but vectors of 96 numbers,
and at most 400 keypoints: how large a row is at most is said, and what grows is Milvus Lite's copy
of the rows. Memory is the resident set, in MiB, at each tenth of the run.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from figures import seconds, show

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder

MIB = 2**20


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


def memory(photos: int = 20_000) -> dict[str, float]:
    """Return the MiB before, at tenths of indexing, and more after opening; and a photo's share."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, data in drawn(photos):
            (place / name).write_bytes(data)
        encoder = Encoder(
            "timm:test_resnet", weights="random", whitening=None, image_size=160, batch_size=8
        )
        uri = str(place / "photos.db")
        found["before, MiB"] = resident()
        with InstanceCollection.create(uri, "photos", encoder) as collection:
            done = threading.Event()

            def watch() -> None:
                step = 0
                while not done.wait(0.2):
                    count = collection.count()
                    if count >= step * photos // 10:
                        found[f"{count} photos, MiB"] = resident()
                        print(f"{count:6d} photos: {resident():.0f} MiB", flush=True)
                        step = count * 10 // photos + 1

            watcher = threading.Thread(target=watch)
            watcher.start()
            found["seconds"] = seconds(lambda: collection.add(folder, progress=False))
            done.set()
            watcher.join()
            found["a row at most, bytes"] = collection.layout.row_bytes
            found[f"{photos} photos, MiB"] = resident()
            grown = (resident() - found["before, MiB"]) * MIB / photos
            found["grown, bytes a photo"] = grown
            found["grown over a row at most"] = grown / collection.layout.row_bytes
        before = resident()
        with InstanceCollection.open(uri, "photos", encoder=encoder):
            found["opened, MiB more"] = resident() - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=20_000)
    show(memory(parser.parse_args().photos))


if __name__ == "__main__":
    main()
