"""Milvus Lite's folders on the disk: indexes that are not what the rows say, and half-made ones.

A FLAT index is a copy of the vectors of one Parquet file, in NumPy's format. Lite writes it in
place, so that a kill or a full disk leaves half of it, with which the database would never open;
and it reads it without a checksum, so that damaged bytes in it would give other hits. Without the
file Lite makes it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

_ENDS = ".flat.idx"
_UNMADE = "schema.json.tmp"  # what a schema is called until all of it is written


def drop_damaged(database: str) -> list[str]:
    """Delete the FLAT indexes that differ from their rows, and return their collections' names.

    Args:
        database: the folder, held by this process, with no collection loaded.

    Raises:
        OSError: a file that cannot be deleted.
    """
    dropped = set()
    for index in sorted(Path(database).glob(f"collections/*/partitions/*/indexes/*{_ENDS}")):
        rows, _, field = index.name.removesuffix(_ENDS).rpartition(".")
        vectors = _vectors(index.parent.parent / "data" / f"{rows}.parquet", field)
        if vectors is not None and not _is_copy(index, vectors):
            index.unlink()
            dropped.add(index.parents[3].name)
    return sorted(dropped)


def drop_unmade(database: str) -> None:
    """Delete the folders of collections that a kill left before Lite had written their schema.

    Lite does not count them as collections, and yet could make none of their names again.

    Args:
        database: the folder, held by this process.

    Raises:
        OSError: a folder that cannot be deleted.
    """
    for folder in Path(database).glob("collections/*"):
        if folder.is_dir() and {file.name for file in folder.iterdir()} <= {_UNMADE}:
            (folder / _UNMADE).unlink(missing_ok=True)
            folder.rmdir()


def _vectors(file: Path, field: str) -> np.ndarray | None:
    """Return the vectors of a Parquet file; None where Lite has to say what is wrong with it."""
    try:
        column = pq.read_table(file, columns=[field]).column(field).combine_chunks()
        return column.values.to_numpy().reshape(len(column), column.type.list_size)
    except (OSError, pa.ArrowException, KeyError, AttributeError, ValueError):
        return None


def _is_copy(index: Path, vectors: np.ndarray) -> bool:
    try:
        kept = np.load(index, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    if not isinstance(kept, np.memmap) or kept.offset + kept.nbytes != index.stat().st_size:
        return False
    same = kept.shape == vectors.shape and kept.dtype == vectors.dtype
    return same and kept.tobytes() == vectors.tobytes()
