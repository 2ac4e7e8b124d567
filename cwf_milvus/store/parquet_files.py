"""The files of an export, read as hostile: what they declare is held against bounds first."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pymilvus import CollectionSchema, DataType

from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.files import read_whole
from cwf_milvus.store.packing import Text
from cwf_milvus.store.sidecar import MANIFEST, Sidecar

FORMAT = 1
ABOUT = "export.json"
ROWS = "photos"

Row = dict[str, Any]

_ABOUT_BYTES = 16 * 2**20
_FOOTER_BYTES = 16 * 2**20
_GROUP_BYTES = 512 * 2**20  # unpacked; the bulk writer makes them of 32 MiB, or of 1,000 rows
_GROUP_ROWS = 10**6
_VALUE_BYTES = 2**18  # of a text; Milvus takes 65,535, and JSON may write a letter as six
_LIST_ITEMS = 2**15  # of a vector; Milvus takes as many
_COLUMNS = 200
_CODECS = ("SNAPPY", "UNCOMPRESSED")  # which never unpack to more than 21 times their bytes
_TEXTS = (DataType.VARCHAR, DataType.SPARSE_FLOAT_VECTOR)
_LIMITS = {"thrift_string_size_limit": _FOOTER_BYTES, "thrift_container_size_limit": 10**6}
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError),
    pa.ArrowException,
)


def is_export(folder: Path) -> bool:
    """Tell whether a folder is one of an export."""
    return (folder / ABOUT).is_file()


def read_about(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return an export's place, and what it says of itself, whose types and names are right.

    Raises:
        SettingsError: no export, or of a newer version.
    """
    place = Path(folder)
    try:
        about = json.loads(read_whole(place / ABOUT, _ABOUT_BYTES))
        if about["format"] == FORMAT:
            _check_about(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(
            f"{str(folder)!r} is no export ({error!r:.200}): name a folder that `cwf-milvus "
            "export` made"
        ) from error
    if about["format"] != FORMAT:
        raise SettingsError(
            f"{str(folder)!r} is an export of format {about['format']!r:.50}, this version reads "
            f"{FORMAT}: update cwf-milvus"
        )
    return place, about


def manifest_of(place: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an exported collection.

    Raises:
        CollectionError: it is missing or damaged.
    """
    for part in parts_of(place, about, Sidecar.suffix):
        for row in part:
            if row["key"] == f"{about['mark']}/{MANIFEST}":
                try:
                    return dict(json.loads(row["value"]))
                except (ValueError, TypeError, RecursionError) as error:
                    raise _damaged(place, error) from error
    raise CollectionError(f"the export {str(place)!r} has no encoder: export again")


def parts_of(
    place: Path,
    about: Mapping[str, Any],
    table: str,
    schema: CollectionSchema | None = None,
    check: Callable[[Row], object] = lambda _: None,
) -> Iterator[list[Row]]:
    """Yield the rows of a table, as many at once as go into a message.

    Args:
        place: of the export.
        about: what it says of itself.
        table: "photos", or the suffix of a side collection.
        schema: of the collection that the rows are for; None for that which the export tells.
        check: called with each row; what it raises is damage.

    Raises:
        CollectionError: files that are missing or damaged.
    """
    told = about["tables"][table]
    fields = told["schema"]["fields"] if schema is None else schema.to_dict()["fields"]
    kinds = {field["name"]: int(field["type"]) for field in fields}
    seen = 0
    try:
        for name in told["files"]:
            path = _regular(place / table / Path(name).name)
            with pq.ParquetFile(path, **_LIMITS) as file:
                names, footer = file.schema_arrow.names, file.metadata
                _check_file(footer, names, kinds)
            # A text of a dictionary is not written out for each of its rows.
            short = [one for one in names if kinds.get(one, DataType.VARCHAR) in _TEXTS]
            with pq.ParquetFile(path, metadata=footer, read_dictionary=short, **_LIMITS) as file:
                for batch in file.iter_batches(batch_size=100):
                    seen += len(batch)
                    if seen > told["rows"]:
                        raise ValueError("it has more rows than it says")
                    rows = [_as_row(row, kinds) for row in _checked(batch).to_pylist()]
                    for row in rows:
                        check(row)
                    yield rows
    except _DAMAGE as error:
        raise _damaged(place, error) from error
    if seen != told["rows"]:
        raise CollectionError(
            f"{table!r} of the export {str(place)!r} has {seen} rows, and had {told['rows']}: "
            "export again"
        )


def _check_about(about: Mapping[str, Any]) -> None:
    """Raise ValueError, or what a wrong type raises, for what no export says."""
    if not isinstance(about["collection"], str) or not re.fullmatch("[0-9a-f]{32}", about["mark"]):
        raise ValueError("its name or mark is none")
    tables = about["tables"]
    if not {ROWS, Sidecar.suffix} <= tables.keys() or len(tables) > 20:
        raise ValueError("it lacks a table")
    for table, told in tables.items():
        if not re.fullmatch("[a-z_]+", table) or type(told["rows"]) is not int:
            raise ValueError(f"its table {table!r:.50} is none")
        files = told["files"]
        names = [re.fullmatch(rf"{table}/[0-9]+\.parquet", name) for name in files]
        if not isinstance(files, list) or not all(names) or len({*files}) != len(files):
            raise ValueError(f"the files of {table!r} are none that export writes")
        for field in told["schema"]["fields"]:
            if not isinstance(field["name"], str) or type(field["type"]) is not int:
                raise ValueError(f"the fields of {table!r} are none")


def _regular(file: Path) -> Path:
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(f"{file.name} is a pipe, folder or device")
    return file


def _check_file(about: pq.FileMetaData, names: list[str], kinds: Mapping[str, int]) -> None:
    if about.num_columns > _COLUMNS or not {*names} <= {*kinds, "$meta"}:
        raise ValueError("it has other columns")
    if not {*kinds} <= {*names} or len({*names}) != len(names):
        raise ValueError("it lacks a column, or has one twice")
    for i in range(about.num_row_groups):
        group = about.row_group(i)
        columns = [group.column(k) for k in range(group.num_columns)]
        if any(column.compression not in _CODECS for column in columns):
            raise ValueError("it is packed otherwise than export packs")
        size = sum(max(0, column.total_uncompressed_size) for column in columns)
        most = max((column.num_values for column in columns), default=0)
        if size > _GROUP_BYTES or group.num_rows > _GROUP_ROWS:
            raise ValueError(f"it declares {size:,} bytes at once")
        if most > _LIST_ITEMS * max(1, group.num_rows):
            raise ValueError(f"it declares {most:,} numbers of {group.num_rows} rows")


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows none of whose values is longer than Milvus takes."""
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            values = column.dictionary
            longest = pc.max(pc.binary_length(values)).as_py() or 0
        elif pa.types.is_list(column.type):
            longest = 8 * (pc.max(pc.list_value_length(column)).as_py() or 0)
        else:
            longest = 0
        if longest > _VALUE_BYTES:
            raise ValueError(f"a value of {longest:,} bytes")
    return batch


def _as_row(row: Row, kinds: Mapping[str, int]) -> Row:
    extra = dict(json.loads(row.pop("$meta", None) or "{}"))
    for name, kind in kinds.items():
        if kind == DataType.SPARSE_FLOAT_VECTOR:
            row[name] = {int(number): value for number, value in json.loads(row[name]).items()}
            vector = [*row[name].values()]
        elif kind == DataType.FLOAT_VECTOR:
            vector = row[name]
        else:
            vector = []
            if kind == DataType.VARCHAR and not isinstance(row[name], str):
                raise TypeError(f"{name!r} of a row is no text")
        if not np.isfinite(np.asarray(vector, np.float64)).all():
            raise ValueError(f"{name!r} of a row is not finite")
    if not extra.keys().isdisjoint(row):
        raise ValueError("a row has a field twice")
    texts = {name: Text(value) for name, value in row.items() if isinstance(value, str)}
    return {**row, **texts, **extra}


def _damaged(place: Path, error: Exception) -> CollectionError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return CollectionError(f"the export {str(place)!r} is damaged ({words}): export again")
