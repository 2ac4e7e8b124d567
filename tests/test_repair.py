"""What is damaged is seen, and brought back by one command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from damaged_database import DAMAGES, REMOVED, TARGETS, damage, make
from small_encoders import crops, network_built_once, tiny

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import CollectionError, CwfError, StoreError
from cwf_milvus.index.repair import repair
from cwf_milvus.store.lite_files import LiteFiles


@pytest.fixture(scope="module", autouse=True)
def one_network():
    with network_built_once():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The database as a kill left it, and the rows that must be there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    database = make(folder)
    shutil.copytree(database, folder / "copy.db")
    return database, rows_of(folder / "copy.db")


@pytest.fixture
def database(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "photos.db")
    return tmp_path / "photos.db"


def rows_of(database):
    with InstanceCollection.open(database, "photos") as photos:
        rows = photos.raw_rows(list(photos.uris()))
    return {
        uri: {n: v for n, v in row.items() if n != "descriptor"} | {"d": list(row["descriptor"])}
        for uri, row in rows.items()
    }


def alike(mended, right):
    """Hold rows against each other; scores differ in their last bit with the batch's size."""
    assert mended.keys() == right.keys()
    for uri, row in mended.items():
        assert np.allclose(row["class_scores"], right[uri]["class_scores"], rtol=1e-5)
        for name in row.keys() - {"class_scores", "checksum"}:
            assert row[name] == right[uri][name], name


def without_update(rows, target):
    """Return rows without the one that was updated in the log: its former state is whole."""
    return {u: r for u, r in rows.items() if target != "write-ahead log" or Path(u).stem != "1"}


def told(rows):
    return {uri: {"place": row["place"]} for uri, row in rows.items()}


def is_found(database):
    """Whether opening or `verify` tells of a damage; None where there is nothing to tell."""
    try:
        with InstanceCollection.open(database, "photos") as photos:
            return True if not photos.verify().ok else None
    except CwfError as error:
        return "repair" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore:the vector index of:UserWarning")
def test_every_damage_of_a_file_is_found_or_harmless_and_mended(
    undisturbed, database, tmp_path, target, kind
):
    damage(database, target, kind)
    looked_at = tmp_path / "looked_at.db"
    shutil.copytree(database, looked_at)
    found = is_found(looked_at)
    if not found:
        assert without_update(rows_of(looked_at), target) == without_update(undisturbed[1], target)
    before = {p: p.read_bytes() for p in database.rglob("*") if p.is_file() and p.name != "LOCK"}
    if target == "encoder":
        with pytest.raises(CollectionError, match="the encoder of 'photos', without which"):
            repair(database, "photos", progress=False)
        return
    outcome = repair(database, "photos", metadata=told(undisturbed[1]), progress=False)
    assert outcome.ok, str(outcome)
    if outcome.salvage is not None:
        assert {path: path.read_bytes() for path in before} == before
    alike(rows_of(outcome.uri), undisturbed[1])


def test_lost_photos_are_written_anew_and_lost_fields_are_told(database, tmp_path):
    damage(database, "first segment", "truncated")
    outcome = repair(database, "photos", progress=False)
    assert outcome.ok
    assert outcome.uri.endswith("photos.repaired.db")
    assert "the fields of 5 of these rows may be lost" in str(outcome)
    assert "first segment" not in str(outcome)
    assert "data_000001_" in str(outcome)
    assert repair(database, "photos", progress=False).uri == outcome.uri  # as after a kill
    (tmp_path / "other.db").mkdir()
    with pytest.raises(CwfError, match="there already"):
        repair(database, "photos", into=tmp_path / "other.db", progress=False)


def test_a_record_that_claims_more_bytes_than_there_is_memory_is_found(database):
    (log,) = database.glob("collections/photos/wal/wal_delta_*.arrow")
    data = log.read_bytes()
    source = pa.BufferReader(data)
    pa.ipc.read_message(source)
    start = source.tell()
    size = pa.ipc.read_message(source).body.size
    at = data.index(size.to_bytes(8, "little"), start)
    log.write_bytes(data[:at] + (size + 2**58).to_bytes(8, "little") + data[at + 8 :])
    with pytest.raises(StoreError, match="more bytes than there is memory"):
        InstanceCollection.open(database, "photos")
    assert repair(database, "photos", progress=False).ok


def test_a_log_whose_names_are_no_text_is_passed_over(database):  # found by a fuzzer
    (log,) = database.glob("collections/photos/wal/wal_data_*.arrow")
    log.write_bytes(log.read_bytes().replace(b"uri", b"\x97ri"))
    files = LiteFiles(database / "collections" / "photos")
    assert len(list(files.rows("uri"))) > 5


def test_a_photo_that_is_gone_too_is_named_as_lost(undisturbed, database):
    lost, kept = [uri for uri in undisturbed[1] if uri.endswith(("/3.png", "/4.png"))]
    with InstanceCollection.open(database, "photos") as photos:
        photos.store.delete("photos", "uri", [lost, kept])
    photo = Path(lost).rename(f"{lost}.away")
    try:
        outcome = repair(database, "photos", progress=False)
    finally:
        photo.rename(lost)
    assert not outcome.ok
    assert [uri for uri, _ in outcome.unreadable] == [lost]
    assert outcome.written == [kept]
    assert f"lost: {lost!r}: cannot read" in str(outcome)


def test_adding_a_photo_again_mends_its_damaged_row(undisturbed, database):
    uri = min(undisturbed[1])
    with InstanceCollection.open(database, "photos") as photos:
        (row,) = photos.raw_rows([uri]).values()
        photos.store.write("photos", [{**row, "class_vectors_0": "AAAA"}])
        assert not photos.verify().ok
        report = photos.add(sorted(undisturbed[1]), progress=False)
        assert (report.updated, report.skipped) == (1, len(undisturbed[1]) - 1)
        assert photos.verify().ok
    alike(rows_of(database), undisturbed[1])


def test_a_row_with_one_damaged_field_is_bit_for_bit_what_it_was(undisturbed, database):
    uri = min(undisturbed[1])
    with InstanceCollection.open(database, "photos") as photos:
        (row,) = photos.raw_rows([uri]).values()
        photos.store.write("photos", [{**row, "class_vectors_0": "AAAA"}])
    outcome = repair(database, "photos", progress=False)
    assert (outcome.ok, outcome.written, outcome.proven) == (True, [uri], 1)
    assert rows_of(database) == undisturbed[1]


def test_repair_of_what_is_whole_changes_nothing(undisturbed, database):
    outcome = repair(database, "photos", progress=False)
    assert (outcome.ok, outcome.uri, outcome.salvage) == (True, str(database), None)
    assert [outcome.written, outcome.removed, outcome.made_again] == [[], [], []]
    assert rows_of(database) == undisturbed[1]
    json.dumps(outcome.to_dict())
    assert not any(Path(uri).name in REMOVED for uri in rows_of(database))


# What is made of the rows


@pytest.fixture
def with_sides(tmp_path):
    """A collection with class vectors' rows, a graph and augmented descriptors."""
    photos = {f"/p/{i}": pixels for i, pixels in enumerate(crops(6))}
    uri, encoder = tmp_path / "photos.db", tiny(whitening=None)
    with InstanceCollection.create(uri, "photos", encoder, class_rows=True) as made:
        made.add(photos, progress=False)
        made.build_graph(neighbours=3, progress=False)
        made.augment(neighbours=2)
        assert made.verify().ok
    return uri


def change(photos, side, key, **fields):
    """Change a row of a side collection behind its back."""
    name = f"photos_{side}"
    photos.store.load(name)
    keys = [row[key] for row in photos.store.scan(name, key) if row[key]]
    whole = [f["name"] for f in photos.store.call("describe_collection", name)["fields"]]
    (row,) = photos.store.fetch(name, key, keys[:1], whole).values()
    photos.store.write(name, [{**row, **fields}])


@pytest.mark.parametrize(
    ("side", "key", "fields", "part", "words"),
    [
        ("classes", "key", {"vector": np.ones(96, np.float32)}, "class_rows", "class vectors"),
        ("classes", "key", {"class_id": 4000}, "class_rows", "class vectors"),
        ("graph", "uri", {"content": "other"}, "graph", "the graph"),
    ],
)
def test_what_is_made_of_the_rows_is_checked_and_made_again(
    with_sides, side, key, fields, part, words
):
    with InstanceCollection.open(with_sides, "photos") as photos:
        change(photos, side, key, **fields)
        outcome = photos.verify()
        assert not outcome.ok
        assert getattr(outcome, part)
        assert photos.verify(quick=True).ok
    outcome = repair(with_sides, "photos", progress=False)
    assert outcome.ok
    assert words in " ".join(outcome.made_again)
    with InstanceCollection.open(with_sides, "photos") as photos:
        assert photos.verify().ok
        assert photos.graph.count() == 6


def test_damaged_augmented_descriptors_are_found(with_sides):
    with InstanceCollection.open(with_sides, "photos") as photos:
        change(photos, "augmented", "uri", descriptor=np.full(96, 2, np.float32))
        assert "1 augmented descriptors are damaged" in str(photos.verify())
        photos.undo_augmentation()
        assert photos.verify().ok


def test_a_damaged_encoder_that_ships_is_written_again(tmp_path):
    uri = tmp_path / "photos.db"
    with InstanceCollection.create(uri, "photos", Encoder()) as photos:
        photos.add({"/p/1": crops(1)[0]}, progress=False)
        key = f"{photos.sidecar.prefix}whitening.safetensors/0"
        photos.store.write("photos_encoder", [{"key": key, "value": "AAAA", "vector": [0.0, 0.0]}])
        assert "whitening.safetensors" in str(photos.verify(quick=True))
    outcome = repair(uri, "photos", progress=False)
    assert outcome.ok
    assert outcome.made_again == ["the encoder, which is one that ships"]


def test_a_quick_look_reads_a_sample_whole_and_all_receipts(database, monkeypatch):
    monkeypatch.setattr("cwf_milvus.store.verification._SEARCHED", 4)
    with InstanceCollection.open(database, "photos") as photos:
        n, uris = photos.count(), list(photos.uris())
        outcome = photos.verify(quick=True)
        assert (outcome.ok, outcome.rows) == (True, n)
        assert 4 <= outcome.read <= 8
        assert f"{n} rows, {outcome.read} of them read whole" in str(outcome)
        photos.store.delete("photos", "uri", uris[3:4])
        assert photos.verify(quick=True).missing == uris[3:4]


def test_a_repair_that_was_cut_short_before_the_graph_was_there_makes_it(database, monkeypatch):
    with InstanceCollection.open(database, "photos") as photos:
        photos.build_graph(neighbours=3, progress=False)
        photos.graph.store.delete(photos.graph.name, "uri", [next(photos.uris())])

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cwf_milvus.index.altogether.PhotosAltogether.build_graph", killed)
        with pytest.raises(KeyboardInterrupt):
            repair(database, "photos", progress=False)
    assert "the graph" in repair(database, "photos", progress=False).made_again
    with InstanceCollection.open(database, "photos") as photos:
        assert photos.graph.head().neighbours == 3
    assert "the graph" not in repair(database, "photos", progress=False).made_again
