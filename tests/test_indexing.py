"""Photos into a collection: what is added, skipped, updated, failed, pruned, and never lost."""

import io
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pytest
from command_line import TINY, programs
from photo_files import encoded
from skimage import data as real

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import ImageError, SettingsError, StoreError

PHOTOS = (real.chelsea(), real.coffee(), real.astronaut(), real.rocket())
SHAPES = ((72, 96), (96, 72), (80, 80))


def crops(n):
    """n different pieces of real photos, of three shapes in turn."""
    rng = np.random.default_rng(0)
    for i in range(n):
        (height, width), photo = SHAPES[i % 3], PHOTOS[i % 4]
        top = rng.integers(photo.shape[0] - height)
        left = rng.integers(photo.shape[1] - width)
        yield photo[top : top + height, left : left + width]


def fill(folder, n=5, kind="PNG"):
    """Write n photos to a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.{kind.lower()}" for i in range(n)]
    for path, image in zip(paths, crops(n), strict=True):
        path.write_bytes(encoded(image, kind))
    return paths


@pytest.fixture(scope="module")
def encoder():
    return Encoder(
        "timm:test_resnet",
        weights="random",
        whitening=None,
        batch_size=4,
        image_size=64,
        class_image_size=32,
        n_classes=4,
        n_pooled=4,
        region_levels=(1, 2),
    )


@pytest.fixture
def forwards(encoder, monkeypatch):
    """The number of photos of every forward pass from here on."""
    sizes, encode = [], encoder.encode_prepared

    def counted(batch):
        sizes.append(len(batch))
        return encode(batch)

    monkeypatch.setattr(encoder, "encode_prepared", counted)
    return sizes


@pytest.fixture
def photos(tmp_path, encoder):
    with InstanceCollection.create(tmp_path / "photos.db", "photos", encoder) as collection:
        yield collection


@pytest.fixture(autouse=True)
def never_hangs():
    def stop(*_):
        raise TimeoutError("still waiting after 90 seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(90)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def add(collection, sources, **options):
    return collection.add(sources, **{"progress": False, **options})


def counts(report):
    return report.added, report.skipped, report.updated, len(report.failed)


def journal(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def working_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("cwf-")]


# A second run


def test_a_second_run_skips_everything_without_the_network(photos, tmp_path, forwards):
    fill(tmp_path / "in")
    assert counts(add(photos, tmp_path / "in")) == (5, 0, 0, 0)
    assert sum(forwards) == 5
    assert counts(add(photos, tmp_path / "in")) == (0, 5, 0, 0)
    assert sum(forwards) == 5


def test_a_photo_whose_bytes_changed_is_updated_and_the_rest_skipped(photos, tmp_path, forwards):
    paths = fill(tmp_path / "in")
    add(photos, tmp_path / "in", metadata={"001.png": {"year": 1999}})
    before = photos.raw_rows([str(path) for path in paths])
    paths[1].write_bytes(encoded(real.retina()[:90, :120]))
    forwards.clear()
    assert counts(add(photos, tmp_path / "in")) == (0, 4, 1, 0)
    assert forwards == [1]
    after = photos.raw_rows([str(path) for path in paths])
    assert after[str(paths[1])]["descriptor"] != before[str(paths[1])]["descriptor"]
    assert [u for u in before if after[u] != before[u]] == [str(paths[1])]
    row = photos.get([str(paths[1])])[0]
    assert (row.width, row.height) == (120, 90)
    assert row.metadata == {"year": 1999}  # nothing was said of it this time


def test_metadata_that_changed_is_updated_without_the_network(photos, tmp_path, forwards):
    paths = fill(tmp_path / "in")
    told = {path.name: {"n": i} for i, path in enumerate(paths)}
    add(photos, tmp_path / "in", metadata=told)
    before = photos.get([str(path) for path in paths], vectors=True)
    forwards.clear()
    report = add(
        photos,
        tmp_path / "in",
        metadata={**told, "003.png": {"n": "three"}},
        report_file=tmp_path / "report.jsonl",
    )
    assert counts(report) == (0, 4, 1, 0)
    assert forwards == []
    assert {line["uri"]: line["status"] for line in journal(tmp_path / "report.jsonl")[:-1]} == {
        str(path): "updated" if path == paths[3] else "same" for path in paths
    }
    after = photos.get([str(path) for path in paths], vectors=True)
    assert [row.metadata["n"] for row in after] == [0, 1, 2, "three", 4]
    assert [row.packed for row in after] == [row.packed for row in before]
    assert photos.verify().ok


# Photos that fail


def test_failed_photos_are_reported_with_their_reason_and_the_rest_go_in(photos, tmp_path):
    paths = fill(tmp_path / "in")
    paths[0].write_bytes(b"")
    paths[3].write_bytes(b"just text")
    report = add(photos, tmp_path / "in", report_file=tmp_path / "report.jsonl")
    assert counts(report) == (3, 0, 0, 2)
    lines = journal(tmp_path / "report.jsonl")
    failed = {line["uri"]: line["reason"] for line in lines[:-1] if line["status"] == "failed"}
    assert list(failed) == [str(paths[0]), str(paths[3])]
    assert "is empty (0 bytes)" in failed[str(paths[0])]
    assert "starts with b'just text'" in failed[str(paths[3])]
    assert {line["uri"] for line in lines[:-1] if line["status"] == "added"} == {
        str(path) for path in (paths[1], paths[2], paths[4])
    }
    assert lines[-1]["summary"].items() >= {"added": 3, "failed": 2, "skipped": 0}.items()


def test_the_row_of_a_photo_that_became_unreadable_stays(photos, tmp_path):
    paths = fill(tmp_path / "in", 2)
    add(photos, tmp_path / "in")
    before = photos.raw_rows([str(paths[0])])
    paths[0].write_bytes(b"ruined")
    assert counts(add(photos, tmp_path / "in", prune=True)) == (0, 1, 0, 1)
    assert photos.raw_rows([str(paths[0])]) == before


def test_one_bad_photo_among_bytes_and_arrays_does_not_end_the_run(photos):
    good = encoded(PHOTOS[0])
    report = add(photos, [b"no photo", good, np.zeros((3, 3, 7)), PHOTOS[1], None])
    assert counts(report) == (2, 0, 0, 3)
    assert [uri for uri, _ in report.failed][1:] == [
        "photo 3 of those given",
        "photo 5 of those given",
    ]
    assert "has shape (3, 3, 7)" in report.failed[1][1]


def test_a_name_that_milvus_cannot_hold_fails_alone(photos):
    images = {"ok": PHOTOS[0], "x" * 5000: PHOTOS[1], "": PHOTOS[2], "\ud800": PHOTOS[3]}
    report = add(photos, images)
    assert counts(report) == (1, 0, 0, 3)
    assert "uri of 5000 bytes cannot be stored" in dict(report.failed)["x" * 5000]
    assert list(photos.uris()) == ["ok"]


# Pruning


def test_prune_removes_rows_of_files_that_are_gone_under_the_named_folder_alone(photos, tmp_path):
    paths = fill(tmp_path / "in", 3)
    siblings = [*fill(tmp_path / "in2", 2), *fill(tmp_path / "other", 2)]
    named = tmp_path / "in" / "sub" / "note.dat"
    named.parent.mkdir()
    named.write_bytes(encoded(PHOTOS[2]))
    add(photos, [tmp_path / "in", tmp_path / "in2", tmp_path / "other", named, PHOTOS[3]])
    for path in (paths[0], *siblings):
        path.unlink()
    assert add(photos, tmp_path / "in").pruned == 0  # not asked for
    report = add(photos, tmp_path / "in", prune=True, report_file=tmp_path / "report.jsonl")
    assert report.pruned == 1
    assert {"uri": str(paths[0]), "status": "pruned"} in journal(tmp_path / "report.jsonl")
    left = set(photos.uris())
    assert left >= {str(p) for p in (paths[1], paths[2], *siblings, named)}
    assert len(left) == 8
    assert photos.verify().ok


def test_prune_removes_what_was_in_a_folder_that_is_gone(photos, tmp_path):
    fill(tmp_path / "in", 1)
    inner = fill(tmp_path / "in" / "inner", 2)
    add(photos, tmp_path / "in")
    for path in inner:
        path.unlink()
    (tmp_path / "in" / "inner").rmdir()
    assert add(photos, tmp_path / "in", prune_anyway=True).pruned == 2


def test_prune_leaves_photos_of_a_folder_that_cannot_be_entered(photos, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    inner = fill(tmp_path / "in" / "inner", 2)
    add(photos, tmp_path / "in")
    scan, lstat, closed = os.scandir, os.lstat, str(tmp_path / "in" / "inner")

    def denied(real_call):  # for root, whom access rights do not stop
        def call(path, *args, **options):
            if str(path).startswith(closed) and not (real_call is lstat and str(path) == closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real_call(path, *args, **options)

        return call

    monkeypatch.setattr(os, "scandir", denied(scan))
    monkeypatch.setattr(os, "lstat", denied(lstat))
    report = add(photos, tmp_path / "in", prune=True)
    assert (report.pruned, counts(report)) == (0, (0, 1, 0, 1))
    assert set(photos.uris()) >= {str(path) for path in inner}


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_prune_knows_photos_whose_names_are_no_unicode(photos, tmp_path):
    fill(tmp_path / "in", 1)
    paths = [Path(os.fsdecode(os.fsencode(tmp_path / "in") + name)) for name in (b"/\xff.png",)]
    try:
        paths[0].write_bytes(encoded(PHOTOS[0]))
    except OSError:
        pytest.skip("this file system has no such names")
    add(photos, tmp_path / "in")
    assert photos.count() == 2
    assert add(photos, tmp_path / "in", prune=True).pruned == 0
    paths[0].unlink()
    assert add(photos, tmp_path / "in", prune=True).pruned == 1
    assert photos.count() == 1


def test_prune_without_a_folder_is_refused(photos, tmp_path):
    (path,) = fill(tmp_path / "in", 1)
    with pytest.raises(SettingsError, match="none was named"):
        add(photos, path, prune=True)


# What photos may be


def test_photos_may_be_paths_folders_globs_and_urls(photos, tmp_path):
    a, b, c = (fill(tmp_path / name, 2) for name in "abc")
    memory = fsspec.filesystem("memory")
    memory.pipe("/indexing/x.png", encoded(PHOTOS[0]))
    try:
        report = add(
            photos,
            [str(a[0]), a[1], tmp_path / "b", str(tmp_path / "c" / "*1.png"), "memory://indexing"],
        )
    finally:
        memory.rm("/indexing", recursive=True)
    assert counts(report) == (6, 0, 0, 0)
    assert set(photos.uris()) == {*map(str, [*a, *b, c[1]]), "memory://indexing/x.png"}


def test_photos_may_be_bytes_files_arrays_and_pil_images_named_by_their_content(photos):
    png = encoded(PHOTOS[0])
    pil = PIL.Image.fromarray(PHOTOS[1])

    def sources():
        return [png, bytearray(png), io.BytesIO(png), PHOTOS[1], pil, PHOTOS[2]]

    assert counts(add(photos, sources())) == (3, 0, 0, 0)
    assert all(uri.startswith("sha256:") for uri in photos.uris())
    assert counts(add(photos, sources())) == (0, 3, 0, 0)
    for one in (png, io.BytesIO(png), PHOTOS[1], pil):
        assert counts(add(photos, one)) == (0, 1, 0, 0)


def test_a_mapping_names_its_photos(photos, tmp_path):
    (path,) = fill(tmp_path / "in", 1)
    images = {"sku-1": PHOTOS[0], "sku-2": encoded(PHOTOS[1]), "sku-3": str(path), "sku-4": path}
    assert counts(add(photos, images, metadata={"sku-2": {"price": 5}})) == (4, 0, 0, 0)
    assert list(photos.uris()) == ["sku-1", "sku-2", "sku-3", "sku-4"]
    assert photos.get(["sku-2"])[0].metadata == {"price": 5}


def test_a_photo_named_twice_in_one_call_is_indexed_once(photos, tmp_path):
    (path,) = fill(tmp_path / "in", 1)
    detour = tmp_path / "in" / ".." / "in" / path.name
    sources = [str(path), path, tmp_path / "in", str(tmp_path / "in" / "*.png"), detour]
    assert counts(add(photos, sources)) == (1, 0, 0, 0)
    assert photos.count() == 1


def test_no_photo_at_all_is_an_empty_report(photos, tmp_path):
    (tmp_path / "in").mkdir()
    assert counts(add(photos, tmp_path / "in")) == (0, 0, 0, 0)
    assert counts(add(photos, [])) == (0, 0, 0, 0)


# What is refused before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_file": "no/such/folder/report.jsonl"}, "cannot write the report"),
        ({"metadata": "no/such/file.csv"}, "cannot read the metadata file"),
        ({"metadata": {"001.png": {"uri": "mine"}}}, r"001\.png' has the reserved name 'uri'"),
        ({"metadata": {"002.png": {"x": float("nan")}}}, r"metadata of '.*002\.png'"),
        ({"metadata": {"002.png": {"x": "y" * 70_000}}}, r"002\.png' takes 70\d\d\d bytes"),
        ({"metadata": {"002.png": [1]}}, r"metadata of '002\.png' is \[1\]"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_photo_is_read(
    photos, tmp_path, forwards, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "in")
    with pytest.raises(SettingsError, match=message):
        add(photos, tmp_path / "in", **options)
    assert (forwards, photos.count(), working_threads()) == ([], 0, [])


@pytest.mark.parametrize("content", [encoded(PHOTOS[0], "PNG"), b"uri,status\n", b"{}\n", b"[1]"])
def test_a_file_that_is_no_report_is_not_written_to(photos, tmp_path, content):
    fill(tmp_path / "in")
    there = tmp_path / "in" / "mine.png"
    there.write_bytes(content)
    with pytest.raises(SettingsError, match=r"mine\.png' is there, and is no report"):
        add(photos, tmp_path / "in", report_file=there)
    assert (there.read_bytes(), photos.count()) == (content, 0)


def test_a_report_goes_on_at_its_end_after_a_kill_too(photos, tmp_path):
    fill(tmp_path / "in", 2)
    file = tmp_path / "report.jsonl"
    file.touch()
    add(photos, tmp_path / "in", report_file=file)
    first = file.read_text()
    file.write_text(first + '{"uri": "/p/torn')
    fill(tmp_path / "more", 1)
    add(photos, [tmp_path / "in", tmp_path / "more"], report_file=file)
    torn, *rest = file.read_text().removeprefix(first).splitlines()
    assert torn == '{"uri": "/p/torn'
    said = [json.loads(line).get("status", "summary") for line in rest]
    assert sorted(said) == ["added", "same", "same", "summary"]


def test_a_source_that_does_not_exist_is_refused_before_any_work(photos, tmp_path, forwards):
    fill(tmp_path / "in")
    with pytest.raises(ImageError, match="'nowhere' does not exist"):
        add(photos, [tmp_path / "in", "nowhere"])
    assert (forwards, photos.count()) == ([], 0)


# Progress


def test_the_progress_bar_counts_and_tells_rate_and_time(photos, tmp_path, capfd):
    paths = fill(tmp_path / "in", 6)
    add(photos, paths[:3])
    paths[0].write_bytes(encoded(PHOTOS[0]))
    paths[5].write_bytes(b"")
    report = add(photos, tmp_path / "in", progress=True)
    shown = capfd.readouterr().err.split("\r")[-1]
    assert "6/6" in shown
    assert "photo/s" in shown
    assert "2 added, 2 skipped, 1 updated, 1 failed" in shown
    assert str(report).startswith("2 added, 1 updated, 2 skipped, 1 failed in ")


# When something breaks


def test_a_store_that_fails_half_way_ends_the_run_and_keeps_what_was_finished(
    photos, tmp_path, encoder, forwards, monkeypatch
):
    fill(tmp_path / "in", 40)
    encode = encoder.encode_prepared

    def closing_the_store(batch):
        if len(forwards) == 3:
            photos.close()
        return encode(batch)

    monkeypatch.setattr(encoder, "encode_prepared", closing_the_store)
    with pytest.raises(StoreError, match="is closed"):
        add(photos, tmp_path / "in")
    assert len(forwards) < 10  # the thread that encodes was told, and did not go on to the end
    assert working_threads() == []
    with InstanceCollection.open(tmp_path / "photos.db", "photos", encoder=encoder) as again:
        assert 0 < again.count() <= 12
        assert again.verify().ok
        before = again.count()
        assert counts(add(again, tmp_path / "in")) == (40 - before, before, 0, 0)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyboardInterrupt])
def test_an_error_of_the_network_ends_the_run_and_keeps_what_was_finished(
    photos, tmp_path, encoder, forwards, monkeypatch, error
):
    fill(tmp_path / "in", 24)
    encode = encoder.encode_prepared

    def failing(batch):
        if len(forwards) == 2:
            raise error
        return encode(batch)

    monkeypatch.setattr(encoder, "encode_prepared", failing)
    with pytest.raises(error):
        add(photos, tmp_path / "in", report_file=tmp_path / "report.jsonl")
    assert working_threads() == []
    assert photos.count() == 8
    assert journal(tmp_path / "report.jsonl")[-1]["summary"]["added"] == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_report_that_cannot_be_written_on_ends_the_run_and_never_hangs(photos, tmp_path):
    fill(tmp_path / "in", 40)
    with pytest.raises(SettingsError, match=r"cannot write the report.*No space left"):
        add(photos, tmp_path / "in", report_file="/dev/full")
    assert working_threads() == []


# Killed


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one_and_repeats_nothing(tmp_path):
    fill(tmp_path / "in", 100)
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)

    def index(name):
        return (
            *("index", tmp_path / "in", "--uri", tmp_path / f"{name}.db", "--class-rows", *TINY),
            *("--batch-size", "4", "--report", tmp_path / f"{name}.jsonl"),
        )

    def began(name, lines):  # the database is being made, or photos are being stored
        report = tmp_path / f"{name}.jsonl"
        if not lines:
            return (tmp_path / f"{name}.db").exists()
        text = report.read_text() if report.exists() else ""
        return text.count('"added"') >= lines or "summary" in text

    with programs(tmp_path) as start:
        status, text = start.run(*index("whole"))
        assert status == 0, text
        kills = 0
        for name, at in (("early", (0, 0, 0)), ("anywhere", (1, 12, 24))):
            report = tmp_path / f"{name}.jsonl"
            for lines in at:
                run = start.start(*index(name))
                deadline = time.monotonic() + 30
                while not began(name, lines) and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.1 if lines else 0.8))
                run.send(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
                report.unlink(missing_ok=True)
            left = stored(tmp_path / f"{name}.db")
            status, text = start.run(*index(name))
            assert status == 0, text
            summary = journal(report)[-1]["summary"]
            assert (summary["added"], summary["skipped"]) == (100 - left, left), (seed, text)
        assert kills >= 4
    whole = everything(tmp_path / "whole.db")
    assert len(whole[0]) == 100
    assert everything(tmp_path / "early.db") == whole
    assert everything(tmp_path / "anywhere.db") == whole


def stored(uri):
    if not InstanceCollection.exists(uri, "photos"):
        return 0
    with InstanceCollection.open(uri, "photos") as photos:
        return photos.count()


def everything(uri):
    """Every row as Milvus has it, vectors bit for bit, and that of every class vector."""
    with InstanceCollection.open(uri, "photos") as photos:
        assert photos.verify().ok
        rows = photos.raw_rows(list(photos.uris()))
        class_rows = photos.store.fetch(
            photos.class_rows.name,
            "key",
            [row["key"] for row in photos.store.scan(photos.class_rows.name, "key")],
            ["uri", "class_id", "rank", "vector"],
        )
    assert len(class_rows) == 4 * len(rows)
    return (
        {uri: repr(sorted(row.items())) for uri, row in rows.items()},
        {key: repr(sorted(row.items())) for key, row in class_rows.items()},
    )
