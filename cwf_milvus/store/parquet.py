"""A whole collection as Parquet files that Milvus imports in bulk, and back from them.

A folder has one of Parquet files for each collection of Milvus, written by pymilvus' bulk writer,
and `export.json`, which says what they are. Keys bear a mark that follows from the encoder and the
name: what several workers wrote of one collection goes into one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pymilvus import CollectionSchema

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.store.answers import words_of
from cwf_milvus.store.augmentation import Augmented
from cwf_milvus.store.class_rows import ClassRows
from cwf_milvus.store.client import MESSAGE_BYTES, Store
from cwf_milvus.store.graph import Graph
from cwf_milvus.store.layout import METADATA_BYTES, Layout
from cwf_milvus.store.packing import Text
from cwf_milvus.store.parquet_files import (
    ABOUT,
    FORMAT,
    ROWS,
    Row,
    is_export,
    manifest_of,
    parts_of,
    read_about,
)
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.refusals import check_name, checked_index
from cwf_milvus.store.sidecar import MANIFEST, Sidecar, sidecar_schema

FILE_BYTES = 128 * 2**20
"""About how large a file is: Milvus takes 16 GB a file, and 1,024 files a request."""

_FLAT = {"index_type": "FLAT"}


@dataclass(frozen=True)
class Exported:
    """What `export_collection` wrote.

    Attributes:
        folder: where.
        photos: how many.
        files: of Parquet, by what they hold: "photos", or the suffix of a side collection.
        bytes: of all of them.
    """

    folder: Path
    photos: int
    files: dict[str, int]
    bytes: int

    def __str__(self) -> str:
        files = ", ".join(f"{name} {n}" for name, n in self.files.items())
        return f"{self.photos} photos in {self.folder}: {self.bytes:,} bytes, files: {files}"


def export_collection(
    rows: PhotoRows, folder: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> Exported:
    """Write a collection, with all that belongs to it, as Parquet files.

    The folder is there whole or not at all; a call that was killed is made again.

    Args:
        rows: the collection.
        folder: where to; an earlier export there is replaced.
        progress: called with (photos done, photos in all).

    Raises:
        SettingsError: the folder is one of something else, or pymilvus' bulk writer is missing.
        StoreError: Milvus failed.
        CollectionError: rows that the files then lack.
    """
    place = checked_export(folder)
    partial = place.with_name(f".{place.name}.cwf-milvus-part")  # no folder of anybody else's
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mark = _mark_of(rows)
    tables: dict[str, Any] = {}
    n_photos = 0
    for name, schema, found in _tables(rows, mark, progress):
        files, n = _written(partial / name, schema, found)
        tables[name] = {"rows": n, "files": files, "schema": schema.to_dict()}
        n_photos = n if name == ROWS else n_photos
    about = {"format": FORMAT, "collection": rows.name, "mark": mark, "tables": tables}
    (partial / ABOUT).write_text(json.dumps(about, indent=1, default=int), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    size = sum(file.stat().st_size for file in place.glob("*/*.parquet"))
    counts = {name: len(table["files"]) for name, table in tables.items()}
    return Exported(place, n_photos, counts, size)


def import_collection(
    folder: str | Path,
    uri: str | Path,
    name: str | None = None,
    *,
    token: str | None = None,
    index: Mapping[str, Any] | None = None,
    schema_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Make a collection of an export, by rows; those that are there and alike are passed over.

    Exports of several workers go into one collection. A call that was killed is made again.

    Args:
        folder: of `export_collection`.
        uri: a ``.db`` path, or a server's address.
        name: what it is called there; None for the exported name.
        token: for a server.
        index: of the descriptor, for a server; None for the one it had, and on Lite for FLAT.
        schema_only: make the collections and write no row: a server then imports the files itself.
        progress: called with (photos done, photos in all).

    Returns:
        How many photos were written.

    Raises:
        SettingsError: no export, or a name or index that cannot be used.
        CollectionError: another collection has the name, or files are damaged.
        StoreError: Milvus failed; call again to go on.
    """
    place, about = read_about(folder)
    name = str(about["collection"]) if name is None else name
    check_name(name)
    store = Store(uri, token=token, make=True)
    try:
        manifest = manifest_of(place, about)
        given = manifest.get("index") if index is None and not store.is_lite else index
        kind = checked_index(given, store.is_lite)
        try:
            layout = Layout.of(manifest)
        except (KeyError, TypeError) as error:
            raise CollectionError(
                f"the export {str(folder)!r} is damaged ({error!r:.200}): export again"
            ) from error
        mark = str(about["mark"])
        if store.call("has_collection", name) and store.mark_of(name) != mark:
            raise CollectionError(
                f"the collection {name!r} is in {store.uri} already, and is not of "
                f"{str(folder)!r}: give another name, or drop that one first"
            )
        encoder = f"{name}_{Sidecar.suffix}"
        store.ensure(encoder, sidecar_schema(), "vector", _FLAT)
        # The encoder is small, and nothing can be opened without it.
        for part in parts_of(place, about, Sidecar.suffix, sidecar_schema()):
            store.write(encoder, [_with_index(row, mark, kind) for row in part])
        if not store.call("has_collection", name):
            store.create(name, layout.schema(), "descriptor", kind, mark=mark)
        made = PhotoRows(store, name)
        if wrong := made.sidecar.verify():
            raise CollectionError(
                f"the encoder of the export {str(folder)!r} is damaged ({wrong[0]:.200}): export "
                "again"
            )
        return _fill(made, place, about, schema_only, progress)
    finally:
        store.close()


def checked_export(folder: str | Path) -> Path:
    """Return where an export goes.

    Raises:
        SettingsError: the folder is one of something else, or pymilvus' bulk writer is missing.
    """
    place = Path(folder).absolute()
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not is_export(place)):
        raise SettingsError(
            f"{str(folder)!r} is there, and is no earlier export: name another folder"
        )
    try:
        _bulk_writer()
    except ImportError as error:
        raise SettingsError(
            f"pymilvus' bulk writer is not whole ({error}): pip install 'cwf-milvus[bulk]'"
        ) from error
    return place


def _mark_of(rows: PhotoRows) -> str:
    told = f"parquet/{rows.sidecar.manifest['fingerprint']}/{rows.name}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _tables(
    rows: PhotoRows, mark: str, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, CollectionSchema, Iterator[Row]]]:
    """Yield what is to be written: of what name, of which fields, and its rows."""
    yield ROWS, rows.layout.schema(), _photo_rows(rows, progress)
    prefix = rows.sidecar.prefix
    for side in (rows.sidecar, rows.ledger, rows.class_rows, Augmented(rows), rows.graph):
        if side is None or not side.exists():
            continue
        rows.store.load(side.name)
        found = _side_rows(rows, side.name, side.schema())
        if isinstance(side, ClassRows | Augmented | Graph):
            yield side.suffix, side.schema(), found
        else:  # these hold other lives of the name too, and updates since the rows were read
            yield (
                side.suffix,
                side.schema(),
                (
                    {**row, "key": f"{mark}/{row['key'].removeprefix(prefix)}"}
                    for row in found
                    if row["key"].startswith(prefix) and not rows.ledger.is_update(row["key"])
                ),
            )


def _photo_rows(rows: PhotoRows, progress: Callable[[int, int], None] | None) -> Iterator[Row]:
    at_once = max(1, MESSAGE_BYTES // (rows.layout.row_bytes + 4 * METADATA_BYTES))
    uris, total, done = rows.uris(), rows.count(), 0
    while part := list(islice(uris, at_once)):
        found = rows.raw_rows(part)
        yield from found.values()
        done += len(found)
        if progress is not None:
            progress(done, max(done, total))


def _side_rows(rows: PhotoRows, name: str, schema: CollectionSchema) -> Iterator[Row]:
    key, *fields = (field.name for field in schema.fields)
    fields += ["$meta"] if schema.enable_dynamic_field else []
    keys = (row[key] for row in rows.store.scan(name, key))
    while part := list(islice(keys, 1000)):
        row_bytes = 4 * METADATA_BYTES + 16 * rows.layout.dim
        yield from rows.store.fetch(name, key, part, fields, row_bytes=row_bytes).values()


def _written(folder: Path, schema: CollectionSchema, rows: Iterator[Row]) -> tuple[list[str], int]:
    """Write one collection's files; returns their names and how many rows they have."""
    bulk = _bulk_writer()
    folder.mkdir()
    schema.verify()
    writer = bulk.LocalBulkWriter(
        schema, str(folder), chunk_size=FILE_BYTES, file_type=bulk.BulkFileType.PARQUET
    )
    flush, failures = writer._flush, list[Exception]()

    def flush_quietly(*args: Any) -> None:  # in a thread, which would print its traceback
        try:
            flush(*args)
        except Exception as error:
            failures.append(error)

    writer._flush = flush_quietly
    n = 0
    for row in rows:
        writer.append_row({name: _plain(value) for name, value in row.items()})
        n += 1
    writer.commit()
    files = []
    for number, file in enumerate((one for part in writer.batch_files for one in part), start=1):
        files.append(f"{folder.name}/{number:05d}.parquet")
        Path(file).rename(folder.parent / files[-1])
    shutil.rmtree(writer.data_path, ignore_errors=True)
    there = sum(pq.read_metadata(folder.parent / file).num_rows for file in files)
    if failures or there != n:
        why = f" ({words_of(failures[0])})" if failures else ""
        raise CollectionError(
            f"{n} rows of {folder.name!r} were written, and {there} are in the files{why}: make "
            "room on the disk, and export again"
        )
    return files, n


def _bulk_writer() -> ModuleType:
    """Import pymilvus' bulk writer, and leave the program's logging as it was: it sets that up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return importlib.import_module("pymilvus.bulk_writer")  # brings pandas' readers
    finally:
        for name in ("bulk_writer", "pymilvus.bulk_writer"):  # what goes wrong is raised
            logging.getLogger(name).setLevel(logging.CRITICAL)
        root.handlers[:], root.level = handlers, level


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Text) else value


def read_rows(place: str | Path, table: str = ROWS) -> Iterator[Row]:
    """Yield the rows of an export as Milvus gives them: "photos", or a side collection's suffix.

    Raises:
        SettingsError: no export.
        CollectionError: files that are missing or damaged.
    """
    folder, about = read_about(place)
    for part in parts_of(folder, about, table):
        yield from part


def _with_index(row: Row, mark: str, index: Mapping[str, Any]) -> Row:
    if row["key"] != f"{mark}/{MANIFEST}":
        return row
    value = json.dumps({**json.loads(row["value"]), "index": dict(index)})
    return {**row, "value": Text(value)}


def _fill(
    made: PhotoRows,
    place: Path,
    about: Mapping[str, Any],
    schema_only: bool,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write the rows of a collection, receipts first; returns how many photos were written."""
    store, tables = made.store, about["tables"]
    written = done = 0
    for side in (made.ledger, made.class_rows, Augmented(made), made.graph):
        if side is None or side.suffix not in tables:
            continue
        side.create()
        for part in () if schema_only else parts_of(place, about, side.suffix, side.schema()):
            store.write(side.name, part)
    layout = made.layout

    def check(row: Row) -> None:
        if layout.checksum(row) != row["checksum"]:
            raise ValueError(f"the row of {row['uri']!r:.200} has another checksum")

    schema = layout.schema()
    for part in () if schema_only else parts_of(place, about, ROWS, schema, check):
        uris = [row["uri"] for row in part]
        there = store.fetch(made.name, "uri", uris, ["checksum"])
        new = [row for row in part if there.get(row["uri"], {}).get("checksum") != row["checksum"]]
        if new:
            store.write(made.name, new)
        written += len(new)
        done += len(part)
        if progress is not None:
            progress(done, tables[ROWS]["rows"])
    return written
