"""A backup is the collection again, and a hostile one is refused."""

import hashlib
import json
import os
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from test_collection import TinyEncoder, encoding

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, CwfError, SettingsError
from cwf_milvus.photos import archives
from cwf_milvus.store import backup as backup_module
from cwf_milvus.store.backup import backup, restore

N = 9


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.server)])
def place(request, tmp_path):
    return tmp_path / "p.db" if request.param == "lite" else request.getfixturevalue("server").uri


@pytest.fixture
def photos(tmp_path):
    with InstanceCollection.create(
        tmp_path / "photos.db", "photos", TinyEncoder(), class_rows=True
    ) as made:
        encodings = [encoding(f"/p/{i} 🙂'\".jpg", i) for i in range(N)]
        made.upsert(encodings, [{"place": i, "of": {"deep": ["é", None]}} for i in range(N)])
        made.sidecar.write_note("certainty", {"kept": 1})
        yield made


@pytest.fixture
def file(photos, tmp_path):
    assert str(backup(photos, tmp_path / "b.zip")) == f"{N} rows of photos"
    return tmp_path / "b.zip"


def content(photos):
    rows = photos.raw_rows(list(photos.uris()))
    return {u: {**r, "descriptor": list(map(float, r["descriptor"]))} for u, r in rows.items()}


def test_a_restored_collection_is_the_one_that_was_backed_up(photos, file, place):
    name = "back_up_restored"
    assert restore(file, place, name).rows == N
    with InstanceCollection.open(place, name) as again:
        assert content(again) == content(photos)
        assert again.sidecar.state() == photos.sidecar.state()
        assert again.sidecar.note_of("certainty") == {"kept": 1}
        assert again.sidecar.note_of("restoring") is None
        assert again.class_rows.count() == photos.class_rows.count()
        assert again.verify().ok
        with pytest.raises(CollectionError, match="already: give another name"):
            restore(file, place, name)
        again.drop()


def test_others_may_write_while_a_backup_is_made(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_module, "_WRITTEN_BYTES", 150_000)  # 2 rows a part
    stop = threading.Event()

    def write():
        i = 0
        while not stop.is_set():
            photos.upsert([encoding(f"/new/{i}.jpg", 100 + i)], [{"place": i}])
            photos.set_metadata({"/p/3 🙂'\".jpg": {"place": 3, "turn": i}})
            if i:
                photos.remove(f"/new/{i - 1}.jpg")
            i += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        outcomes = [backup(photos, tmp_path / f"{i}.zip") for i in range(3)]
    finally:
        stop.set()
        writer.join()
    for i, outcome in enumerate(outcomes):
        assert outcome.damaged == []
        restore(tmp_path / f"{i}.zip", tmp_path / f"{i}.db")
        with InstanceCollection.open(tmp_path / f"{i}.db", "photos") as again:
            assert {uri for uri in again.uris() if uri.startswith("/p/")} == {
                uri for uri in photos.uris() if uri.startswith("/p/")
            }
            assert not again.verify().damaged


def test_a_restoration_that_was_ended_half_way_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_module, "_WRITTEN_BYTES", 150_000)
    file, place = tmp_path / "b.zip", tmp_path / "again.db"
    backup(photos, file)
    store, calls = backup_module._store, []

    def ended(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        store(*arguments)

    monkeypatch.setattr(backup_module, "_store", ended)
    with pytest.raises(KeyboardInterrupt):
        restore(file, place)
    monkeypatch.setattr(backup_module, "_store", store)
    assert restore(file, place).rows == N
    with InstanceCollection.open(place, "photos") as again:
        assert content(again) == content(photos)
        assert again.verify().ok


def test_damaged_rows_are_left_out_and_named(photos, tmp_path):
    uri = next(photos.uris())
    (row,) = photos.raw_rows([uri]).values()
    photos.store.write("photos", [{**row, "width": 1}])
    outcome = backup(photos, tmp_path / "b.zip")
    assert (outcome.rows, outcome.damaged) == (N - 1, [uri])
    assert "1 damaged rows are left out" in str(outcome)


def test_another_file_is_not_replaced_and_an_earlier_backup_is(photos, file):
    photos.remove(next(photos.uris()))
    assert backup(photos, file).rows == N - 1
    file.write_bytes(b"a photo")
    with pytest.raises(SettingsError, match="no backup: name another file"):
        backup(photos, file)
    assert file.read_bytes() == b"a photo"


# From strangers


def forged(file, change, about_too=True):
    """Change the parts of a backup, with checksums that are right again."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(parts.pop("about.json"))
    parts, about = change(parts, about) or (parts, about)
    if about_too:
        about["parts"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in parts.items()
        }
    data = json.dumps(about).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        archive.writestr("about.json", data)
        archive.comment = b"cwf-milvus backup " + hashlib.sha256(data).hexdigest().encode()


def replaced(part, edit):
    def change(parts, about):
        rows = json.loads(parts[part])
        edited = edit(rows)
        rows = edited if isinstance(edited, list) else rows
        return {**parts, part: json.dumps(rows).encode()}, about

    return change


HOSTILE = {
    "a climbing path": lambda parts, about: ({**parts, "photos/../../../x.json": b"[{}]"}, about),
    "a bomb": lambda parts, about: ({**parts, "photos/0.json": bytes(60 * 2**20)}, about),
    "deep nesting": lambda parts, about: ({**parts, "photos/0.json": b"[" * 200_000}, about),
    "no json": lambda parts, about: ({**parts, "photos/0.json": b"\x80\x04pickle"}, about),
    "no encoder": lambda parts, about: ({"photos/0.json": parts["photos/0.json"]}, about),
    "a newer format": lambda parts, about: (parts, {**about, "format": 99}),
    "another name": lambda parts, about: (parts, {**about, "collection": "../x"}),
    "about is a list": lambda parts, about: (parts, {"format": 1, "collection": ["a"]}),
    "a changed row": replaced("photos/0.json", lambda rows: rows[0].update(width=5)),
    "a row without a field": replaced(
        "photos/0.json", lambda rows: rows[0].pop("content") and None
    ),
    "a vector that is not finite": replaced(
        "photos/0.json", lambda rows: rows[0].update(descriptor="AADAfw==" * 6)
    ),
    "a short vector": replaced("photos/0.json", lambda rows: rows[0].update(descriptor="AAAAAA==")),
    "a row that is text": replaced("photos/0.json", lambda rows: ["row"]),
    "no manifest": replaced(
        "encoder/0.json", lambda rows: [row for row in rows if row["key"] != "manifest"]
    ),
    "a million lists": lambda parts, about: (
        {**parts, "photos/0.json": json.dumps([[[]] * 10] * 10**5).encode()},
        about,
    ),
    "a million names": lambda parts, about: (
        {
            **parts,
            "photos/0.json": json.dumps([dict.fromkeys(map(str, range(10**6 + 1)))]).encode(),
        },
        about,
    ),
    "an infinite width": replaced("photos/0.json", lambda rows: rows[0].update(width=1e999)),
    "an infinite class": replaced("photos/0.json", lambda rows: rows[0].update(class_ids=[1e999])),
    "another encoder": replaced(
        "encoder/0.json",
        lambda rows: [
            {**row, "value": "AA" if "/" in row["key"] else row["value"]} for row in rows
        ],
    ),
    "a huge dim": replaced(
        "encoder/0.json",
        lambda rows: [
            {**row, "value": row["value"].replace('"dim": 8', '"dim": 10000000000')} for row in rows
        ],
    ),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_backup_is_refused_in_one_line(file, tmp_path, hostile):
    forged(file, HOSTILE[hostile])
    with pytest.raises(CwfError) as error:
        restore(file, tmp_path / "new" / "p.db")
    assert len(str(error.value)) < 600
    assert not (tmp_path / "x.json").exists()


def test_every_damage_of_a_backup_is_refused(file, tmp_path):
    whole = file.read_bytes()
    numbers = np.random.default_rng(3)
    for i in range(60):
        damaged = bytearray(whole)
        if i % 3:
            damaged[numbers.integers(len(whole))] ^= 1 << numbers.integers(8)
        else:
            del damaged[numbers.integers(len(whole)) :]
        if bytes(damaged) == whole:
            continue
        file.write_bytes(damaged)
        try:
            rows = restore(file, tmp_path / f"{i}.db").rows
        except CwfError:
            continue
        assert rows == N  # a bit that nobody reads, such as a date


def test_rows_that_are_all_alike_are_no_bomb(tmp_path):
    alike = encoding("/p/a.jpg", 1)
    with InstanceCollection.create(tmp_path / "photos.db", "photos", TinyEncoder()) as photos:
        photos.upsert([replace(alike, uri=f"/p/{i}.jpg") for i in range(2000)])
        backup(photos, tmp_path / "b.zip")
    assert restore(tmp_path / "b.zip", tmp_path / "again.db").rows == 2000


def test_a_part_that_could_not_be_restored_is_not_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_module, "_PART_BYTES", 10_000)
    with pytest.raises(CollectionError, match=r"bytes, more than 10,000"):
        backup(photos, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_rows_of_many_values_are_spread_over_parts(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_module, "_MOST_VALUES", 50)
    backup(photos, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert "photos/0-1-0.json" in archive.namelist()
    assert restore(tmp_path / "b.zip", tmp_path / "again.db").rows == N
    with InstanceCollection.open(tmp_path / "again.db", "photos") as again:
        assert content(again) == content(photos)


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "directory"])
def test_what_is_no_file_is_no_backup(photos, tmp_path, monkeypatch, what):
    file = tmp_path / "b.zip"
    if what == "pipe":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "folder":
        file.mkdir()
    else:  # a long directory of the archive
        monkeypatch.setattr(archives, "_AT_ONCE", 10**5)
        with zipfile.ZipFile(file, "w") as archive:
            for i in range(1000):
                archive.writestr(f"{i:0200}", b"")
    with pytest.raises(SettingsError, match="cannot be read as a backup"):
        restore(file, tmp_path / "again.db")
    with pytest.raises(SettingsError, match="is no backup: name another file"):
        backup(photos, file)
