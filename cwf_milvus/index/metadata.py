"""The user's own fields of each photo: from a mapping, a CSV file or a JSONL file."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.sources import uri_of

FILE_NAME = "file_name"
BESIDE = ("metadata.jsonl", "metadata.csv")
MetadataSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | None"
"""A CSV or JSONL file, or uri, path or file name to fields; None to look beside the photos."""


class Metadata:
    """Looks up the fields of a photo by its uri, its path in an indexed folder, or its name.

    Args:
        fields: uri, path or file name to a dict of fields.
        folders: the folders that relative paths may be in.
    """

    def __init__(
        self, fields: Mapping[str, Mapping[str, Any]], folders: Sequence[str] = ()
    ) -> None:
        self._fields = {str(key): dict(value) for key, value in fields.items()}
        self._folders = [Path(folder) for folder in folders]

    def __bool__(self) -> bool:
        return bool(self._fields)

    def of(self, uri: str) -> dict[str, Any] | None:
        """Return the fields of a photo; None where nothing is said of it."""
        for key in self._keys(uri):
            if key in self._fields:
                return self._fields[key]
        return None

    def _keys(self, uri: str) -> list[str]:
        keys = [uri]
        for folder in self._folders:
            prefix = str(folder) + os.sep
            if uri.startswith(prefix):
                keys.append(uri[len(prefix) :])
        keys.append(uri.replace("\\", "/").rpartition("/")[2])
        return keys

    @classmethod
    def read(cls, source: MetadataSource, folders: Sequence[str] = ()) -> Metadata:
        """Read metadata from a mapping or a file; None looks beside the photos.

        Args:
            source: a mapping, or a ``.csv`` or ``.jsonl`` file whose rows have a column
                ``file_name`` (a name, a path in an indexed folder, or a uri) and any other fields,
                which a CSV gives as text, or as numbers where all of a column is;
                None for ``metadata.jsonl`` or ``metadata.csv`` in `folders`, where there is one.
            folders: the indexed folders.

        Raises:
            SettingsError: a file that cannot be read, or fields that are no mapping; names the
                file and the line, or the photo, at fault.
        """
        if isinstance(source, Mapping):
            for name, fields in source.items():
                if not isinstance(fields, Mapping):
                    raise SettingsError(
                        f"metadata of {str(name)!r} is {fields!r}: give a mapping of its fields"
                    )
            return cls({_key(name): fields for name, fields in source.items()}, folders)
        if source is not None:
            return cls(_read(Path(str(source))), folders)
        found: dict[str, dict[str, Any]] = {}
        for folder in folders:
            for name in BESIDE:
                file = Path(folder) / name
                if file.is_file():
                    rows = _read(file)
                    found |= {uri_of(Path(folder) / key): row for key, row in rows.items()}
                    break
        return cls(found, folders)


def _key(name: object) -> str:
    return uri_of(name) if isinstance(name, Path) else str(name)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            for number, row in (_csv_rows if file.suffix.lower() == ".csv" else _json_rows)(text):
                name = row.pop(FILE_NAME, None) if isinstance(row, dict) else None
                if not isinstance(name, str) or not name or None in row:
                    raise ValueError(
                        f"line {number}: every row needs a {FILE_NAME!r}, and no more values than "
                        "the header has columns"
                    )
                fields[name] = row
        if file.suffix.lower() == ".csv":
            _type_columns(list(fields.values()))
    except (OSError, ValueError, csv.Error) as error:
        raise SettingsError(
            f"cannot read the metadata file {str(file)!r} ({error}): give a UTF-8 .csv with a "
            f"header, or a .jsonl with an object a line"
        ) from error
    return fields


def _csv_rows(text: TextIO) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(text)
    for row in reader:
        yield reader.line_num, {key: row[key] for key in row if key != "" and row[key]}


def _type_columns(rows: list[dict[str, Any]]) -> None:
    """Turn the columns whose values are all numbers into numbers, so that filters can compare them.

    A number is a text that comes back the same, so that codes such as ``007`` stay text.
    """
    for column in {name for row in rows for name in row}:
        texts = [row[column] for row in rows if column in row]
        for number in (int, float):
            if all(_is_written_as(number, text) for text in texts):
                for row in rows:
                    if column in row:
                        row[column] = number(row[column])
                break


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
