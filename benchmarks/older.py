"""Indexing by this version and by an older one, in turn, on the same photos.

    git worktree add /tmp/older OLDER_COMMIT
    python benchmarks/older.py PHOTOS --older /tmp/older [--n 48] [--rounds 3]

Each run is a process of its own, from JPEG files to rows in Milvus Lite; building the encoder is
not timed. The older version keeps no keypoints, so this one runs with them and without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from figures import show

_RUN = """
import json, sys, tempfile, time
from cwf_milvus import Encoder, InstanceCollection
folder, n, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
from pathlib import Path
photos = sorted(map(str, Path(folder).rglob("*.jpg")))[:n]
assert photos, f"{folder}: no *.jpg there"
encoder = Encoder(**settings)
with tempfile.TemporaryDirectory() as place:
    with InstanceCollection.create(place + "/photos.db", "photos", encoder) as collection:
        wall, spent = time.perf_counter(), time.process_time()
        assert collection.add(photos, progress=False).added == len(photos)
        print(time.perf_counter() - wall, time.process_time() - spent)
"""


def against_older(photos: str, older: Path, n: int = 48, rounds: int = 3) -> dict[str, float]:
    """Return photos a second over the older version's, by processor seconds and by the clock."""
    here = Path(__file__).parents[1]
    half: dict[str, object] = {"network_dtype": "bfloat16"}
    folder = str(Path(photos).resolve())  # each runs in its own tree
    runs: dict[str, tuple[Path, dict[str, object]]] = {
        "older": (older, {}),
        "without keypoints": (here, {"keypoints": 0}),
        "with keypoints": (here, {}),
        "bfloat16, without keypoints": (here, {"keypoints": 0, **half}),
        "bfloat16, with keypoints": (here, half),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (tree, settings) in runs.items():
            done = subprocess.run(
                [sys.executable, "-c", _RUN, folder, str(n), json.dumps(settings)],
                env={**os.environ, "PYTHONPATH": str(tree)},
                check=True,
                capture_output=True,
                text=True,
                cwd=tree,
            )
            wall, spent = map(float, done.stdout.split()[-2:])
            found[name].append((wall, spent))
    ratios = {}
    for name in list(runs)[1:]:
        for unit, place in (("clock", 0), ("processor", 1)):
            pairs = zip(found["older"], found[name], strict=True)
            ratio = statistics.median(old[place] / new[place] for old, new in pairs)
            ratios[f"{name}, {unit}"] = ratio
    spent = statistics.median(spent for _, spent in found["without keypoints"])
    return {**ratios, "without keypoints, processor ms a photo": 1e3 * spent / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS")
    parser.add_argument("--older", type=Path, required=True)
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    show(against_older(**vars(options)))


if __name__ == "__main__":
    main()
