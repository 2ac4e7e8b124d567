"""What became of every photo of a run: counts, and a line for each in a file."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from cwf_milvus.index.report_files import ReportFile, opened, unwritable
from cwf_milvus.photos.survey import Met

_LOG = logging.getLogger(__name__)


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
    """Counts what became of each photo, and writes it to the report file; for any thread.

    Each line is logged too, at the level INFO.
    """

    def __init__(self, report: Report, file: str | Path | None) -> None:
        self.report = report
        self._path = file
        self._file: ReportFile | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._file = opened(self._path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close({**vars(self.report), "failed": len(self.report.failed)})
        except OSError as error:
            if kind is None:
                raise unwritable(self._path, error) from error

    def skipped(self, met: Met) -> None:
        """Count a file that is no photo, and write a line of it."""
        kind = met.reason if met.verdict == "other" else met.verdict
        self.report.passed[kind] = self.report.passed.get(kind, 0) + 1
        self.line(met.uri, "skipped", "no photo" if met.verdict == "other" else met.reason)

    def line(self, uri: str, status: str, reason: str = "") -> None:
        """Write what became of one photo.

        Raises:
            SettingsError: the report file cannot be written.
        """
        _LOG.info("%s: %s%s", status, uri, f" ({reason})" if reason else "")
        if self._file is None:
            return
        try:
            with self._lock:
                self._file.line(uri, status, reason)
        except OSError as error:
            raise unwritable(self._path, error) from error
