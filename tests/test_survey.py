"""What lies in a folder: every file is met once, and taken for what it is."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path

import pytest
from command_line import TINY
from photo_files import CHELSEA, encoded, saved

from cwf_milvus.cli import main
from cwf_milvus.photos import formats
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.photos.survey import Met, survey

JPEG = encoded(CHELSEA[:60, :90], "JPEG")


def met(source: object) -> dict[str, Met]:
    found = list(survey(source))  # type: ignore[arg-type]
    by_uri = {one.uri: one for one in found}
    assert len(by_uri) == len(found)
    return by_uri


def test_photos_are_met_by_their_ending_or_their_first_bytes(tmp_path):
    for name in ("a.jpg", "IMG_0001", "b.dat", "c.JPEG.part"):
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "broken.jpg").write_bytes(b"text")
    assert {one.verdict for one in met(tmp_path).values()} == {"photo"}
    assert len(list_photos(tmp_path)) == 5


def test_other_files_are_met_with_their_kind(tmp_path):
    for name in ("notes.txt", "B.TXT", "movie.mp4", "LICENSE", "empty", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"BM, they said")
    kinds = {Path(uri).name: one.reason for uri, one in met(tmp_path).items()}
    assert kinds == {
        "notes.txt": ".txt",
        "B.TXT": ".txt",
        "movie.mp4": ".mp4",
        "LICENSE": "no ending",
        "empty": "no ending",
        "x.tar.gz": ".gz",
    }
    assert list_photos(tmp_path) == []


def test_photos_that_no_decoder_is_here_for_are_met_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_library", lambda name: None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    for name, content in (
        ("a.HEIC", heic),
        ("b", heic),
        ("c.dng", b"II*\0"),
        ("d.jxl", b"\xff\x0a"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "renamed.heic").write_bytes(JPEG)
    found = {Path(uri).name: one for uri, one in met(tmp_path).items()}
    assert found.pop("renamed.heic").verdict == "photo"
    assert {one.verdict for one in found.values()} == {"unreadable"}
    assert "pip install 'cwf-milvus[heic]'" in found["a.HEIC"].reason
    assert "pip install 'cwf-milvus[heic]'" in found["b"].reason
    assert "pip install 'cwf-milvus[raw]'" in found["c.dng"].reason
    assert "save it as JPEG or PNG" in found["d.jxl"].reason
    assert len(list_photos(tmp_path)) == 5


def test_special_files_are_named_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        server.bind("socket")
        found = {Path(uri).name: (one.verdict, one.reason) for uri, one in met(tmp_path).items()}
    assert found == {
        "pipe": ("special", "it is a pipe"),
        "zero": ("special", "it is a device"),
        "socket": ("special", "it is a socket"),
        "loop": ("special", "it is a link to nothing, or to itself"),
        "nowhere": ("special", "it is a link to nothing, or to itself"),
    }


def test_a_file_without_access_is_named(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_bytes(JPEG)
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root the mode does not bite
        opened = os.open

        def denied(name: object, *arguments: int) -> int:
            if str(name) == str(path):
                raise PermissionError(13, "Permission denied", str(name))
            return opened(name, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", denied)
    (one,) = met(tmp_path).values()
    assert (one.verdict, one.reason) == ("special", "Permission denied")


def test_hidden_names_are_met_and_hidden_folders_not_entered(tmp_path):
    saved(tmp_path / ".hidden.png")
    (tmp_path / ".cache").mkdir()
    saved(tmp_path / ".cache" / "a.png")
    assert {Path(uri).name: one.verdict for uri, one in met(tmp_path).items()} == {
        ".hidden.png": "hidden",
        ".cache": "hidden",
    }


def test_a_path_that_is_too_long_does_not_vanish(tmp_path):
    depth, here = 0, os.open(tmp_path, os.O_RDONLY)
    while depth < 20:  # of 255 letters each: beyond 4,096
        os.mkdir("d" * 255, dir_fd=here)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = below, depth + 1
    os.close(here)
    (one,) = met(tmp_path).values()
    assert one.verdict == "unreadable"
    assert "File name too long" in one.reason
    assert len(one.reason) < 500
    assert len(one.uri) > 3800


def test_every_file_is_in_the_report_exactly_once_and_the_counts_add_up(tmp_path, capsys):
    """Of 25 kinds, nested, linked and oddly named."""
    folder = tmp_path / "in"
    read = ("PNG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "TIFF")
    kinds = {kind: (f".{kind.lower()}", encoded(CHELSEA[:40, :60], kind)) for kind in read}
    kinds |= {
        "JPEG": (".jpg", JPEG),
        "bare": ("", JPEG + b"1"),
        "cut": (".jpg", JPEG[:400]),
        "text": (".jpeg", b"Dear diary"),
        "empty": (".png", b""),
        "jxl": (".jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9)),
        "note": (".txt", b"x"),
        "film": (".mp4", b"x"),
        "none": ("", b"x"),
        "csv": (".csv", b"a,b\n"),
    }
    for number in range(6):
        place = folder / ["", "a", "a/b", "Zürich 東京", "x.jpg", "new\nline"][number]
        place.mkdir(parents=True, exist_ok=True)
        for name, (suffix, content) in kinds.items():
            (place / f"{name} {number}{suffix}").write_bytes(content)
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "again.jpg").symlink_to("JPEG 0.jpg")
    (folder / "back").symlink_to(folder)
    saved(folder / ".hidden.png")
    report = tmp_path / "report.jsonl"
    options = ["--uri", str(tmp_path / "p.db"), "--report", str(report), *TINY]
    assert main(["index", str(folder), *options]) == 1
    *lines, summary = [json.loads(line) for line in report.read_text().splitlines()]
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    assert sorted(line["uri"] for line in lines) == sorted(map(str, files))
    counts = Counter(line["status"] for line in lines)
    summary = summary["summary"]
    assert counts["added"] == summary["added"] == 6 * 9 + 1
    assert counts["failed"] == summary["failed"] == 6 * 4 + 1
    assert counts["skipped"] == sum(summary["passed"].values()) == 6 * 4 + 3
    others = dict.fromkeys((".txt", ".mp4", ".csv", "no ending"), 6)
    assert summary["passed"] == others | {"special": 2, "hidden": 1}
    said = "passed over: 6 .csv, 6 .mp4, 6 .txt, 1 hidden, 6 no ending, 2 special"
    assert said in capsys.readouterr().out


def test_a_folder_of_urls_is_met_by_its_endings():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("a.png", "b.txt", ".hidden.png", "c.jxl"):
        files.pipe(f"/survey/{name}", encoded())
    try:
        found = {uri.rpartition("/")[2]: one.verdict for uri, one in met("memory://survey").items()}
    finally:
        files.rm("/survey", recursive=True)
    assert found == {
        "a.png": "photo",
        "b.txt": "other",
        ".hidden.png": "hidden",
        "c.jxl": "unreadable",
    }


def test_a_photo_as_text_is_refused_shortly():
    import base64

    text = base64.b64encode(JPEG).decode()
    for given in (text, f"data:image/jpeg;base64,{text}", "data:image/png;base64,iVBORw0KGgo"):
        with pytest.raises(
            ValueError, match="is a photo as text, not a name; give the bytes"
        ) as error:
            list_photos(given)
        assert len(str(error.value)) < 300
