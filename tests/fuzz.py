"""Coverage-guided fuzzing of every reader of bytes or text from outside, with Atheris.

`python tests/fuzz.py SECONDS [TARGET ...] [--corpus DIR]` gives each target its part of SECONDS,
one process at a time, and prints a table. Inputs that reach new code are kept in DIR/TARGET, so
that the next run goes on from there, and findings in DIR/findings/TARGET: an error that the reader
does not document, a crash, more than 5 seconds of processor time, or more than 1 GiB of memory.
`python tests/fuzz.py --again FILE TARGET` gives a target one input, and shows what comes of it.

Atheris is no dependency of ours: `pip install atheris`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INSTRUMENTED = ["cwf_milvus", "PIL", "starlette", "python_multipart"]
SECONDS, MEBIBYTES = 5.0, 1024  # that one input may take
_HUNG, _MOST_MEMORY = 60, 6144  # seconds, MiB: libFuzzer ends the process there
_START = 3  # seconds: less are not worth a process
_STARTS = 40  # of a process, for one target
_SAME = 3  # inputs that are kept of findings that look alike
_ENDED = re.compile(r"SUMMARY: (.*)")
_STATUS = re.compile(r"^#\d+\s+\w+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)


def main() -> int:
    """Read the command line; returns 1 where something was found."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("seconds", type=float, nargs="?", default=60.0, help="in all")
    options.add_argument("targets", nargs="*", metavar="TARGET", help="all, where none is named")
    options.add_argument("--corpus", type=Path, help="a folder; else a new one, which is named")
    options.add_argument("--again", nargs=2, metavar=("FILE", "TARGET"), help="one input alone")
    options.add_argument("--child", type=float, help=argparse.SUPPRESS)
    given = options.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    if given.again is not None:
        return _once(atheris, given.again[1], Path(given.again[0]))
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix="cwf-milvus-fuzz-"))
    if given.child is not None:
        _fuzz(atheris, given.targets[0], given.child, corpus)
    return _all(given.seconds, given.targets, corpus.absolute())


@dataclass
class Outcome:
    """What came of a target."""

    inputs: int = 0
    seconds: float = 0.0
    covered: int = 0
    features: int = 0
    slowest: float = 0.0
    grew: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def _all(seconds: float, names: list[str], corpus: Path) -> int:
    """Fuzz targets in turns, and print what came of them."""
    from fuzz_targets import WEIGHTS

    unknown = [name for name in names if name not in WEIGHTS]
    if unknown:
        print(f"no target {unknown[0]!r}; there are: {', '.join(WEIGHTS)}", file=sys.stderr)
        return 2
    chosen = names or list(WEIGHTS)
    total = sum(WEIGHTS[name] for name in chosen)
    print(f"inputs and findings: {corpus}", flush=True)
    outcomes = {}
    for name in chosen:
        outcomes[name] = _target(name, seconds * WEIGHTS[name] / total, corpus)
        print(_line(name, outcomes[name]), flush=True)
    print("\n| target | seconds | inputs | cov | ft | findings | slowest, s | grew, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, one in outcomes.items():
        print(_line(name, one))
    sums = sum(one.seconds for one in outcomes.values()), sum(o.inputs for o in outcomes.values())
    print(f"{sums[0]:,.0f} seconds, {sums[1]:,} inputs")
    found = [(name, words) for name, one in outcomes.items() for words in one.findings.items()]
    for name, (words, file) in found:
        print(f"{name}: {words}: {file}")
    return int(bool(found))


def _line(name: str, one: Outcome) -> str:
    return (
        f"| {name} | {one.seconds:.0f} | {one.inputs:,} | {one.covered:,} | {one.features:,} | "
        f"{len(one.findings)} | {one.slowest:.2f} | {one.grew} |"
    )


def _target(name: str, seconds: float, corpus: Path) -> Outcome:
    """Fuzz one target for its time, in a process that is started again where it ends early."""
    outcome, found = Outcome(), corpus / "findings" / name
    found.mkdir(parents=True, exist_ok=True)
    log, state = found / "log.txt", found / "state.json"
    started, began = time.monotonic(), time.time()
    for number in range(_STARTS):
        left = seconds - (time.monotonic() - started)
        if left < _START and number:
            break
        state.unlink(missing_ok=True)
        command = [sys.executable, __file__, "0", name, "--child", str(left)]
        with log.open("wb") as file, tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            paths = {"PYTHONPATH": _python_path(), "TMPDIR": scratch}
            ended = subprocess.run(
                [*command, "--corpus", str(corpus)],
                check=False,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
            )
        told = log.read_text("utf-8", "replace")
        _add(outcome, state, told)
        if ended.returncode:
            words = _ENDED.findall(told)[-1:] or [f"ends with {ended.returncode}"]
            last = "\n".join([*words, *told.splitlines()[-40:]])
            (found / f"ended-{number}.txt").write_text(last, "utf-8")
    outcome.seconds = time.monotonic() - started
    for file in sorted({*found.glob("found-*.txt"), *found.glob("ended-*.txt")}):
        if file.stat().st_mtime >= began:
            words = file.read_text("utf-8", "replace").splitlines()[:1]
            outcome.findings.setdefault(words[0], str(file))
    return outcome


def _python_path() -> str:
    return os.pathsep.join([str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])


def _add(outcome: Outcome, state: Path, log: str) -> None:
    if state.exists():
        told = json.loads(state.read_text())
        outcome.inputs += told["inputs"]
        outcome.slowest = max(outcome.slowest, told["slowest"])
        outcome.grew = max(outcome.grew, told["grew"])
    for covered, features in _STATUS.findall(log):
        outcome.covered = max(outcome.covered, int(covered))
        outcome.features = max(outcome.features, int(features))


# In the process of one target


def _fuzz(atheris: Any, name: str, seconds: float, corpus: Path) -> None:
    """Fuzz until the time is over; never returns."""
    found, kept = corpus / "findings" / name, corpus / name
    seeds = corpus / "seeds" / name
    for folder in (found, kept, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    target, wholes = _made(atheris, name)
    judge = _Judge(target, found)
    for whole in wholes:
        judge(whole, warming=True)
        (seeds / hashlib.sha1(whole).hexdigest()).write_bytes(whole)
    atheris.enabled_hooks.add("str")
    arguments = [
        *(str(kept), str(seeds), f"-max_total_time={max(1, int(seconds))}"),
        *(f"-timeout={_HUNG}", f"-rss_limit_mb={_MOST_MEMORY}", f"-artifact_prefix={found}/"),
        f"-max_len={max(4096, 2 * max(map(len, wholes)))}",
    ]
    atheris.Setup([sys.argv[0], *arguments], judge)
    atheris.Fuzz()


def _made(atheris: Any, name: str) -> tuple[Any, list[bytes]]:
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        import fuzz_targets

        target, wholes = fuzz_targets.make(name, folder)
        for whole in wholes:
            with suppress(Exception):  # told later
                target(whole)  # and what it imports is instrumented too
    return target, wholes


def _once(atheris: Any, name: str, file: Path) -> int:
    target, _ = _made(atheris, name)
    before, start = _resident(), time.process_time()
    target(file.read_bytes())
    grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before
    print(f"nothing: {time.process_time() - start:.2f} s, {max(0, grew)} MiB")
    return 0


class _Judge:
    """Gives inputs to a target, and keeps those that are findings."""

    def __init__(self, target: Any, found: Path) -> None:
        self._target, self._found = target, found
        self._seen: dict[str, int] = {}
        self._state = {"inputs": 0, "slowest": 0.0, "grew": 0}
        self._told = 0.0

    def __call__(self, data: bytes, warming: bool = False) -> None:
        before, peak, start = _resident(), _peak(), time.process_time()
        try:
            self._target(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit
            self._keep(data, _words(error), "".join(traceback.format_exception(error)[-60:]))
        if warming:
            return
        taken = time.process_time() - start
        after = _peak()
        grew = after - before if after > peak else 0
        if taken > SECONDS:
            self._keep(data, f"takes over {SECONDS:g} s", f"{taken:.1f} s")
        if grew > MEBIBYTES:
            self._keep(data, f"takes over {MEBIBYTES} MiB", f"{grew} MiB")
        self._state["inputs"] += 1
        self._state["slowest"] = max(self._state["slowest"], taken)
        self._state["grew"] = max(self._state["grew"], grew)
        now = time.monotonic()
        if now - self._told > 1:
            self._told = now
            (self._found / "state.json").write_text(json.dumps(self._state))

    def _keep(self, data: bytes, words: str, more: str) -> None:
        self._seen[words] = number = self._seen.get(words, 0) + 1
        if number <= _SAME:
            name = f"found-{hashlib.sha1(words.encode()).hexdigest()[:10]}-{number}"
            (self._found / name).write_bytes(data)
            (self._found / f"{name}.txt").write_text(f"{words}\n{more}", "utf-8", "replace")


def _words(error: BaseException) -> str:
    """Return what is the same of findings that are: the error, and where of ours it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/cwf_milvus/" in frame.filename]
    last = (ours or frames)[-1]
    place = last.filename.rpartition("/cwf_milvus/")[2] if ours else Path(last.filename).name
    told = f": {str(error)[:80]!r}" if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} in {place} {last.name} line {last.lineno}{told}"


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    sys.exit(main())
