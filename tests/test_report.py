"""The report of a run: a line for every file met, in three formats, gone on with at its end."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photo_files import encoded
from small_encoders import network_built_once, tiny

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.index.report import Journal, Report
from cwf_milvus.index.report_files import opened

Lines = list[dict[str, str]]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with network_built_once():
        sizes = {"image_size": 32, "class_image_size": 32, "n_classes": 2, "n_pooled": 2}
        return tiny(whitening=None, batch_size=128, **sizes)


@pytest.fixture
def photos(tmp_path: Path, encoder: Encoder) -> Iterator[InstanceCollection]:
    with InstanceCollection.create(tmp_path / "a.db", "photos", encoder) as made:
        yield made


def read(report: Path) -> Lines:
    """Return the lines of a report, whatever its format."""
    if report.suffix == ".csv":
        with report.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if report.suffix == ".parquet":
        return pq.read_table(report).to_pylist()
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return [{"reason": "", **line} for line in lines if "summary" not in line]


FORMATS = pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet", "R.CSV"])


@FORMATS
def test_a_report_is_gone_on_with_in_the_format_of_its_ending(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    odd = 'a "quoted", name\nwith a line.jpg'
    for status in ("added", "same"):
        with Journal(Report(), file) as journal:
            journal.line(odd, status)
            journal.line("b.jpg", "failed", "it is empty, 0 bytes")
    failed = {"uri": "b.jpg", "status": "failed", "reason": "it is empty, 0 bytes"}
    lines = read(file) if name != "R.CSV" else read(file.rename(tmp_path / "r.csv"))
    assert lines == [
        {"uri": odd, "status": "added", "reason": ""},
        failed,
        {"uri": odd, "status": "same", "reason": ""},
        failed,
    ]


@FORMATS
def test_what_is_no_report_of_an_earlier_run_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    for content in (b"uri;status\n", encoded(), b'{"a": 1}\n', b"[" * 100_000):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError, match="is no report of an earlier run"):
            opened(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("torn", ['"/a/b, c', "/a/b", '"/a/b\n', '"/a/b",failed,"why'])
def test_a_line_of_csv_that_a_kill_tore_swallows_none_of_the_next(
    tmp_path: Path, torn: str
) -> None:
    file = tmp_path / "r.csv"
    file.write_text(f"uri,status,reason\n/a/a,added,\n{torn}")
    with Journal(Report(), file) as journal:
        journal.line("/a/c", "added")
    first, *_, last = read(file)
    assert (first["uri"], last["uri"], last["status"]) == ("/a/a", "/a/c", "added")


def test_a_parquet_report_keeps_the_lines_of_a_run_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    killed = opened(file)
    killed.line("/a/a", "added", "")
    assert not file.exists()
    with (tmp_path / "r.parquet.lines").open("a") as lines:
        lines.write('{"uri": "/a/torn')
    with Journal(Report(), file) as journal:
        journal.line("/a/b", "added")
    assert [line["uri"] for line in read(file)] == ["/a/a", "/a/b"]
    assert [one.name for one in tmp_path.iterdir()] == ["r.parquet"]


def test_a_damaged_parquet_report_is_refused_at_once_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    with Journal(Report(), file) as journal:
        journal.line("/a/a", "added")
    whole = file.read_bytes()
    numbers = pa.table({name: [[1], [2]] for name in ("uri", "status", "reason")})
    pq.write_table(numbers, file)
    for damaged in (file.read_bytes(), whole[:4] + bytes(60) + whole[64:]):
        file.write_bytes(damaged)
        with pytest.raises(SettingsError, match="is no report of an earlier run"):
            opened(file)
        file.unlink()
        report = opened(file)
        report.line("/a/b", "added", "")
        file.write_bytes(damaged)
        with pytest.raises(OSError, match="another file is there by now"):
            report.close()
        assert file.read_bytes() == damaged
        assert "/a/b" in (tmp_path / "r.parquet.lines").read_text()


def test_lines_of_a_killed_run_that_are_none_of_a_report_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    (tmp_path / "r.parquet.lines").write_text(
        '{"uri": "/a/a", "status": "added"}\n5\n[]\n{"summary": 1}\n' + "[" * 100_000 + "\n"
    )
    with Journal(Report(), file) as journal:
        journal.line("/a/b", "added")
    assert [line["uri"] for line in read(file)] == ["/a/a", "/a/b"]


def test_a_report_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("r.jsonl", "r.csv", "r.parquet"):
        with pytest.raises(SettingsError, match="cannot write the report"):
            opened(tmp_path / "none" / name)


# Two thousand files, and five hundred that moved

READ = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "TIFF", "MPO")
KINDS = 25


def picture(seed: int) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((24, 16))


def saved(path: Path, seed: int, kind: str) -> None:
    picture(seed).save(path, kind)


def make_file(place: Path, kind: int, seed: int) -> str:
    """Make one file; returns the status that it must get."""
    stem = ["{}", "Zürich 東京 {}", "new\nline {}", "-{}", "a,b'\"{}"][seed % 5].format(seed)
    jpeg = encoded(np.asarray(picture(seed)), "JPEG")
    if kind < len(READ):
        saved(place / f"{stem}.{READ[kind].lower()}", seed, READ[kind])
        return "added"
    made: list[tuple[str, bytes, str]] = [
        ("", jpeg, "added"),  # told by its first bytes
        (".JPG", jpeg, "added"),
        (".heic", jpeg, "added"),
        (".dat", jpeg, "added"),
        (".jpg", jpeg[: len(jpeg) // 3], "failed"),
        (".jpeg", b"Dear diary", "failed"),
        (".png", b"", "failed"),
        (".jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9), "failed"),
        (".tif", b"II*\0" + bytes(40), "failed"),
        (".txt", b"x", "skipped"),
        (".mp4", b"\0\0\0\x18ftypmp42", "skipped"),
        ("", b"no photo", "skipped"),
    ]
    number = kind - len(READ)
    if number < len(made):
        suffix, content, status = made[number]
        (place / f"{stem}{suffix}").write_bytes(content)
        return status
    path = place / f"{stem}-{number}"
    if number == len(made):
        path.symlink_to("nowhere")
    elif number == len(made) + 1:
        os.mkfifo(path)
    elif number == len(made) + 2:
        path.with_name(f".{path.name}.png").write_bytes(jpeg)
    else:
        saved(place / f"real-{seed}.bmp", seed, "BMP")
        path.with_suffix(".jpg").symlink_to(f"real-{seed}.bmp")
        return "added"
    return "skipped"


@pytest.mark.slow
def test_of_2000_files_of_25_kinds_each_is_in_the_report_once_and_the_counts_add_up(
    photos: InstanceCollection, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    wanted: Counter[str] = Counter()
    seed = 0
    while wanted.total() < 2000:
        depth = seed // KINDS % 4
        place = folder.joinpath(*["sub folder", "x.jpg", "ümlaut"][:depth])
        place.mkdir(parents=True, exist_ok=True)
        wanted[make_file(place, seed % KINDS, seed)] += 1
        wanted["added"] += seed % KINDS == KINDS - 1  # the file that the link leads to
        seed += 1
    (folder / "round").symlink_to(folder)
    report = photos.add(folder, progress=False, report_file=tmp_path / "r.csv")
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    files.remove(folder / "round")
    lines = read(tmp_path / "r.csv")
    assert len(lines) == len(files) == 2000
    assert sorted(line["uri"] for line in lines) == sorted(map(str, files))
    assert Counter(line["status"] for line in lines) == wanted
    assert all(line["reason"] for line in lines if line["status"] in ("failed", "skipped"))
    assert (report.added, len(report.failed)) == (wanted["added"], wanted["failed"])
    assert sum(report.passed.values()) == wanted["skipped"]
    assert photos.count() == wanted["added"]
    again = photos.add(folder, progress=False, report_file=tmp_path / "r.csv")
    assert again.skipped == wanted["added"]
    statuses = Counter(line["status"] for line in read(tmp_path / "r.csv")[2000:])
    assert statuses == wanted - Counter(added=2000) + Counter(same=wanted["added"])


@pytest.mark.slow
def test_500_photos_moved_and_renamed_at_random_keep_all_fields_without_a_pass(
    photos: InstanceCollection,
    tmp_path: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after, chance = tmp_path / "before", tmp_path / "after", random.Random(5)
    before.mkdir()
    files = [before / f"{i}.png" for i in range(500)]
    for i, path in enumerate(files):
        saved(path, i, "PNG")
    photos.add(before, progress=False)
    photos.set_metadata({str(path): {"n": i, "of": [i]} for i, path in enumerate(files)})
    passes: list[int] = []
    monkeypatch.setattr(encoder, "encode_prepared", lambda batch: passes.append(len(batch)))
    # The old folder stays, and most names in it are those of other photos now.
    before.rename(tmp_path / "away")
    names = [f"{chance.choice(['a', 'b/c', 'd é'])}/{i}.png" for i in range(200)]
    places = [after / name for name in names] + [before / f"{i}.png" for i in range(300)]
    chance.shuffle(places)
    for path, place in zip(files, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "away" / path.name, place)
    report = photos.add([before, after], progress=False, report_file=tmp_path / "r.parquet")
    assert passes == []
    stayed = sum(path == place for path, place in zip(files, places, strict=True))
    assert (report.moved, report.skipped, report.added) == (500 - stayed, stayed, 0)
    rows = photos.get([str(place) for place in places])
    assert [row and row.metadata for row in rows] == [{"n": i, "of": [i]} for i in range(500)]
    assert photos.count() == 500
    lines = Counter(line["status"] for line in read(tmp_path / "r.parquet"))
    assert lines == {"moved": 500 - stayed} | ({"same": stayed} if stayed else {})
