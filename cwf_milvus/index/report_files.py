"""The file of a report: JSON lines, CSV or Parquet by its ending; gone on with, never replaced."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cwf_milvus.errors import SettingsError
from cwf_milvus.files import write_whole

_COLUMNS = ("uri", "status", "reason")
_LINE_BYTES = 2**20  # the first line of a report is never longer


class ReportFile(Protocol):
    """A report that lines are added to, each of which is safe once `line` returns."""

    def line(self, uri: str, status: str, reason: str) -> None:
        """Write what became of a file; raises OSError."""

    def close(self, counts: Mapping[str, object] | None = None) -> None:
        """End the report of a run, with its counts where the format has a place for them."""


def opened(file: str | Path) -> ReportFile:
    """Open a report to go on at its end, made where there is none.

    Args:
        file: ends in ``.csv`` or ``.parquet``; anything else is JSON lines.

    Raises:
        SettingsError: it cannot be written, or is a file of something else.
    """
    path = Path(file)
    kinds: dict[str, Callable[[Path], ReportFile]] = {".csv": _Csv, ".parquet": _Parquet}
    try:
        return kinds.get(path.suffix.lower(), _JsonLines)(path)
    except OSError as error:
        raise unwritable(file, error) from error


def unwritable(file: str | Path | None, error: OSError) -> SettingsError:
    """Return the error for a report that its system does not let us write."""
    return SettingsError(
        f"cannot write the report {str(file)!r} ({error.strerror or error}): name a file in a "
        "folder that exists and can be written"
    )


class _JsonLines:
    def __init__(self, path: Path) -> None:
        _refuse_other(path, self._is_ours(path))
        self._file = path.open("a", encoding="utf-8")
        if path.is_file() and _is_torn(path):
            self._file.write("\n")

    def line(self, uri: str, status: str, reason: str) -> None:
        entry = {"uri": uri, "status": status} | ({"reason": reason} if reason else {})
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self, counts: Mapping[str, object] | None = None) -> None:
        if counts is not None:
            self._file.write(json.dumps({"summary": counts}) + "\n")
        self._file.close()

    @staticmethod
    def _is_ours(path: Path) -> bool:
        if not path.is_file():  # not there, or a pipe or device
            return True
        with path.open("rb") as file:
            first = file.readline(_LINE_BYTES)
        try:
            entry = json.loads(first) if first else {"summary": {}}
        except (ValueError, RecursionError):
            return False
        return isinstance(entry, dict) and ("summary" in entry or {"uri", "status"} <= entry.keys())


class _Csv:
    def __init__(self, path: Path) -> None:
        there = path.read_bytes() if path.is_file() else b""
        header = there[:_LINE_BYTES].removeprefix("\ufeff".encode()).partition(b"\n")[0].strip()
        _refuse_other(path, not there or header == ",".join(_COLUMNS).encode())
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        if not there:
            self._rows.writerow(_COLUMNS)
        elif there.count(b'"') % 2:  # a kill left a text without its end
            self._file.write('"\n')
        elif not there.endswith(b"\n"):
            self._file.write("\n")
        self._file.flush()

    def line(self, uri: str, status: str, reason: str) -> None:
        self._rows.writerow((uri, status, reason))
        self._file.flush()

    def close(self, counts: Mapping[str, object] | None = None) -> None:
        self._file.close()


class _Parquet:
    """Parquet cannot be gone on with: until the run ends, its lines are kept beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _refuse_other(path, not path.exists() or self._is_ours(path))
        self._lines = path.with_name(f"{path.name}.lines")
        self._file = _JsonLines(self._lines)

    def line(self, uri: str, status: str, reason: str) -> None:
        self._file.line(uri, status, reason)

    def close(self, counts: Mapping[str, object] | None = None) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]  # a third of a second
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        self._file.close()
        table = pa.Table.from_pylist(list(_rows(self._lines)), _schema())
        if self._path.exists():
            earlier = _earlier(self._path)
            if earlier is None:
                raise OSError(f"another file is there by now; the lines are in {self._lines}")
            table = pa.concat_tables([earlier, table])
        write_whole(self._path, lambda part: pq.write_table(table, part))
        self._lines.unlink()

    @staticmethod
    def _is_ours(path: Path) -> bool:
        with path.open("rb"):  # which it may not be: then that is told
            return _earlier(path) is not None


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in _COLUMNS])


def _earlier(path: Path) -> Any:
    """Return the table of an earlier report in Parquet; None for another file, or a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        if tuple(table.schema.names) != _COLUMNS:
            return None
        table = table.cast(_schema())
        table.validate(full=True)
    except (OSError, pa.ArrowException, ValueError, KeyError):  # what pyarrow raises of other bytes
        return None
    return table


def _rows(lines: Path) -> Iterator[dict[str, Any]]:
    for line in lines.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # torn by a kill
            continue
        if not isinstance(entry, dict) or "uri" not in entry:
            continue
        texts = {name: str(entry.get(name, "")) for name in _COLUMNS}
        yield {name: t.encode(errors="backslashreplace").decode() for name, t in texts.items()}


def _refuse_other(path: Path, is_ours: bool) -> None:
    if not is_ours:
        raise SettingsError(
            f"{str(path)!r} is there, and is no report of an earlier run: name another file for "
            "the report"
        )


def _is_torn(path: Path) -> bool:
    """Tell whether the last line has no end, as a kill leaves it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() not in (b"", b"\n")
