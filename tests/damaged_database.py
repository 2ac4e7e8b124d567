"""A small Milvus Lite database with all kinds of files, and every damage that a file may have.

Run as a program, this file makes the database: `python damaged_database.py FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
REMOVED = ("2.png", "5.png", "9.png")
N = 14

TARGETS = {
    "write-ahead log": "photos/wal/wal_data_*.arrow",
    "deletions in the write-ahead log": "photos/wal/wal_delta_*.arrow",
    "deletions": "photos/partitions/*/delta/*.parquet",
    "first segment": "photos/partitions/*/data/data_000001_*.parquet",
    "manifest": "photos/manifest.json",
    "manifest before": "photos/manifest.json.prev",
    "schema": "photos/schema.json",
    "vector index": "photos/partitions/*/indexes/data_000001_*.idx",
    "encoder": "photos_encoder/partitions/*/data/*.parquet",
    "receipts": "photos_ledger/partitions/*/data/data_000001_*.parquet",
}


def _flipped(data: bytes) -> bytes:
    """Flip a bit of every 97th byte of the middle half."""
    changed = bytearray(data)
    for at in range(len(data) // 4, 3 * len(data) // 4, 97):
        changed[at] ^= 4
    return bytes(changed)


def _zeroed(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "truncated": lambda data: data[: 2 * len(data) // 3],
    "flipped": _flipped,
    "zeroed": _zeroed,
    "deleted": None,
}


def damage(database: Path, target: str, kind: str) -> None:
    """Damage the files of a target."""
    found = sorted(database.glob(f"collections/{TARGETS[target]}"))
    assert found, f"there is no {target}"
    change = DAMAGES[kind]
    for file in found:
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(file.read_bytes()))


def make(folder: Path) -> Path:
    """Make the database and its photos in a process that is killed, so that it has a log."""
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()
    return folder / "photos.db"


def _make(folder: Path) -> None:
    import PIL.Image
    from small_encoders import crops, tiny

    from cwf_milvus.collection import InstanceCollection

    paths = [str(folder / f"{i}.png") for i in range(N)]
    for path, pixels in zip(paths, crops(N), strict=True):
        PIL.Image.fromarray(pixels).save(path)
    told = {path: {"place": f"shelf {i}"} for i, path in enumerate(paths)}
    uri = folder / "photos.db"
    encoder = tiny(whitening=None)
    with InstanceCollection.create(uri, "photos", encoder) as photos:
        photos.add(paths[:8], metadata=told, progress=False)
    with InstanceCollection.open(uri, "photos", encoder=encoder) as photos:
        photos.add(paths[8:12], metadata=told, progress=False)
        photos.remove(str(folder / REMOVED[0]))
    photos = InstanceCollection.open(uri, "photos", encoder=encoder)
    assert photos.verify().ok
    photos.add(paths[12:], metadata=told, progress=False)
    photos.set_metadata({paths[1]: {"place": "desk"}})
    photos.remove([str(folder / name) for name in REMOVED[1:]])
    os.kill(os.getpid(), 9)


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
