"""What can be read of a damaged Milvus Lite database, saved into a new one beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.client import MESSAGE_BYTES, Store, new_mark
from cwf_milvus.store.graph import Graph, Head
from cwf_milvus.store.layout import Layout
from cwf_milvus.store.ledger import Ledger
from cwf_milvus.store.lite_files import LiteFiles, held
from cwf_milvus.store.packing import Text
from cwf_milvus.store.refusals import SIDES, checked_index
from cwf_milvus.store.sidecar import Sidecar, sidecar_schema

_MANIFEST = "manifest"
_ORIGIN = "salvaged-from.txt"  # beside the new database's collections


@dataclass
class Salvage:
    """What `salvage` did.

    Attributes:
        into: the new database.
        damaged: what is wrong with the files of the old one, a line each.
        saved: rows saved, by the collection's name.
        lost: what could not be saved, a line each.
    """

    into: str
    damaged: list[str] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def salvage(database: str | Path, into: str | Path) -> Salvage:
    """Save the collections of a database that are cwf-milvus's into a new one.

    The old one is left as it is. The new one appears under its name when all is in it.

    Args:
        database: the folder; its vector indexes are not needed, nor a schema or manifest.
        into: the new database, which must not be there.

    Raises:
        StoreError: the database is in use, or the new one is there or cannot be written.
        CollectionError: no collection of it can be saved; says what is lost.
    """
    source, target = Path(database), Path(into)
    if target.exists():
        raise StoreError(f"{str(target)!r} is there already: name another place with --into")
    outcome = Salvage(str(target))
    part = target.with_name(f"{target.stem}.unfinished.db")
    with held(source):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        folders = {path.name: path for path in source.glob("collections/*") if path.is_dir()}
        sides = {f"{name}_{side}" for name in folders for side in SIDES}
        for name in sorted(folders.keys() - sides):
            _save(name, folders, part, outcome)
    if not outcome.saved:
        raise CollectionError(
            f"nothing of {str(source)!r} can be saved: "
            + "; ".join(outcome.lost or ["it has no collection of cwf-milvus"])
        )
    (part / _ORIGIN).write_text(os.path.realpath(source))
    part.rename(target)
    return outcome


def is_saved_from(target: str | Path, database: str | Path) -> bool:
    """Tell whether a database is what was saved of another one earlier."""
    try:
        return (Path(target) / _ORIGIN).read_text() == os.path.realpath(database)
    except (OSError, ValueError):
        return False


def _save(name: str, folders: Mapping[str, Path], part: Path, outcome: Salvage) -> None:
    files = {
        one: LiteFiles(path)
        for one, path in folders.items()
        if one == name or one.removeprefix(f"{name}_") in SIDES
    }
    rows, encoder = files[name], files.get(f"{name}_encoder")
    for one in files.values():
        one.check()
    kept = {row["key"]: row["value"] for row in encoder.rows("key")} if encoder else {}
    prefix, manifest = _manifest(kept, rows.mark())
    if manifest is None:
        outcome.lost.append(
            f"the encoder of {name!r}, without which its rows are of no use: restore a backup, or "
            "index the photos again into another database"
        )
    else:
        mark = prefix.rstrip("/") or new_mark()
        store = Store(part, make=True)
        try:
            _save_encoder(store, name, {_under(mark, prefix, k): v for k, v in kept.items()})
            if f"{name}_ledger" in files:
                _save_receipts(store, name, mark, prefix, files[f"{name}_ledger"])
            layout = Layout.of(manifest)
            index = manifest.get("index") or checked_index(None, True)
            store.create(name, layout.schema(), "descriptor", index, mark=mark)
            outcome.saved[name] = _write(store, name, layout.row_bytes, _sound(rows, layout))
            if f"{name}_graph" in files:
                _note_graph(store, name, files[f"{name}_graph"])
            if f"{name}_augmented" in files:
                outcome.lost.append(
                    f"the augmented descriptors of {name!r}, which `cwf-milvus augment` makes again"
                )
        finally:
            store.close()
    outcome.damaged += [line for one in files.values() for line in one.damaged]


def _manifest(kept: Mapping[str, str], mark: str) -> tuple[str, dict[str, Any] | None]:
    """Return the prefix of a collection's keys and its manifest, None for one that is lost."""
    found = {}
    for key, value in kept.items():
        if key.endswith(_MANIFEST):
            try:
                about = dict(json.loads(value))
                Layout.of(about)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            found[key.removesuffix(_MANIFEST)] = about
    if f"{mark}/" in found:
        return f"{mark}/", found[f"{mark}/"]
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _under(mark: str, prefix: str, key: str) -> str:
    """Return a key as a collection with a mark has it; those of version 0.1.0 had none."""
    return key if prefix else f"{mark}/{key}"


def _save_encoder(store: Store, name: str, kept: Mapping[str, str]) -> None:
    side = f"{name}_{Sidecar.suffix}"
    store.ensure(side, sidecar_schema(), "vector", {"index_type": "FLAT"})
    rows = ({"key": k, "value": Text(v), "vector": [0.0, 0.0]} for k, v in kept.items())
    _write(store, side, 65_536, rows)


def _save_receipts(store: Store, name: str, mark: str, prefix: str, files: LiteFiles) -> None:
    ledger = Ledger(store, name, f"{mark}/")
    ledger.create()
    rows = (
        {
            "key": _under(mark, prefix, row["key"]),
            "uri": Text(row["uri"]),
            "began": int(row["began"]),
            "ended": int(row["ended"]),
            "vector": [0.0, 0.0],
        }
        for row in files.rows("key")
    )
    _write(store, ledger.name, 8192, rows)


def _sound(files: LiteFiles, layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield the rows that Milvus takes; whether they are right, their checksums tell."""
    for row in files.rows("uri"):
        try:
            descriptor = np.asarray(row["descriptor"], np.float32)
            if descriptor.shape != (layout.dim,) or not np.isfinite(descriptor).all():
                continue
            whole = {**row, "descriptor": descriptor}
            for one in layout.fields:
                if isinstance(whole.get(one), str):
                    whole[one] = Text(whole[one])
            del whole["_seq"]
            whole.pop("_partition", None)
            if {*layout.fields} - layout.beside <= whole.keys() and whole["uri"]:
                yield whole
        except (KeyError, ValueError, TypeError):
            continue


def _note_graph(store: Store, name: str, files: LiteFiles) -> None:
    """Leave a graph that is to be built, as the old one was made."""
    try:
        told = next(row["edges"] for row in files.rows("uri") if row["uri"] == "")
        head = replace(Head(**json.loads(told)), complete=False, rows=None, next=0)
    except (StopIteration, ValueError, TypeError, KeyError):
        head = Head(10, True)
    graph = Graph(store, name)
    graph.create()
    graph.write_head(head)


def _write(store: Store, name: str, row_bytes: int, rows: Iterator[dict[str, Any]]) -> int:
    n_rows, at_once = 0, max(1, min(1000, MESSAGE_BYTES // (2 * row_bytes)))
    while part := list(islice(rows, at_once)):
        store.write(name, part)
        n_rows += len(part)
    return n_rows
