"""A metadata file, CSV or JSONL, as rows with their line numbers, and what to say of it."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cwf_milvus.errors import SettingsError

FILE_NAME = "file_name"
MOST_BYTES = 256 * 2**20
"""What is read takes some ten times as much memory."""
_NO_VALUE = {"n/a", "na", "#n/a", "nan", "null", "none", "unknown", "missing", "-", "--", "?"}
"""What is written for a number that there is not, in small letters."""


@dataclass(frozen=True)
class Entry:
    """What is said of one photo.

    Attributes:
        name: of the photo, as it is written.
        fields: the user's own.
        line: of the file; 0 where there is none.
        key: the name as it is looked up; "" for as it is written.
    """

    name: str
    fields: dict[str, Any]
    line: int = 0
    key: str = ""

    def __str__(self) -> str:
        return f"line {self.line} {self.name!r}" if self.line else repr(self.name)


@dataclass(frozen=True)
class Table:
    """A metadata file.

    Attributes:
        entries: its rows.
        notices: what to tell of its columns.
    """

    entries: list[Entry]
    notices: list[str] = field(default_factory=list)


def read_table(file: Path) -> Table:
    """Read a metadata file; a column of numbers in a CSV becomes numbers.

    Raises:
        SettingsError: it cannot be read; names the line.
    """
    is_csv = file.suffix.lower() == ".csv"
    entries = []
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is a folder, pipe, socket or device, not a file")
        if status.st_size > MOST_BYTES:
            raise OSError(
                f"it has {status.st_size:,} bytes, and {MOST_BYTES:,} are read at once: split it, "
                "and run once for each part"
            )
        with file.open(encoding="utf-8-sig", newline="") as text:
            for number, row in (_csv_rows if is_csv else _json_rows)(text):
                name = row.pop(FILE_NAME, None) if isinstance(row, dict) else None
                if not isinstance(name, str) or not name or None in row:
                    raise ValueError(
                        f"line {number}: every row needs a {FILE_NAME!r}, and no more values than "
                        "the header has columns"
                    )
                entries.append(Entry(name, row, number))
    except (OSError, ValueError, csv.Error) as error:
        raise SettingsError(
            f"cannot read the metadata file {str(file)!r} ({error}): give a UTF-8 .csv with a "
            f"header, or a .jsonl with an object a line"
        ) from error
    return Table(entries, list(_type_columns(entries)) if is_csv else [])


def _csv_rows(text: TextIO) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(text)
    for row in reader:
        yield reader.line_num, {key: row[key] for key in row if key != "" and row[key]}


def _type_columns(entries: list[Entry]) -> Iterator[str]:
    """Turn the columns of numbers into numbers, so that filters can compare them.

    A number is a text that comes back the same, so that codes such as ``007`` stay text. Words for
    no value, such as ``n/a``, are left out of a column that is numbers else. Yields what to tell.
    """
    columns = {name: None for entry in entries for name in entry.fields}
    for column in columns:
        cells = [(entry, entry.fields[column]) for entry in entries if column in entry.fields]
        others = [(entry, text) for entry, text in cells if not _is_written_as(float, text)]
        n_numbers = len(cells) - len(others)
        if not n_numbers:
            continue
        some = f"such as {others[0][1]!r} in line {others[0][0].line}" if others else ""
        if any(text.strip().lower() not in _NO_VALUE for _, text in others):
            if n_numbers > len(others):
                yield (
                    f"the column {column!r} stays text, and filters compare it as text: of its "
                    f"{len(cells)} values {len(others)} are no numbers, {some}"
                )
            continue
        if others:
            yield (
                f"the column {column!r} is numbers: values left out that are none: {len(others)}, "
                f"{some}"
            )
        for entry, _ in others:
            del entry.fields[column]
        numbers = [(entry, text) for entry, text in cells if column in entry.fields]
        kind = int if all(_is_written_as(int, text) for _, text in numbers) else float
        for entry, text in numbers:
            entry.fields[column] = kind(text)


def _is_written_as(number: type[int] | type[float], text: str) -> bool:
    if not re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d{1,15})?", text):
        return False
    return number is float or "." not in text


def _json_rows(text: TextIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # NaN and lone surrogates, which Milvus cannot store, are refused here by line.
            json.dumps(row, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error
        yield number, row
