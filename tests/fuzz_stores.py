"""Targets of `fuzz.py`: what is stored, in Milvus and in the files of backups and exports."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzz_targets import Made, chosen, numbered


def vectors(folder: Path) -> Made:
    import numpy as np
    from test_collection import encoding

    from cwf_milvus.encode.encoding import Encoding
    from cwf_milvus.errors import CollectionError
    from cwf_milvus.method.int4 import Int4Vectors, inner_products
    from cwf_milvus.method.keypoint_codes import DIM, Keypoints
    from cwf_milvus.store.kinds import STORED, Room
    from cwf_milvus.store.packing import PRECISIONS

    most = {"descriptor": 1, "classes": 3, "regions": 5, "keypoints": 40}
    rooms = [Room(dim, one, most) for dim in (8, 7) for one in PRECISIONS]  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    points = Keypoints(
        *(rng.random(shape, np.float32) * 9 for shape in ((5, 2), 5, 5, (5, DIM))), 640, 480
    )

    def made(dim: int) -> Encoding:
        return replace(encoding(dim=dim), keypoints=points)

    cases = [(room, kind) for room in rooms for kind in STORED if kind != "descriptor"]

    def target(data: bytes) -> None:
        number, rest = chosen(data, 2 * len(cases))
        room, kind = cases[number // 2]
        text = base64.b64encode(rest).decode() if number % 2 else rest.decode("utf-8", "replace")
        *fields, last = STORED[kind].fields(room)
        row = dict.fromkeys(fields, "") | {last: text}
        if kind == "regions" and number % 4 > 1:
            row = dict.fromkeys([*fields, last], text)
        with suppress(CollectionError):
            for array in STORED[kind].read(row, room).values():
                if isinstance(array, Int4Vectors):
                    inner_products(np.ones((2, room.dim), np.float32), [array])
                if not isinstance(array, Keypoints):
                    np.asarray(array, np.float32)
                else:
                    array[:3].nbytes  # noqa: B018

    wholes = []
    for number in range(2 * len(cases)):
        room, kind = cases[number // 2]
        packed = STORED[kind].pack(made(room.dim), room)
        text = str(packed[STORED[kind].fields(room)[-1]])
        wholes.append(base64.b64decode(text) if number % 2 else text.encode())
    return target, numbered(wholes)


def _filled(place: Path, n: int, **options: Any) -> None:
    """Make a collection whose encoder is small, so that its rows are what is changed."""
    from test_copying import TinyEncoder, filled

    class Small(TinyEncoder):
        def state(self) -> dict[str, bytes]:
            return {"settings.json": super().state()["settings.json"], "empty": b""}

    filled.__globals__["TinyEncoder"] = Small
    filled(place, n, **options)


class _Kept:
    """A store that holds keys and values alone, as a damaged Milvus might give them."""

    uri = "here"

    def __init__(self, kept: dict[str, str], mark: str) -> None:
        self.kept, self.mark = kept, mark

    def call(self, *_: object, **__: object) -> bool:
        return True

    def load(self, *_: object) -> None:
        return

    def mark_of(self, _: str) -> str:
        return self.mark

    def scan(self, _: str, key: str, **__: object) -> list[dict[str, str]]:
        return [{key: one} for one in self.kept]

    def fetch(self, _: str, key: str, keys: list[str], *__: object, **___: object) -> Any:
        return {k: {key: k, "value": self.kept[k]} for k in keys if k in self.kept}


def sidecar(folder: Path) -> Made:
    """The encoder and the notes of a collection, of which only the values are another's."""
    from small_encoders import tiny

    from cwf_milvus.encode.saved import SETTINGS_FILE, Saved
    from cwf_milvus.errors import CwfError
    from cwf_milvus.store.calibration import model_of
    from cwf_milvus.store.layout import Layout
    from cwf_milvus.store.sidecar import MANIFEST, Sidecar

    state = {SETTINGS_FILE: tiny(whitening=None).state()[SETTINGS_FILE]}
    files = {
        name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()}
        for name, one in state.items()
    }
    told = {"format": 3, "fingerprint": "a", "dim": 8, "n_classes": 3, "n_regions": 5}
    manifest = {**told, "n_keypoints": 0, "precision": "int8", "settings": {}, "files": files}
    curve = {"weight": 1.5, "bias": 1.0, "threshold": 0.5}
    note = {"origin": "here", "score_alone": curve, "verified": None}
    whole = {
        f"m/{MANIFEST}": json.dumps(manifest),
        "m/note/certainty": json.dumps(note),
        **{f"m/{name}/0": base64.b64encode(one).decode() for name, one in state.items()},
    }
    keys = list(whole)

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(keys))
        kept = {**whole, keys[number]: rest.decode("utf-8", "replace")}
        for mark in ("m", ""):
            with suppress(CwfError):
                read = Sidecar(_Kept(kept, mark), "photos")  # type: ignore[arg-type]
                Layout.of(read.manifest).schema()
                with suppress(CwfError):
                    model_of(read)
                read.verify()
                Saved.from_files(read.state())

    return target, numbered([value.encode() for value in whole.values()])


def filter(folder: Path) -> Made:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.errors import FilterError, SettingsError
    from cwf_milvus.store.browsing import groups, photos_after

    _filled(folder / "p.db", 9)
    photos = InstanceCollection.open(folder / "p.db", "photos")

    def target(data: bytes) -> None:
        number, rest = chosen(data, 2)
        text = rest.decode("utf-8", "surrogateescape" if number else "replace")
        with suppress(FilterError, SettingsError):
            if number == 0:
                photos_after(photos, "", limit=5, filter=text)
            else:
                groups(photos, text)

    words = ["year > 2015 and place like 'a%'", 'uri in ["/p/1.jpg", "x"] or not (n == 1.5e3)']
    words += ["array_contains(class_ids, 5) && width != 640", "json_contains(of['deep'], null)"]
    return target, [b"\0" + one.encode() for one in words] + [b"\1place"]


# Databases


def _database(folder: Path) -> tuple[Path, list[Path]]:
    """Return a small database with files of every kind, and one file of each kind."""
    from damaged_database import ROOT, TARGETS

    folder.mkdir()
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -9
    place = folder / "photos.db"
    found = [sorted(place.glob(f"collections/{one}"))[-1:] for one in TARGETS.values()]
    names = [file.relative_to(place) for kind in found for file in kind]
    return place, [*names, Path("collections/photos_encoder/schema.json")]


def _make(folder: Path) -> None:
    """Make the database in a process that is killed, so that it has a log."""
    from test_copying import some

    from cwf_milvus.collection import InstanceCollection

    place, rows = folder / "photos.db", some(9)
    told: list[dict[str, Any]] = [{"year": 2000 + i} for i in range(9)]
    _filled(place, 5)
    with InstanceCollection.open(place, "photos") as photos:
        photos.upsert(rows[3:6], told[3:6])
        photos.remove(["/p/3.jpg"])
    photos = InstanceCollection.open(place, "photos")
    photos.upsert(rows[5:], told[5:])
    photos.remove(["/p/6.jpg"])
    os.kill(os.getpid(), 9)


def files(folder: Path) -> Made:
    """The files of a database, read past Milvus Lite."""
    from cwf_milvus.store.lite_files import LiteFiles, damaged_files

    place, names = _database(folder / "d")
    wholes = [(place / name).read_bytes() for name in names]

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(names))
        file = place / names[number]
        file.write_bytes(rest)
        try:
            damaged_files(place, whole=True)
            one = LiteFiles(place / "collections" / names[number].parts[1])
            one.mark()
            list(one.rows("uri" if names[number].parts[1] == "photos" else "key"))
        finally:
            file.write_bytes(wholes[number])

    return target, numbered(wholes)


def salvage(folder: Path) -> Made:
    from cwf_milvus.errors import CollectionError, StoreError
    from cwf_milvus.store import salvage as module

    place, names = _database(folder / "d")
    wholes = [(place / name).read_bytes() for name in names]
    into = folder / "new.db"

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(names))
        (place / names[number]).write_bytes(rest)
        try:
            with suppress(CollectionError, StoreError):
                module.salvage(place, into)
        finally:
            (place / names[number]).write_bytes(wholes[number])
            for one in folder.glob("new*.db"):
                shutil.rmtree(one)

    return target, numbered(wholes)


def open(folder: Path) -> Made:
    """A damaged database, opened and verified as any other."""
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.errors import CwfError

    place, names = _database(folder / "d")
    wholes = [(place / name).read_bytes() for name in names]
    copy = folder / "copy.db"

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(names))
        shutil.copytree(place, copy)
        (copy / names[number]).write_bytes(rest)
        try:
            with suppress(CwfError), InstanceCollection.open(copy, "photos") as photos:
                photos.verify()
                photos.info()
        finally:
            shutil.rmtree(copy)

    return target, numbered(wholes)


# Backups and exports


def _backup(folder: Path) -> Path:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.store.backup import backup as write

    _filled(folder / "p.db", 3, class_rows=True)
    with InstanceCollection.open(folder / "p.db", "photos") as photos:
        write(photos, folder / "b.zip")
    return folder / "b.zip"


def _emptied(folder: Path) -> tuple[Path, Callable[[], None]]:
    """Return a database that stays open, which saves its start, and what empties it."""
    from cwf_milvus.store.client import Store

    store = Store(folder / "new.db", make=True)

    def empty() -> None:
        for name in store.call("list_collections"):
            store.call("drop_collection", name)

    return folder / "new.db", empty


def _restored(file: Path, into: Path, empty: Callable[[], None]) -> None:
    from cwf_milvus.errors import CollectionError, SettingsError, StoreError
    from cwf_milvus.store.backup import restore

    try:
        with suppress(CollectionError, SettingsError, StoreError):
            restore(file, into)
    finally:
        empty()


def backup(folder: Path) -> Made:
    """The bytes of a backup; what its checksums do not let pass ends early."""
    file = _backup(folder)
    whole, place = file.read_bytes(), _emptied(folder)

    def target(data: bytes) -> None:
        file.write_bytes(data)
        _restored(file, *place)

    return target, [whole]


def backup_parts(folder: Path) -> Made:
    """A part of a backup, with checksums that are right: its own, the archive's, and the rows'."""
    from cwf_milvus.store.layout import Layout

    file = _backup(folder)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(parts.pop("about.json"))
    names = [*parts, "about.json"]
    layout, place = Layout(8, 3, 5, "int4"), _emptied(folder)

    def summed(data: bytes) -> bytes:
        """Return rows with the checksums that they would have to have."""
        with suppress(Exception):
            rows = json.loads(data)
            for row in rows:
                given = {**row, "descriptor": _floats(row["descriptor"])}
                row["checksum"] = layout.checksum(given)
            return json.dumps(rows).encode()
        return data

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(names))
        changed, told = dict(parts), about
        if number < len(parts):
            is_rows = names[number].startswith("photos/")
            changed[names[number]] = summed(rest) if is_rows and data[0] < 128 else rest
        sums = {
            k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()}
            for k, v in changed.items()
        }
        said = json.dumps({**told, "parts": sums}).encode()
        if number == len(parts):
            said = rest
            for name, one in sums.items():
                said = said.replace(f"@{name}".encode(), one["sha256"].encode())
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, part in {**changed, "about.json": said}.items():
                archive.writestr(name, part)
            archive.comment = b"cwf-milvus backup " + hashlib.sha256(said).hexdigest().encode()
        file.write_bytes(stream.getvalue())
        _restored(file, *place)

    marked = {k: {"bytes": len(v), "sha256": f"@{k}"} for k, v in parts.items()}
    last = json.dumps({**about, "parts": marked}).encode()
    return target, numbered([*parts.values(), last])


def _floats(text: str) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(text), "<f4")


def export(folder: Path) -> Made:
    """The files of an export, read and imported."""
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.errors import CollectionError, SettingsError, StoreError
    from cwf_milvus.store.parquet import export_collection, import_collection, read_rows

    _filled(folder / "p.db", 3)
    with InstanceCollection.open(folder / "p.db", "photos") as photos:
        photos.build_graph(neighbours=2, verify=False, progress=False)
        export_collection(photos, folder / "e")
    names = [folder / "e/export.json", *sorted((folder / "e").glob("*/*.parquet"))]
    wholes = [file.read_bytes() for file in names]
    place, empty = _emptied(folder)
    tables = ["photos", "encoder", "graph", "ledger"]

    def target(data: bytes) -> None:
        number, rest = chosen(data, len(names))
        names[number].write_bytes(rest)
        try:
            for table in tables:
                with suppress(SettingsError, CollectionError):
                    list(read_rows(folder / "e", table))
            with suppress(SettingsError, CollectionError, StoreError):
                import_collection(folder / "e", place)
        finally:
            names[number].write_bytes(wholes[number])
            empty()

    return target, numbered(wholes)


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
