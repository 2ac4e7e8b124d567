"""The files of a Milvus Lite database, read past Milvus Lite: are they whole, what do they hold?

Milvus Lite goes by its manifest: opening deletes the segments that the manifest does not name, and
what stands in its log behind a damaged record. So the files are looked at before it opens them,
and what can be read of damaged ones is read from here (`store.salvage`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from cwf_milvus.errors import StoreError

_UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, IndexError)
_RANGE = re.compile(r"(?:data|delta)_(\d+)_(\d+)\.parquet")
_RECORD = b"\xff\xff\xff\xff"  # begins a record of the log, at a multiple of 8 bytes
_AT_ONCE = 256


@dataclass
class LiteFiles:
    """The files of one collection.

    Args:
        folder: of the collection, in the database's ``collections``.

    Attributes:
        damaged: what is wrong with them, a line each, as far as they have been read.
    """

    folder: Path
    damaged: list[str] = field(default_factory=list)

    def check(self, *, whole: bool = False) -> list[str]:
        """Return what is wrong with them, a line each.

        Args:
            whole: read all of every segment, in place of its footer alone.
        """
        self._check_schema()
        manifest = self._manifest()
        named = {file for kind in ("data", "delta") for file in self._named(manifest, kind)}
        for file in sorted(named - {*self._on_disk("data"), *self._on_disk("delta")}):
            self._say(file, "is missing")
        if manifest is not None:
            self._check_unnamed(manifest, named)
        for file in sorted({*self._on_disk("data"), *self._on_disk("delta")} & named):
            try:
                if whole:
                    pq.read_table(file).validate(full=True)
                else:
                    pq.read_metadata(file)
            except _UNREADABLE as error:
                self._say(file, f"cannot be read ({_short(error)})")
        for log in self._logs():
            self._records(log)
        return self.damaged

    def rows(self, key: str) -> Iterator[dict[str, Any]]:
        """Yield the newest row of every primary key that can be read and was not deleted.

        Args:
            key: the field of the primary keys.
        """
        segments = self._segments("data")
        logs = [batch for log in self._logs("data") for batch in self._records(log)]
        newest: dict[str, tuple[int, int, int]] = {}
        keys = [self._read(file, [key, "_seq"]) for file in segments]
        for place, part in enumerate([*keys, *logs]):
            for at, (name, number) in enumerate(_pairs(part, key)):
                if name is not None and number >= newest.get(name, (-1, 0, 0))[0]:
                    newest[name] = (number, place, at)
        for part in self._deletions():
            for name, number in _pairs(part, key):
                if name is not None and number > newest.get(name, (number, 0, 0))[0]:
                    del newest[name]
        wanted: dict[int, set[int]] = {}
        for _, place, at in newest.values():
            wanted.setdefault(place, set()).add(at)
        for place, file in enumerate(segments):
            yield from self._rows_of(file, wanted.get(place, set()))
        for place, batch in enumerate(logs, len(segments)):
            yield from _plain_rows(batch, 0, wanted.get(place, set()))

    def mark(self) -> str:
        """Return the mark of the collection's creation, also of a damaged schema; "" for none."""
        try:
            text = (self.folder / "schema.json").read_text("utf-8", errors="replace")
        except OSError:
            return ""
        found = re.search(r'"cwf_milvus\.mark": "([0-9a-f]{32})"', text)
        return found[1] if found else ""

    def _check_schema(self) -> None:
        from milvus_lite.exceptions import SchemaValidationError
        from milvus_lite.schema.persistence import load_schema

        file = self.folder / "schema.json"
        try:
            _, schema = load_schema(str(file))
        except (*_UNREADABLE, SchemaValidationError) as error:
            return self._say(file, f"cannot be read ({_short(error)})")
        names = {one.name for one in schema.fields} | {"_seq", "$meta"}
        for segment in self._on_disk("data"):
            try:
                lacks = {*pq.read_schema(segment).names} - names
            except _UNREADABLE:
                continue  # told as a segment
            if lacks:
                return self._say(file, f"lacks the field {min(lacks)!r} of {segment.name}")
        return None

    def _manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None for one that Milvus Lite would have to do without."""
        file = self.folder / "manifest.json"
        try:
            manifest = json.loads(file.read_text("utf-8"))
            for kind in ("data", "delta"):
                self._named(manifest, kind)
            for spec in dict(manifest["index_specs"]).values():
                spec["field_name"], spec["index_type"], spec["metric_type"]
            int(manifest["current_seq"])
            return dict(manifest)
        except FileNotFoundError:
            if (self.folder / "manifest.json.prev").exists() or self._on_disk("data"):
                self._say(file, "is missing")
        except _UNREADABLE as error:
            self._say(file, f"cannot be read ({_short(error)})")
        return None

    def _check_unnamed(self, manifest: dict[str, Any], named: set[Path]) -> None:
        """Tell of segments that opening would delete, though no merger of segments left them."""
        ranges = [_range(file) for file in named]
        last = int(manifest["current_seq"])
        for file in self._on_disk("data"):
            begin, end = _range(file)
            if file in named:
                if end > last:
                    self._say(self.folder / "manifest.json", f"does not count {file.name}")
                continue
            low = min((one for one, _ in ranges), default=end + 1)
            high = max((one for _, one in ranges), default=-1)
            if end <= last and not low <= begin <= end <= high:
                self._say(self.folder / "manifest.json", f"does not name {file.name}")

    def _named(self, manifest: dict[str, Any] | None, kind: str) -> list[Path]:
        if manifest is None:
            return []
        return [
            self.folder / "partitions" / partition / str(file)
            for partition, files in dict(manifest["partitions"]).items()
            for file in files[f"{kind}_files"]
        ]

    def _on_disk(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"partitions/*/{kind}/{kind}_*_*.parquet"))

    def _segments(self, kind: str) -> list[Path]:
        """Return the segments to read: not those that were merged into another and left over."""
        files = self._on_disk(kind)
        named = set(self._named(self._manifest(), kind))
        kept = []
        for file in files:
            begin, end = _range(file)
            around = [_range(one) for one in (named or files) if one != file]
            if file in named or not any(low <= begin <= end <= high for low, high in around):
                kept.append(file)
        return kept

    def _logs(self, kind: str = "*") -> list[Path]:
        return sorted(self.folder.glob(f"wal/wal_{kind}_*.arrow"))

    def _deletions(self) -> Iterator[pa.Table | pa.RecordBatch]:
        for file in self._segments("delta"):
            yield self._read(file, None)
        for log in self._logs("delta"):
            yield from self._records(log)

    def _read(self, file: Path, columns: list[str] | None) -> pa.Table:
        try:
            return pq.read_table(file, columns=columns)
        except _UNREADABLE as error:
            self._say(file, f"cannot be read ({_short(error)})")
            return pa.table({})

    def _rows_of(self, file: Path, wanted: set[int]) -> Iterator[dict[str, Any]]:
        if not wanted:
            return
        start = 0
        try:
            segment = pq.ParquetFile(file)
            for batch in segment.iter_batches(_AT_ONCE):
                yield from _plain_rows(batch, start, wanted)
                start += len(batch)
        except _UNREADABLE as error:
            self._say(file, f"cannot be read ({_short(error)})")

    def _records(self, log: Path) -> list[pa.RecordBatch]:
        """Return the records of a log, also those behind a damaged one.

        A log without an end, as a kill leaves it, is none that is damaged.
        """
        data = log.read_bytes()
        schema, at, is_torn, is_told, found = None, 0, False, False, []
        while 0 <= at < len(data):
            source = pa.BufferReader(pa.py_buffer(data)[at:])
            try:
                message = pa.ipc.read_message(source)
                if message.type == "schema":
                    schema = pa.ipc.read_schema(message)
                else:
                    schema = schema or self._log_schema(log)
                    batch = pa.ipc.read_record_batch(message, schema)
                    batch.validate(full=True)
                    if "_seq" not in batch.schema.names:  # which may be no text
                        raise ValueError("no rows of Milvus Lite")
                    found.append(batch)
                    if is_torn and not is_told:
                        is_told = True
                        self._say(log, "has records behind a damaged one")
                at += source.tell()
            except EOFError:
                break
            except _UNREADABLE:
                if _is_endless(log, at):
                    is_told = True
                    self._say(log, "has a record that claims more bytes than there is memory")
                is_torn = True
                at = _next_record(data, at)
        return found

    def _log_schema(self, log: Path) -> pa.Schema:
        from milvus_lite.exceptions import SchemaValidationError
        from milvus_lite.schema import arrow_builder
        from milvus_lite.schema.persistence import load_schema

        is_data = log.name.startswith("wal_data")
        try:
            _, schema = load_schema(str(self.folder / "schema.json"))
        except SchemaValidationError as error:
            raise ValueError("no schema") from error
        build = "build_wal_data_schema" if is_data else "build_wal_delta_schema"
        return getattr(arrow_builder, build)(schema)

    def _say(self, file: Path, what: str) -> None:
        named = f"{self.folder.name}/{file.relative_to(self.folder)} "
        if not any(line.startswith(named) for line in self.damaged):
            self.damaged.append(named + what)


def damaged_files(database: str | Path, *, whole: bool = False) -> list[str]:
    """Return what is wrong with the files of a database, a line each; vector indexes apart.

    Args:
        database: the folder.
        whole: read all of every segment, in place of its footer alone.
    """
    folders = sorted(path for path in Path(database).glob("collections/*") if path.is_dir())
    return [line for folder in folders for line in LiteFiles(folder).check(whole=whole)]


@contextmanager
def held(database: str | Path) -> Iterator[None]:
    """Keep every process from opening a database.

    Raises:
        StoreError: it is in use.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = os.open(Path(database) / "LOCK", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{str(database)!r} is in use: close it first") from error
        yield
    finally:
        os.close(lock)


def _pairs(part: pa.Table | pa.RecordBatch, key: str) -> Iterable[tuple[str | None, int]]:
    """Yield key and number of the rows; None for a key that is no text."""
    if not {key, "_seq"} <= {*part.schema.names}:
        return
    numbers = part.column("_seq").to_pylist()
    for name, number in zip(part.column(key), numbers, strict=True):
        try:
            yield name.as_py(), int(number)
        except _UNREADABLE:
            yield None, int(number)


def _plain_rows(batch: pa.RecordBatch, start: int, wanted: set[int]) -> Iterator[dict[str, Any]]:
    for i in range(len(batch)):
        if start + i not in wanted:
            continue
        try:
            row = {name: batch.column(name)[i].as_py() for name in batch.schema.names}
            told = json.loads(row.pop("$meta", None) or "{}")
            yield {**row, **told}
        except _UNREADABLE:  # its photo is named as lost
            continue


def _range(file: Path) -> tuple[int, int]:
    found = _RANGE.fullmatch(file.name)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _is_endless(log: Path, at: int) -> bool:
    """Tell whether Milvus Lite, which reads from the file, would ask for memory in vain."""
    with pa.OSFile(str(log)) as source:
        source.seek(at)
        try:
            pa.ipc.read_message(source)
        except pa.ArrowMemoryError:
            return True
        except (*_UNREADABLE, EOFError):
            return False
    return False


def _next_record(data: bytes, at: int) -> int:
    while (at := data.find(_RECORD, at + 1)) >= 0:
        if not at % 8:
            return at
    return -1


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
