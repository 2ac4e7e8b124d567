"""Every speed benchmark of one version on one machine, by one command.

    python benchmarks/all.py PHOTOS --folder /tmp/bench [--older WORKTREE] [--only startup ...]

Prints a table, writes `FOLDER/benchmarks.json`, and adds the same as a line to
`FOLDER/history.jsonl`. `--plot FILE` draws every ratio of that history over time. Nothing here
passes or fails: figures of different machines do not compare.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from encoding_speed import encoding_speed
from older import against_older
from rerank_codes import rerank_codes
from startup import startup

from cwf_milvus.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of JPEG files")
    parser.add_argument("--folder", type=Path, required=True, help="where to work and write")
    parser.add_argument("--older", type=Path, help="a worktree of an older commit")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the benchmarks")
    parser.add_argument("--plot", metavar="FILE", help="draw the history")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "startup": lambda: startup(options.photos, options.folder),
        "encoding": encoding_speed,
        "codes": rerank_codes,
    }
    if options.older:
        runs["older"] = lambda: against_older(options.photos, options.older)
    found: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        if not options.only or name in options.only:
            found[name] = run()
            for what, value in found[name].items():
                print(f"{name:10s} {what:48s} {value:9.2f}", flush=True)
    line = json.dumps({**about(), "found": found})
    write_whole(options.folder / "benchmarks.json", json.dumps(json.loads(line), indent=2).encode())
    with (options.folder / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(line + "\n")
    if options.plot:
        plot(options.folder / "history.jsonl", options.plot)


def about() -> dict[str, object]:
    """Return when, of which commit and on what the figures are."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def plot(history: Path, file: str) -> None:
    """Draw each figure of a history over its runs."""
    from matplotlib import pyplot  # an optional dependency

    lines: dict[str, list[tuple[str, float]]] = {}
    for text in history.read_text(encoding="utf-8").splitlines():
        run = json.loads(text)
        for name, figures in run["found"].items():
            for what, value in figures.items():
                if " over " in what or "keypoints, " in what:
                    lines.setdefault(f"{name}: {what}", []).append((run["time"], value))
    figure, axes = pyplot.subplots(figsize=(10, 6))
    for name, points in lines.items():
        times, values = zip(*points, strict=True)
        axes.plot(times, values, marker="o", label=name)
    axes.set_yscale("log")
    axes.legend(fontsize="small")
    figure.autofmt_xdate()
    figure.savefig(file)


if __name__ == "__main__":
    main()
