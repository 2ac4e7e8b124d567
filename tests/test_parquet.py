"""An exported collection read back is the same collection."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import TINY
from test_collection import TinyEncoder, encoding
from test_copying import all_of, filled, full  # noqa: F401
from test_folders import fill

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, CwfError
from cwf_milvus.store import parquet
from cwf_milvus.store.parquet import export_collection, import_collection, read_rows

ALONE = [*TINY, "--batch-size", "1"]  # the last bits may differ with the others of a batch


def exported(place, folder, name="photos"):
    with InstanceCollection.open(place, name) as photos:
        return export_collection(photos, folder)


def test_the_files_hold_every_row_and_what_belongs_to_it(full, tmp_path):  # noqa: F811
    done = exported(full, tmp_path / "out")
    assert done.photos == 8
    assert set(done.files) == {"photos", "encoder", "ledger", "classes", "augmented", "graph"}
    with InstanceCollection.open(full, "photos") as photos:
        here = photos.raw_rows(list(photos.uris()))
    there = {row["uri"]: row for row in read_rows(tmp_path / "out")}
    assert there.keys() == here.keys()
    for uri, row in there.items():
        np.testing.assert_array_equal(
            np.float32(row.pop("descriptor")), np.float32(here[uri].pop("descriptor"))
        )
        np.testing.assert_array_equal(
            np.float32(row.pop("class_scores")), np.float32(here[uri].pop("class_scores"))
        )
        assert row == here[uri]
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    names = {field["name"] for field in about["tables"]["photos"]["schema"]["fields"]}
    assert names | {"$meta"} == set(pq.read_schema(tmp_path / "out/photos/00001.parquet").names)


def test_an_import_makes_the_same_collection(full, tmp_path):  # noqa: F811
    exported(full, tmp_path / "out")
    place = tmp_path / "new.db"
    assert import_collection(tmp_path / "out", place, "holiday") == 8
    assert all_of(place, "holiday") == all_of(full)
    assert import_collection(tmp_path / "out", place, "holiday") == 0
    with InstanceCollection.open(place, "holiday") as photos:
        assert photos.has_graph()


def test_large_collections_are_many_files_of_a_few_rows(tmp_path, monkeypatch):
    filled(tmp_path / "a.db", 60)
    monkeypatch.setattr(parquet, "FILE_BYTES", 2**20)
    done = exported(tmp_path / "a.db", tmp_path / "out")
    monkeypatch.setattr(parquet, "FILE_BYTES", 2**13)
    assert done.files["photos"] == 1
    done = exported(tmp_path / "a.db", tmp_path / "out")
    assert done.files["photos"] > 1
    assert len(list(read_rows(tmp_path / "out"))) == 59


def test_what_several_workers_exported_becomes_one_collection(tmp_path):
    for k in (0, 1):
        with InstanceCollection.create(tmp_path / f"{k}.db", "photos", TinyEncoder()) as photos:
            photos.upsert([encoding(f"/p/{k}-{i}.jpg", 10 * k + i) for i in range(4)])
            export_collection(photos, tmp_path / f"out-{k}")
    folders = [str(tmp_path / f"out-{k}") for k in (0, 1)]
    place = str(tmp_path / "all.db")
    assert main(["import", *folders, "--uri", place, "--quiet"]) == 0
    with InstanceCollection.open(place, "photos") as photos:
        outcome = photos.verify()
        assert (outcome.ok, outcome.rows, outcome.unnoted) == (True, 8, 0)


def test_no_folder_of_something_else_is_written_over(tmp_path, capsys):
    filled(tmp_path / "a.db")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    command = ["export", "--uri", str(tmp_path / "a.db"), "--quiet", "--parquet"]
    assert main([*command, str(tmp_path / "mine")]) == 2
    assert "is no earlier export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert main(["import", str(tmp_path / "mine"), "--uri", str(tmp_path / "b.db")]) == 2
    assert "is no export" in capsys.readouterr().err


def test_photos_go_straight_into_files_part_by_part_and_the_same_command_goes_on(tmp_path):
    fill(tmp_path / "in", 9)
    for _ in range(2):
        for k in (1, 2):
            command = ["index", tmp_path / "in", "--to-parquet", tmp_path / f"out-{k}", *ALONE]
            assert main([str(one) for one in (*command, "--shard", f"{k}/2")]) == 0
    for k in (1, 2):
        import_collection(tmp_path / f"out-{k}", tmp_path / "all.db")
    assert main(["index", str(tmp_path / "in"), "--uri", str(tmp_path / "one.db"), *ALONE]) == 0
    with (
        InstanceCollection.open(tmp_path / "all.db", "photos") as joined,
        InstanceCollection.open(tmp_path / "one.db", "photos") as one,
    ):
        assert joined.verify().ok
        assert joined.raw_rows(list(joined.uris())) == one.raw_rows(list(one.uris()))
        assert joined.count() == 9


def test_an_export_that_was_killed_is_made_again(tmp_path):
    filled(tmp_path / "a.db")
    (tmp_path / ".out.cwf-milvus-part" / "photos").mkdir(parents=True)
    (tmp_path / ".out.cwf-milvus-part" / "photos" / "00001.parquet").write_text("half")
    exported(tmp_path / "a.db", tmp_path / "out")
    assert len(list(read_rows(tmp_path / "out"))) == 4
    assert not (tmp_path / ".out.cwf-milvus-part").exists()


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_damaged_export_is_named_before_it_is_taken_for_whole(tmp_path, damage):
    filled(tmp_path / "a.db")
    exported(tmp_path / "a.db", tmp_path / "out")
    file = tmp_path / "out" / "photos" / "00001.parquet"
    file.write_bytes(file.read_bytes()[:-9]) if damage == "cut" else file.unlink()
    with pytest.raises(CollectionError, match="damaged"):
        list(read_rows(tmp_path / "out"))


def test_an_import_never_goes_into_another_collection(tmp_path):
    filled(tmp_path / "a.db")
    exported(tmp_path / "a.db", tmp_path / "out")
    with pytest.raises(CollectionError, match="is not of"):
        import_collection(tmp_path / "out", tmp_path / "a.db")


def test_an_export_leaves_the_programs_logging_as_it_was(tmp_path):
    filled(tmp_path / "a.db")
    script = (
        "import logging, sys; from cwf_milvus.collection import InstanceCollection as C\n"
        "from cwf_milvus.store.parquet import export_collection\n"
        "with C.open(sys.argv[1], 'photos') as photos: export_collection(photos, sys.argv[2])\n"
        "print(logging.root.handlers, logging.root.level)"
    )
    words = [sys.executable, "-c", script, tmp_path / "a.db", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] 30\n", "")


# --- from strangers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    filled(folder / "a.db")
    exported(folder / "a.db", folder / "out")
    return folder / "out"


@pytest.fixture
def out(good, tmp_path):
    return shutil.copytree(good, tmp_path / "out")


def told(change):
    """Change what an export says of itself."""

    def edit(out):
        about = json.loads((out / "export.json").read_text())
        changed = change(about)
        (out / "export.json").write_text(json.dumps(about if changed is None else changed))

    return edit


def table(name, change, **options):
    """Change the rows of a file."""

    def edit(out):
        file = out / name / "00001.parquet"
        pq.write_table(change(pq.read_table(file)), file, **{"compression": "snappy", **options})

    return edit


def column(name, value, kind=None):
    def change(rows):
        values = pa.array([value] * len(rows), kind or rows.schema.field(name).type)
        return rows.set_column(rows.column_names.index(name), name, values)

    return table("photos", change)


def manifest(**changes):
    def change(rows):
        values = [
            json.dumps({**json.loads(row["value"]), **changes})
            if row["key"].endswith("/manifest")
            else row["value"]
            for row in rows.to_pylist()
        ]
        return rows.set_column(1, "value", pa.array(values))

    return table("encoder", change)


def special(make, name="photos/00001.parquet"):
    def edit(out):
        (out / name).unlink()
        make(out / name)

    return edit


def alike(rows):
    """Many rows of one text: in the file it stands once."""
    text = pa.array(["x" * 10**7])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), text)
    first = rows.slice(0, 1).take([0] * 100)
    return first.set_column(rows.column_names.index("$meta"), "$meta", many)


def long_vector(rows):
    flat = pa.array(np.zeros(40_000_000, np.float32))
    vector = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
    return rows.slice(0, 1).set_column(rows.column_names.index("descriptor"), "descriptor", vector)


HOSTILE = {
    "no json": lambda out: (out / "export.json").write_text("{"),
    "deep": lambda out: (out / "export.json").write_text("[" * 200_000),
    "a large manifest": lambda out: os.truncate(out / "export.json", 2**35),
    "a pipe": special(os.mkfifo, "export.json"),
    "a device": special(lambda file: file.symlink_to("/dev/zero"), "export.json"),
    "no mark": told(lambda about: about.pop("mark") and None),
    "a long mark": told(lambda about: about.update(mark="a" * 10**6)),
    "a list": told(lambda about: [about]),
    "a table of nothing": told(lambda about: about["tables"].update(photos=None)),
    "no schema": told(lambda about: about["tables"]["encoder"].update(schema={})),
    "a climbing table": told(lambda about: about["tables"].update({"../x": {}})),
    "files by number": told(lambda about: about["tables"]["photos"].update(files=5)),
    "a climbing file": told(
        lambda about: about["tables"]["photos"].update(files=["photos/../../../etc/passwd"])
    ),
    "a file of the root": told(
        lambda about: about["tables"]["photos"].update(files=["/a.parquet"])
    ),
    "a file a million times": told(
        lambda about: about["tables"]["photos"].update(files=["photos/00001.parquet"] * 10**6)
    ),
    "fewer rows": told(lambda about: about["tables"]["photos"].update(rows=2)),
    "a pipe of rows": special(os.mkfifo),
    "a device of rows": special(lambda file: file.symlink_to("/dev/zero")),
    "another column": table(
        "photos", lambda rows: rows.append_column("x", pa.array([1] * len(rows)))
    ),
    "no column": table("photos", lambda rows: rows.drop(["checksum"])),
    "no names": column("uri", None),
    "numbers for names": column("uri", 5, pa.int64()),
    "another packing": table("photos", lambda rows: rows, compression="zstd"),
    "one text for all": table("photos", alike),
    "a long vector": table("photos", long_vector),
    "not finite": column("descriptor", [float("nan")] * 8),
    "too few numbers": column("descriptor", [1.0]),
    "a changed row": column("width", 5),
    "metadata in a list": column("$meta", "[1]"),
    "metadata that is a field": column("$meta", '{"uri": "/x"}'),
    "deep metadata": column("$meta", "[" * 100_000),
    "a manifest without dim": manifest(dim=None),
    "vectors without end": manifest(n_regions=10**18),
    "keypoints without end": manifest(n_keypoints=10**18),
    "no such precision": manifest(precision=["int4"]),
    "an encoder without end": manifest(files={"settings.json": {"bytes": 10**15, "sha256": ""}}),
    "an encoder of nothing": manifest(files=None),
    "a lost encoder": manifest(files={"../x": {"bytes": 5, "sha256": "0"}}),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_export_is_refused_in_one_line(out, tmp_path, capsys, hostile):
    HOSTILE[hostile](out)
    assert main(["import", str(out), "--uri", str(tmp_path / "new.db"), "--quiet"]) in (2, 3)
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert "out" in message or "encoder" in message or "=" in message


def test_every_damage_of_an_export_is_refused_or_harmless(out):
    numbers = np.random.default_rng(7)
    refusals = []
    for name in ("photos", "encoder"):
        file = out / name / "00001.parquet"
        whole = file.read_bytes()
        for _ in range(30):
            damaged = bytearray(whole)
            damaged[-int(numbers.integers(1, min(len(whole), 6000)))] ^= 1 << numbers.integers(8)
            file.write_bytes(damaged)
            try:
                n_rows = len(list(read_rows(out)))
            except CwfError as error:
                refusals.append(str(error))
            else:
                assert n_rows == 4
        file.write_bytes(whole)
    assert refusals
    assert all(len(message.splitlines()) == 1 for message in refusals)
