"""What became of every photo of a run: counts, and a JSONL file."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.survey import Met

_LINE_BYTES = 2**20  # the first line of a report is never longer


@dataclass
class Report:
    """What became of every photo of a run.

    Attributes:
        added: photos that were not in the collection.
        updated: photos whose bytes or metadata changed.
        moved: photos that had another name before, and keep their vectors and fields.
        skipped: photos that were there already, with the same bytes and metadata.
        failed: (uri, reason) of each photo that could not be read.
        pruned: rows removed because their file is gone.
        passed: how many files were met that are no photos, by kind: an ending, "special" for
            pipes, devices and links to nothing, "hidden".
        seconds: wall-clock time.
    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    skipped: int = 0
    pruned: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def n_photos(self) -> int:
        """How many photos the run has dealt with."""
        return self.added + self.updated + self.moved + self.skipped + len(self.failed)

    def __str__(self) -> str:
        rate = (self.added + self.updated) / self.seconds if self.seconds else 0.0
        moved = f", {self.moved} moved" if self.moved else ""
        pruned = f", {self.pruned} pruned" if self.pruned else ""
        passed = ", ".join(f"{n} {kind}" for kind, n in sorted(self.passed.items()))
        return (
            f"{self.added} added, {self.updated} updated{moved}, {self.skipped} skipped, "
            f"{len(self.failed)} failed{pruned} in {self.seconds:.1f} s ({rate:.1f} photos/s)"
            + (f"; passed over: {passed}" if passed else "")
        )


class Journal:
    """Counts what became of each photo, and writes it to the report file; for any thread."""

    def __init__(self, report: Report, file: str | Path | None) -> None:
        self.report = report
        self._file = file
        self._lines: TextIO | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        if self._file is not None:
            self._lines = opened(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lines is None:
            return
        try:
            counts = {**vars(self.report), "failed": len(self.report.failed)}
            self._lines.write(json.dumps({"summary": counts}) + "\n")
            self._lines.close()
        except OSError as error:
            if kind is None:
                raise _unwritable(self._file, error) from error

    def passed_over(self, met: Met) -> None:
        """Count a file that is no photo, and write a line of it."""
        kind = met.reason if met.verdict == "other" else met.verdict
        self.report.passed[kind] = self.report.passed.get(kind, 0) + 1
        self.line(met.uri, "passed over", "no photo" if met.verdict == "other" else met.reason)

    def line(self, uri: str, status: str, reason: str = "") -> None:
        """Write what became of one photo.

        Raises:
            SettingsError: the report file cannot be written.
        """
        if self._lines is None:
            return
        entry = {"uri": uri, "status": status} | ({"reason": reason} if reason else {})
        try:
            with self._lock:
                self._lines.write(json.dumps(entry) + "\n")
                self._lines.flush()
        except OSError as error:
            raise _unwritable(self._file, error) from error


def opened(file: str | Path) -> TextIO:
    """Open a report to go on at its end, made where there is none.

    Raises:
        SettingsError: it cannot be written, or is a file of something else.
    """
    path = Path(file)
    try:
        if not _is_report(path):
            raise SettingsError(
                f"{str(file)!r} is there, and is no report of an earlier run: name another file "
                "for the report"
            )
        lines = path.open("a", encoding="utf-8")
        if path.is_file() and _is_torn(path):
            lines.write("\n")
    except OSError as error:
        raise _unwritable(file, error) from error
    return lines


def _is_report(path: Path) -> bool:
    """Tell whether a file is empty, not there, a pipe or device, or begins as a report does."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        first = file.readline(_LINE_BYTES)
    try:
        entry = json.loads(first) if first else {"summary": {}}
    except ValueError:
        return False
    return isinstance(entry, dict) and ("summary" in entry or {"uri", "status"} <= entry.keys())


def _is_torn(path: Path) -> bool:
    """Tell whether the last line has no end, as a kill leaves it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() not in (b"", b"\n")


def _unwritable(file: str | Path | None, error: OSError) -> SettingsError:
    return SettingsError(
        f"cannot write the report {str(file)!r} ({error.strerror}): name a file in a folder that "
        "exists and can be written"
    )
