"""An exported collection read back is the same collection."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import TINY
from test_collection import TinyEncoder, encoding
from test_copying import all_of, filled, full  # noqa: F401
from test_folders import fill

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError
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
