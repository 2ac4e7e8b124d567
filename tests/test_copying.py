"""A collection copied to another place is the same collection, killed or not."""

import signal
import time
import uuid

import numpy as np
import pytest
from command_line import programs
from test_certainty import MODEL
from test_collection import TinyEncoder, encoding

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.store.augmentation import Augmented
from cwf_milvus.store.calibration import keep_model, model_of
from cwf_milvus.store.copying import copy_collection
from cwf_milvus.store.photo_rows import PhotoRows


def some(n, start=0):
    return [encoding(f"/p/{i}.jpg", i) for i in range(start, start + n)]


def filled(uri, n=5, name="photos", **options):
    with InstanceCollection.create(uri, name, TinyEncoder(), **options) as photos:
        photos.upsert(some(n), [{"year": 2000 + i, "note": 'it\'s "so"'} for i in range(n)])
        photos.remove(["/p/0.jpg"])


def all_of(uri, name="photos"):
    """Every row of it and beside it, with its collection's mark taken out of the keys."""
    with InstanceCollection.open(uri, name) as photos:
        found = {"photos": photos.raw_rows(list(photos.uris()))}
        sides = [photos.sidecar, photos.ledger, photos.class_rows, Augmented(photos), photos.graph]
        for side in sides:
            if side is None or not side.exists():
                continue
            photos.store.load(side.name)
            about = photos.store.call("describe_collection", side.name)
            key, *fields = (one["name"] for one in about["fields"])
            keys = [row[key] for row in photos.store.scan(side.name, key)]
            rows = photos.store.fetch(side.name, key, keys, fields)
            prefix = photos.sidecar.prefix
            found[side.suffix] = {
                one.removeprefix(prefix): {k: v for k, v in row.items() if k != key}
                for one, row in rows.items()
                if not one.endswith(("manifest", "note/copy"))
            }
        assert photos.verify().ok
    return found


@pytest.fixture
def full(tmp_path):
    """A collection with all that a collection can have."""
    place = tmp_path / "full.db"
    filled(place, 9, class_rows=True)
    with InstanceCollection.open(place, "photos") as made:
        made.build_graph(neighbours=3, verify=False, progress=False)
        made.augment(neighbours=2)
        keep_model(made.sidecar, MODEL)
    return place


def test_everything_comes_along_without_the_photos(full, tmp_path):
    done = copy_collection(full, "photos", tmp_path / "new.db", "holiday")
    assert (done.rows, done.there, done.damaged, done.left_out) == (8, 0, [], [])
    here, there = all_of(full), all_of(tmp_path / "new.db", "holiday")
    assert set(here) == {"photos", "encoder", "ledger", "classes", "augmented", "graph"}
    assert there == here
    with InstanceCollection.open(tmp_path / "new.db", "holiday") as copy:
        assert copy.has_graph()
        assert model_of(copy.sidecar) == MODEL
        assert len(copy.neighbours("/p/1.jpg")) > 0
        assert copy.augment(neighbours=2).unchanged == 8
        with InstanceCollection.open(full, "photos") as photos:
            assert copy.neighbours("/p/1.jpg") == photos.neighbours("/p/1.jpg")


def test_a_copy_has_the_originals_removals_and_is_its_own_from_then_on(tmp_path):
    place = tmp_path / "photos.db"
    filled(place)
    copy_collection(place, "photos", place, "again")
    with InstanceCollection.open(place, "again") as copy:
        copy.upsert(some(1))
        copy.remove(["/p/1.jpg"])
        assert copy.verify().ok
    with InstanceCollection.open(place, "photos") as photos:
        assert sorted(photos.uris()) == [f"/p/{i}.jpg" for i in range(1, 5)]
        assert photos.verify().ok
        photos.drop()
    with InstanceCollection.open(place, "again") as copy:
        assert copy.verify().ok
        assert copy.get("/p/2.jpg")[0].metadata == {"year": 2002, "note": 'it\'s "so"'}


def test_a_lost_row_is_still_said_to_be_lost_in_the_copy(tmp_path):
    place = tmp_path / "photos.db"
    filled(place)
    with InstanceCollection.open(place, "photos") as photos:
        photos.store.delete("photos", "uri", ["/p/3.jpg"])  # behind our back
    copy_collection(place, "photos", tmp_path / "new.db")
    with InstanceCollection.open(tmp_path / "new.db", "photos") as copy:
        assert copy.verify().missing == ["/p/3.jpg"]


def test_a_damaged_row_is_copied_as_it_is_and_named(tmp_path, capsys):
    place = tmp_path / "photos.db"
    filled(place)
    with InstanceCollection.open(place, "photos") as photos:
        (row,) = photos.raw_rows(["/p/3.jpg"]).values()
        photos.store.write("photos", [{**row, "width": 9999}])
    assert main(["copy", str(place), str(tmp_path / "new.db"), "--quiet"]) == 1
    assert "damaged, copied as it is: '/p/3.jpg'" in capsys.readouterr().out
    with InstanceCollection.open(tmp_path / "new.db", "photos") as copy:
        assert [uri for uri, _ in copy.verify().damaged] == ["/p/3.jpg"]


def test_what_cannot_be_copied_there_is_refused_in_words(tmp_path):
    place = tmp_path / "photos.db"
    filled(place)
    with pytest.raises(SettingsError, match="is the collection itself"):
        copy_collection(place, "photos", tmp_path / "." / "photos.db")
    filled(place, name="other")
    with pytest.raises(CollectionError, match="no copy of 'photos'"):
        copy_collection(place, "photos", place, "other")
    with pytest.raises(CollectionError, match="there is no collection 'nothing'"):
        copy_collection(place, "nothing", tmp_path / "new.db")
    with pytest.raises(SettingsError, match="only FLAT"):
        copy_collection(place, "photos", tmp_path / "new.db", index={"index_type": "HNSW"})
    assert not InstanceCollection.exists(tmp_path / "new.db", "photos")


def test_a_finished_copy_is_never_written_again(tmp_path):
    place, new = tmp_path / "photos.db", tmp_path / "new.db"
    filled(place)
    copy_collection(place, "photos", new)
    done = copy_collection(place, "photos", new)
    assert (done.rows, done.there) == (0, 4)
    with InstanceCollection.open(new, "photos") as copy:
        copy.set_metadata({"/p/1.jpg": {"year": 1}})
    with pytest.raises(CollectionError, match=r"has since become another .*'/p/1.jpg'"):
        copy_collection(place, "photos", new)
    with InstanceCollection.open(new, "photos") as copy:
        assert copy.get("/p/1.jpg")[0].metadata == {"year": 1}


def test_a_copy_cut_short_follows_what_changed_in_the_original_since(tmp_path, monkeypatch):
    place, new = tmp_path / "photos.db", tmp_path / "new.db"
    filled(place, 8, class_rows=True)

    def cut_short(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cwf_milvus.store.copying._Copy._copy_graph", cut_short)
        with pytest.raises(KeyboardInterrupt):
            copy_collection(place, "photos", new)
    with InstanceCollection.open(place, "photos") as photos:
        photos.remove(["/p/1.jpg"])
        photos.upsert([encoding("/p/2.jpg", 77), *some(1, start=20)])
    done = copy_collection(place, "photos", new)
    assert (done.rows, done.there) == (2, 5)
    assert all_of(new) == all_of(place)


def test_a_name_whose_creation_was_killed_can_be_made_again(tmp_path):
    place = tmp_path / "photos.db"
    filled(place, name="other")
    left = place / "collections" / "photos"
    left.mkdir()
    (left / "schema.json.tmp").write_text("{")
    filled(place)
    assert all_of(place)["photos"]


@pytest.mark.slow
def test_a_copy_that_is_killed_at_any_moment_goes_on(tmp_path):
    place, n = tmp_path / "photos.db", 400
    rng = np.random.default_rng(3)
    filled(place, n, class_rows=True)
    kills = 0
    with programs(tmp_path) as start:
        for at in (0.0, 0.3, 0.8):
            run = start.start("copy", place, tmp_path / "new.db", "--quiet")
            deadline = time.monotonic() + 30
            while not (tmp_path / "new.db").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3) + at)
            run.send(signal.SIGKILL)
            kills += run.wait() == -signal.SIGKILL
        status, text = start.run("copy", place, tmp_path / "new.db", "--quiet")
    assert status == 0, text
    assert kills >= 2
    assert all_of(tmp_path / "new.db") == all_of(place)


@pytest.mark.server
@pytest.mark.slow
def test_a_collection_goes_to_a_server_and_comes_back_the_same(full, server, tmp_path, capsys):
    name = f"copy_{uuid.uuid4().hex}"
    assert (
        main(
            [
                "copy",
                str(full),
                server.uri,
                "--as",
                name,
                "--index",
                "HNSW,M=8,efConstruction=64",
                "--quiet",
            ]
        )
        == 1
    )
    assert "left out: the graph" in capsys.readouterr().out  # 2.3.5 has no sparse vectors
    assert (
        main(["copy", server.uri, str(tmp_path / "back.db"), "--collection", name, "--quiet"]) == 0
    )
    here, there = all_of(full), all_of(tmp_path / "back.db", name)
    here.pop("graph")
    assert there == here
    with InstanceCollection.open(server.uri, name) as copy:
        assert copy.info()["index"] == "HNSW"
        assert PhotoRows.count(copy) == 8
        copy.drop()
