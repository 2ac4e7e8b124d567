"""Workers that know nothing of each other index the union of their parts, each photo once."""

import uuid
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import TINY, programs
from small_encoders import tiny
from test_folders import drawn, fill

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.index.sharding import Shard


@pytest.fixture
def photos(tmp_path):
    encoder = tiny(whitening=None, image_size=64, class_image_size=32, n_classes=4, n_pooled=4)
    with InstanceCollection.create(tmp_path / "a.db", "photos", encoder, class_rows=True) as made:
        yield made


def add(photos, folder, n=3, **options):
    """Index a folder by n workers, one after another; returns the sum of their reports."""
    found = Counter()
    for i in range(1, n + 1):
        report = photos.add(folder, shard=f"{i}/{n}", progress=False, **options)
        found.update(added=report.added, moved=report.moved, skipped=report.skipped)
        found.update(updated=report.updated, failed=len(report.failed))
    return {name: count for name, count in found.items() if count}


def test_the_parts_are_disjoint_stable_and_all():
    uris = [f"/photos/{i}.jpg" for i in range(2000)]
    parts = [[uri for uri in uris if Shard(k, 8).has(uri)] for k in range(1, 9)]
    assert sorted(uri for part in parts for uri in part) == sorted(uris)
    assert all(200 < len(part) < 300 for part in parts)
    assert [Shard(k, 8).has("/photos/0.jpg") for k in range(1, 9)].index(True) == 4  # for ever


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/0", "-1/8", "a/b", "3/8/2", "", "٣/8"])
def test_a_shard_that_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, text):
    drawn(tmp_path / "in" / "a.png", 1)
    command = ["index", str(tmp_path / "in"), "--uri", str(tmp_path / "a.db"), f"--shard={text}"]
    assert main([*command, *TINY]) == 2
    assert f"shard {text}" in capsys.readouterr().err.replace("'", "")
    assert not (tmp_path / "a.db").exists()


def test_one_after_another_they_make_the_union_and_go_on_from_it(photos, tmp_path):
    fill(tmp_path / "in", 12)
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert add(photos, tmp_path / "in") == {"added": 12, "failed": 1}
    assert add(photos, tmp_path / "in") == {"skipped": 12, "failed": 1}
    assert add(photos, tmp_path / "in", 2) == {"skipped": 12, "failed": 1}
    outcome = photos.verify()
    assert (outcome.ok, outcome.rows, outcome.unnoted) == (True, 12, 0)


def test_a_photo_that_moved_keeps_its_row_whichever_worker_meets_it(photos, tmp_path):
    paths = fill(tmp_path / "in", 12)
    add(photos, tmp_path / "in")
    photos.set_metadata({str(path): {"n": i} for i, path in enumerate(paths)})
    (tmp_path / "in").rename(tmp_path / "there")
    assert add(photos, tmp_path / "there") == {"moved": 12}
    rows = photos.get(list(photos.uris()))
    assert {Path(row.uri).stem: row.metadata["n"] for row in rows} == {str(i): i for i in range(12)}
    assert photos.verify().ok


def test_photos_that_changed_places_keep_the_fields_of_their_names_and_none_is_lost(
    photos, tmp_path
):
    paths = fill(tmp_path / "in", 6)
    add(photos, tmp_path / "in")
    photos.set_metadata({str(path): {"n": i} for i, path in enumerate(paths)})
    paths[5].rename(tmp_path / "in" / "last.png")  # 5 is called last, and every other one up
    for i in range(4, -1, -1):
        paths[i].rename(paths[i + 1])
    found = add(photos, tmp_path / "in")
    assert found["updated"] == 5
    kept = {Path(row.uri).stem: row.metadata.get("n") for row in photos.get(list(photos.uris()))}
    assert {name: n for name, n in kept.items() if name != "last"} == {
        **{str(i): i for i in range(1, 6)},
        **({"0": 0} if "0" in kept else {}),
    }
    assert 0 in kept.values()  # moved, or still under the name that is gone
    assert photos.verify().ok


def test_pruning_is_left_to_a_run_of_all(photos, tmp_path):
    paths = fill(tmp_path / "in", 6)
    add(photos, tmp_path / "in")
    paths[0].unlink()
    with pytest.raises(SettingsError, match="Prune in a run without a shard"):
        photos.add(tmp_path / "in", shard="1/3", prune=True, progress=False)
    assert photos.count() == 6
    assert photos.add(tmp_path / "in", prune=True, progress=False).pruned == 1


@pytest.mark.server
@pytest.mark.slow
def test_several_processes_at_once_fill_one_collection_of_a_server(server, tmp_path):
    fill(tmp_path / "in", 60)
    name = f"shards_{uuid.uuid4().hex}"
    place = ("--uri", server.uri, "--collection", name)
    outputs = [tmp_path / f"worker-{k}" for k in (1, 2, 3)]
    for folder in outputs:
        folder.mkdir()
    with ExitStack() as stack:
        started = [
            stack.enter_context(programs(folder)).start(
                "index", tmp_path / "in", "--shard", f"{k}/3", *place, *TINY
            )
            for k, folder in enumerate(outputs, start=1)
        ]
        outcomes = [(command.wait(), command.text()) for command in started]
    assert [status for status, _ in outcomes] == [0, 0, 0], outcomes
    added = [int(text.split(" added")[0].split()[-1]) for _, text in outcomes]
    assert sum(added) == 60
    assert min(added) > 0
    with InstanceCollection.open(server.uri, name) as photos:
        outcome = photos.verify()
        assert (outcome.ok, outcome.rows) == (True, 60)
        photos.drop()
