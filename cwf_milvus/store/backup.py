"""A collection as one file: its encoder and its rows, each part with its checksum.

The file is a ZIP archive of JSON, of parts of at most 64 MiB, which are read one at a time and
never unpacked to the disk. The archive's comment has the SHA-256 of ``about.json``, and that has
those of the parts; every row has its own as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from cwf_milvus.errors import CollectionError, CwfError, ImageError, SettingsError
from cwf_milvus.files import write_whole
from cwf_milvus.photos.archives import Bounded
from cwf_milvus.store.client import MESSAGE_BYTES, Store, new_mark
from cwf_milvus.store.layout import METADATA_BYTES, URI_BYTES, Layout
from cwf_milvus.store.packing import Text
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.refusals import check_name, checked_index
from cwf_milvus.store.sidecar import Sidecar, sidecar_schema
from cwf_milvus.store.verification import damaged_rows

FORMAT = 1
_COMMENT = b"cwf-milvus backup "
_ABOUT = "about.json"
_PART_BYTES = 64 * 2**20
_WRITTEN_BYTES = 32 * 2**20  # of a part of rows with the most metadata
_ABOUT_BYTES = 16 * 2**20
_MOST_RATIO = 100  # bytes to compressed bytes: JSON of ours has less than 5
_MOST_VALUES = 10**6  # of a part's lists, objects or names
_RESTORING = "restoring"
_SIDE_KEYS = ("manifest", "note/")  # and the encoder's files: not counters, nor moves


@dataclass
class Backup:
    """What a backup holds.

    Attributes:
        collection: its name.
        rows: photos in it.
        damaged: uris of photos whose rows are damaged, and so are not in it.
    """

    collection: str
    rows: int = 0
    damaged: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.rows} rows of {self.collection}"]
        if self.damaged:
            lines.append(
                f"{len(self.damaged)} damaged rows are left out, such as {self.damaged[0]!r}: "
                "`cwf-milvus repair` writes them anew"
            )
        return "\n".join(lines)


def backup(collection: PhotoRows, file: str | Path) -> Backup:
    """Write a collection to a file; others may write into it meanwhile.

    Each row is in it as it was at one moment, and every photo that was there all the time is in
    it. The graph and augmented descriptors are not: they are made from the rows.

    Args:
        collection: an open collection.
        file: where to; an earlier backup is replaced once the new one is whole.

    Raises:
        StoreError: Milvus failed.
        CollectionError: the encoder is damaged, or the collection was made anew meanwhile.
        SettingsError: the file cannot be written, or is no backup.
    """
    path, outcome = Path(file), Backup(collection.name)
    if path.exists() and not _is_backup(path):
        raise SettingsError(f"{str(file)!r} is there, and is no backup: name another file")
    try:
        write_whole(path, lambda part: _write(collection, part, outcome))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot write the backup {str(file)!r} ({error})") from error
    return outcome


def restore(
    file: str | Path, uri: str | Path, name: str | None = None, *, token: str | None = None
) -> Backup:
    """Make a collection of a backup; run again after a kill, it goes on.

    Args:
        file: of `backup`.
        uri: where to, as in `InstanceCollection.create`.
        name: of the collection; None for the one that it had.
        token: for a server.

    Raises:
        CollectionError: there is such a collection already, or the backup is damaged.
        SettingsError: the file is no backup, or of a newer version.
        StoreError: Milvus failed.
    """
    try:
        with _opened(file) as opened, zipfile.ZipFile(Bounded(opened)) as archive:
            about, identity = _about(archive, file)
            called = about["collection"] if name is None else name
            check_name(called)
            for part in about["parts"]:  # all, before anything is made
                _read(archive, part, about["parts"][part])
            store = Store(uri, token=token, make=True)
            try:
                return _restore(store, called, archive, about, identity)
            finally:
                store.close()
    except (
        *(OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError),
        ImageError,  # of a directory that is too long
    ) as error:
        raise SettingsError(f"{str(file)!r} cannot be read as a backup ({error})") from error
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CwfError):
            raise
        raise _damaged(f"its contents are none of a collection: {error!r:.200}") from error


def _write(collection: PhotoRows, path: Path, outcome: Backup) -> None:
    parts: dict[str, Any] = {}
    prefix = collection.sidecar.prefix
    collection.sidecar.state()  # damaged, it raises
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

        def put(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
            data = json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")
            if _is_dense(data) and len(rows) > 1:
                stem, half = name.removesuffix(".json"), len(rows) // 2
                put(f"{stem}-0.json", rows[:half])
                put(f"{stem}-1.json", rows[half:])
                return
            parts[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if len(data) > _PART_BYTES:
                raise CollectionError(
                    f"{name} of the backup would take {len(data):,} bytes, more than "
                    f"{_PART_BYTES:,}: the rows of {collection.name!r} are too large for one"
                )
            # What is all alike would be taken for a bomb.
            is_dense = len(zlib.compress(data, 1)) * _MOST_RATIO > len(data)
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if is_dense else zipfile.ZIP_STORED)

        for i, part in enumerate(_side_rows(collection)):
            put(f"encoder/{i}.json", part)
        layout = collection.layout
        row_bytes = layout.row_bytes + METADATA_BYTES
        if collection.class_rows is not None:
            row_bytes += layout.n_classes * (6 * layout.dim + URI_BYTES)  # float32 in base64
        at_once = max(1, _WRITTEN_BYTES // row_bytes)
        uris = collection.uris()
        for i, names in enumerate(iter(lambda: list(islice(uris, at_once)), [])):
            damaged = damaged_rows(collection, names)
            rows = collection.raw_rows([uri for uri in names if uri not in damaged])
            put(f"photos/{i}.json", [_told(row) for row in rows.values()])
            outcome.rows += len(rows)
            outcome.damaged += sorted(damaged)
            if collection.class_rows is not None:
                ranks = {uri: len(row["class_ids"]) for uri, row in rows.items()}
                put(f"classes/{i}.json", [_told(row) for row in collection.class_rows.of(ranks)])
        collection.follow()
        if collection.sidecar.prefix != prefix:
            raise CollectionError(f"{collection.name!r} was made anew meanwhile: back it up again")
        about = {
            "format": FORMAT,
            "collection": collection.name,
            "prefix": prefix,
            "rows": outcome.rows,
            "parts": parts,
        }
        data = json.dumps(about).encode()
        archive.writestr(_ABOUT, data)
        archive.comment = _COMMENT + hashlib.sha256(data).hexdigest().encode()


def _side_rows(collection: PhotoRows) -> Iterator[list[dict[str, str]]]:
    """Yield the entries of the encoder, and the notes, by keys without their prefix."""
    side, about = collection.sidecar, collection.sidecar.manifest
    begin = (*_SIDE_KEYS, *(known.get("place", f) + "/" for f, known in about["files"].items()))
    keys = [row["key"].removeprefix(side.prefix) for row in side.store.scan(side.name, "key")]
    wanted = iter([key for key in keys if key.startswith(begin)])
    while part := list(islice(wanted, 100)):
        asked = [side.prefix + key for key in part]
        rows = side.store.fetch(side.name, "key", asked, ["value"], row_bytes=65_536)
        yield [
            {"key": key.removeprefix(side.prefix), "value": row["value"]}
            for key, row in rows.items()
        ]


def _restore(
    store: Store, name: str, archive: zipfile.ZipFile, about: dict[str, Any], identity: str
) -> Backup:
    parts = about["parts"]
    side = [row for part in parts if part.startswith("encoder/") for row in _rows(archive, part)]
    manifest = json.loads({row["key"]: row["value"] for row in side}["manifest"])
    layout = Layout.of(manifest)
    if store.call("has_collection", name):
        sidecar = Sidecar(store, name)
        if sidecar.note_of(_RESTORING) != {"backup": identity}:
            raise CollectionError(
                f"the collection {name!r} is in {store.uri} already: give another name with "
                "--collection"
            )
    else:
        mark = new_mark()
        kept = [
            {"key": f"{mark}/{row['key']}", "value": Text(row["value"]), "vector": [0.0, 0.0]}
            for row in side
        ]
        store.ensure(f"{name}_encoder", sidecar_schema(), "vector", {"index_type": "FLAT"})
        for row in kept:
            store.write(f"{name}_encoder", [row])
        index = checked_index(None if store.is_lite else manifest.get("index"), store.is_lite)
        told = {"backup": identity}
        entry = {"key": f"{mark}/note/{_RESTORING}", "value": Text(json.dumps(told))}
        store.write(f"{name}_encoder", [{**entry, "vector": [0.0, 0.0]}])
        store.create(name, layout.schema(), "descriptor", index, mark=mark)
    collection, outcome = PhotoRows(store, name), Backup(name)
    if wrong := collection.sidecar.verify():
        raise _damaged(wrong[0][:200])
    for part in parts:
        rows = _rows(archive, part)
        if part.startswith("photos/"):
            _store(collection, rows)
            outcome.rows += len(rows)
        elif part.startswith("classes/") and collection.class_rows is not None:
            collection.class_rows.put(rows)
    collection.sidecar.write_note(_RESTORING, None)
    return outcome


def _store(collection: PhotoRows, rows: Sequence[dict[str, Any]]) -> None:
    layout = collection.layout
    for row in rows:
        if not {*layout.fields} - layout.beside <= row.keys():
            raise _damaged(f"a row lacks {min({*layout.fields} - layout.beside - row.keys())!r}")
        if layout.checksum(row) != row["checksum"]:
            raise _damaged(f"the row of {row['uri']!r:.200} has another checksum")
    told = [layout.with_metadata(row, layout.metadata_of(row)) for row in rows]
    at_once = max(1, MESSAGE_BYTES // (2 * layout.row_bytes))
    for start in range(0, len(told), at_once):
        part = told[start : start + at_once]
        with collection.ledger.storing([row["uri"] for row in part]):
            collection.store.write(collection.name, part)


def _about(archive: zipfile.ZipFile, file: str | Path) -> tuple[dict[str, Any], str]:
    """Return what a backup says of itself, and its SHA-256."""
    if not archive.comment.startswith(_COMMENT):
        raise SettingsError(f"{str(file)!r} is no backup of cwf-milvus, or was cut short")
    identity = archive.comment.removeprefix(_COMMENT).decode("ascii", "replace")
    data = _checked(archive, _ABOUT, _ABOUT_BYTES, identity)
    about = dict(json.loads(data))
    if about["format"] != FORMAT:
        raise SettingsError(
            f"{str(file)!r} is of format {about['format']!r:.50}, this version reads {FORMAT}: "
            "update cwf-milvus"
        )
    if {_ABOUT, *about["parts"]} != {*archive.namelist()}:
        raise _damaged("it has other parts than it says")
    return about, identity


def _rows(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    """Return the rows of a part that was read before, and is right."""
    try:
        data = _unpacked(archive, archive.getinfo(name), _PART_BYTES)
        if _is_dense(data):
            raise _damaged(f"its part {name!r:.100} has more values than a backup's")
        rows = json.loads(data.decode("utf-8", "surrogatepass"))
        return [_given(dict(row)) for row in rows]
    except RecursionError as error:
        raise _damaged(f"its part {name!r:.100} is nested too deep") from error


def _read(archive: zipfile.ZipFile, name: str, known: Mapping[str, Any]) -> None:
    _checked(archive, name, _PART_BYTES, str(known["sha256"]))


def _checked(archive: zipfile.ZipFile, name: str, most: int, digest: str) -> bytes:
    """Return a part; what it declares is believed only within bounds."""
    entry = archive.getinfo(name)
    if entry.file_size > most or entry.file_size > _MOST_RATIO * max(entry.compress_size, 1000):
        raise _damaged(f"its part {name!r:.100} declares {entry.file_size:,} bytes")
    try:
        data = _unpacked(archive, entry, most)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise _damaged(f"its part {name!r:.100}: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(f"its part {name!r:.100} has another checksum")
    return data


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """Return a part; of a larger one more than `most` bytes."""
    found: list[bytes] = []
    with archive.open(entry) as part:
        while sum(map(len, found)) <= most and (piece := part.read(2**20)):
            found.append(piece)
    return b"".join(found)


def _is_dense(data: bytes) -> bool:
    """Tell JSON that takes far more memory than its bytes: of brackets or names alone."""
    return data.count(b"[") + data.count(b"{") > _MOST_VALUES or data.count(b'":') > _MOST_VALUES


def _opened(file: str | Path) -> IO[bytes]:
    if not stat.S_ISREG(Path(file).stat().st_mode):
        raise OSError("it is a folder, pipe or device")
    return Path(file).open("rb")


def _damaged(what: str) -> CollectionError:
    return CollectionError(f"the backup is damaged ({what}): use another one")


def _is_backup(path: Path) -> bool:
    try:
        with _opened(path) as opened, zipfile.ZipFile(Bounded(opened)) as archive:
            return archive.comment.startswith(_COMMENT)
    except (OSError, zipfile.BadZipFile, ImageError):
        return False


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON holds it, vectors as bytes of float32 in base64."""
    told = dict(row)
    for name in ("descriptor", "vector"):
        if name in told:
            data = np.asarray(told[name], "<f4").tobytes()
            told[name] = base64.b64encode(data).decode()
    for name in ("class_ids", "class_scores"):
        if name in told:
            told[name] = [value.item() if hasattr(value, "item") else value for value in told[name]]
    return told


def _given(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("descriptor", "vector"):
        if name in row:
            row[name] = np.frombuffer(base64.b64decode(row[name], validate=True), "<f4")
            if not np.isfinite(row[name]).all():
                raise _damaged("a vector is not finite")
    return row
