"""What a command costs before and after its work, over `python -c "import torch"`.

    python benchmarks/startup.py PHOTOS --folder /tmp/startup [--rounds 3]

Indexes, once, up to 1,000 photos of a folder, then runs each command in a process of its own, in
turn. Processor seconds, which other work on the machine disturbs least; medians of the rounds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path

from figures import show

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.photos.listing import list_photos


def indexed(photos: str, folder: Path, n: int = 1000) -> str:
    """Return where up to n of the photos are, in the collection `photos`: indexed once."""
    place = str(folder / "startup.db")
    if not InstanceCollection.exists(place, "photos"):
        with InstanceCollection.create(place, "photos", Encoder()) as collection:
            collection.add(list(islice(list_photos(photos), n)), progress=False)
    return place


def startup(photos: str, folder: Path, rounds: int = 3, n: int = 1000) -> dict[str, float]:
    """Return each command's ratio to the import, and the import's seconds."""
    place = indexed(photos, folder, n)
    query = next(iter(list_photos(photos)))
    cli = ["-m", "cwf_milvus.cli"]
    commands = {
        "import torch": ["-c", "import torch"],
        "info": [*cli, "info", "--uri", place],
        "search --like": [*cli, "search", "--uri", place, "--like", query],
        "search": [*cli, "search", "--uri", place, query],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            spent = _processor_seconds(command)
            if turn:  # the first reads files that are in no cache yet
                seconds[name].append(spent)
    found = {name: statistics.median(spent) for name, spent in seconds.items()}
    base = found.pop("import torch")
    ratios = {f"{name} over import torch": spent / base for name, spent in found.items()}
    return {**ratios, "import torch, processor seconds": base}


def _processor_seconds(command: list[str]) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return spent() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    show(startup(options.photos, options.folder, options.rounds))


if __name__ == "__main__":
    main()
