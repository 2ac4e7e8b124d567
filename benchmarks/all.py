"""Every speed benchmark of one version on one machine, by one command.

    python benchmarks/all.py PHOTOS --folder /tmp/bench [--older WORKTREE] [--only startup ...]
    python benchmarks/all.py PHOTOS --folder /tmp/quick --quick

Whole it takes hours and 10 GB; `--quick` runs every one at a size that says whether it runs, in
minutes, and its figures say little. One that fails is named, and the others go on. Prints a table,
writes `FOLDER/benchmarks.json`, and adds the same as a line to `FOLDER/history.jsonl`. `--plot
FILE` draws every ratio of that history over time. No figure passes or fails: those of different
machines do not compare.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from auto_speed import auto_speed
from encoding_speed import encoding_speed
from figures import show
from graph_speed import graph_speed
from indexing_speed import indexing_speed
from made_up_server import why_not
from memory import memory
from older import against_older
from overhead import overhead
from rerank_codes import rerank_codes
from rerank_speed import cam_speed, rerank_speed
from rows import rows_speed
from search_speed import search_speed
from server_index import server_index
from service import service
from startup import indexed, startup

from cwf_milvus.files import write_whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of JPEG files")
    parser.add_argument("--folder", type=Path, required=True, help="where to work and write")
    parser.add_argument("--older", type=Path, help="a worktree of an older commit")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the benchmarks")
    parser.add_argument("--quick", action="store_true", help="every one, small")
    parser.add_argument("--plot", metavar="FILE", help="draw the history")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = benchmarks(options.photos, options.folder, options.older, quick=options.quick)
    if unknown := set(options.only or ()) - runs.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(runs)}")
    found: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for name in options.only or runs:
        try:
            found[name] = runs[name]()
        except Exception as error:  # the others take hours
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            show(found[name], name)
    line = json.dumps({**about(), "quick": options.quick, "found": found, "failed": failed})
    write_whole(options.folder / "benchmarks.json", json.dumps(json.loads(line), indent=2).encode())
    with (options.folder / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(line + "\n")
    if options.plot:
        plot(options.folder / "history.jsonl", options.plot)
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def benchmarks(
    photos: str, folder: Path, older: Path | None, *, quick: bool
) -> dict[str, Callable[[], dict[str, float]]]:
    """Return every benchmark by name, as it is run here.

    Args:
        photos: a folder of JPEG files.
        folder: where rows are kept.
        older: a worktree of an older commit; None to leave that comparison out.
        quick: small.
    """
    few, rounds = (1000, 1) if quick else (10_000, 5)
    lots = 2000 if quick else 100_000
    n = 24 if quick else 96
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "startup": lambda: startup(photos, folder, min(rounds, 3), 48 if quick else 1000),
        "encoding": lambda: encoding_speed(8 if quick else 16, min(rounds, 3)),
        "overhead": lambda: overhead(2, rounds, cases=1 if quick else 3),
        "indexing": lambda: indexing_speed(photos, n, min(rounds, 3)),
        "codes": lambda: rerank_codes(rounds),
        "search": lambda: search_speed(lots, rounds=rounds),
        "rerank": lambda: rerank_speed(folder, few, rounds=rounds),
        "cam": lambda: cam_speed(Path(photos), rounds),
        "auto": lambda: auto_speed(folder, few),
        "graph": lambda: graph_speed(few if quick else lots, folder),
        "rows": lambda: rows_speed(folder, (few, 10_500 if quick else lots), rounds=rounds),
        "memory": lambda: apart(memory, 200 if quick else 20_000),
        "service": lambda: service(
            indexed(photos, folder, 48 if quick else 1000),
            "photos",
            photos,
            n=4 if quick else 32,
            groups=1 if quick else 3,
        ),
    }
    if why_not() is None:
        runs["server"] = lambda: server_index(
            [photos],
            folder,
            lots,
            queries=20 if quick else 100,
            only=("IVF_SQ8",) if quick else (),
            most=120 if quick else None,
        )
    if older is not None:
        runs["older"] = lambda: against_older(photos, older, n // 2, min(rounds, 3))
    return runs


def apart(work: Callable[[int], dict[str, float]], n: int) -> dict[str, float]:
    """Return what a benchmark finds in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
        return one.submit(work, n).result()


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
        if run.get("quick"):
            continue
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
    sys.exit(main())
