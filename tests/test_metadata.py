"""The user's own fields: how they are given, and which photo they belong to."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import PIL.Image
import pytest
from PIL.ExifTags import IFD, Base

from cwf_milvus.errors import SettingsError
from cwf_milvus.index.metadata import Metadata
from cwf_milvus.photos.exif import exif_fields
from cwf_milvus.store.told import Told

BY_FRANCIS = {"artist": "Francis", "year": 1867}


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def refusal(source: object, folders: tuple[str, ...] = ()) -> str:
    with pytest.raises(SettingsError) as caught:
        Metadata.read(source, folders)
    return str(caught.value)


# --- whose fields they are -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["/photos/a/cat.jpg", "a/cat.jpg", "cat.jpg", Path("/photos/a/cat.jpg")]
)
def test_a_photo_is_named_by_its_uri_its_path_in_a_folder_or_its_bare_name(key):
    metadata = Metadata.read({key: BY_FRANCIS}, ["/elsewhere", "/photos"])
    assert metadata.of("/photos/a/cat.jpg") == BY_FRANCIS


def test_the_longer_name_wins():
    metadata = Metadata.read(
        {"cat.jpg": {"is": "bare"}, "a/cat.jpg": {"is": "path"}, "/p/b/cat.jpg": {"is": "uri"}},
        ["/p"],
    )
    assert metadata.of("/p/b/cat.jpg") == {"is": "uri"}
    assert metadata.of("/p/a/cat.jpg") == {"is": "path"}
    assert metadata.of("/p/c/cat.jpg") == {"is": "bare"}


def test_a_photo_of_which_nothing_is_said_has_none():
    metadata = Metadata.read({"a/cat.jpg": BY_FRANCIS}, ["/photos"])
    assert metadata.of("/photos/cat.jpg") is None
    assert metadata.of("/photosa/cat.jpg") is None
    assert metadata.of("/photos/a/cat.jpg.png") is None
    assert not Metadata.read({})
    assert metadata


def test_a_relative_path_object_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metadata = Metadata.read({Path("cat.jpg"): BY_FRANCIS})
    assert metadata.of(str(tmp_path / "cat.jpg")) == BY_FRANCIS
    assert metadata.of("/elsewhere/cat.jpg") is None


def test_urls_are_named_whole_or_bare():
    metadata = Metadata.read({"s3://bucket/a/cat.jpg": {"n": 1}, "dog.jpg": {"n": 2}})
    assert metadata.of("s3://bucket/a/cat.jpg") == {"n": 1}
    assert metadata.of("s3://bucket/b/dog.jpg") == {"n": 2}


# --- files ---------------------------------------------------------------------------------------


def test_a_csv_has_a_header_with_file_name(tmp_path):
    file = written(tmp_path / "m.csv", "artist,file_name,year\nFrancis,cat.jpg,1867\n")
    metadata = Metadata.read(file)
    assert metadata.of("/photos/cat.jpg") == {"artist": "Francis", "year": 1867}
    assert Metadata.read(str(file)).of("/photos/cat.jpg") == metadata.of("/photos/cat.jpg")


def test_a_csv_column_is_numbers_only_if_each_is_written_as_one(tmp_path: Path) -> None:
    text = "file_name,year,height,code,mixed\na.jpg,1867,1.5,007,3\nb.jpg,-20,2,12,three\n"
    metadata = Metadata.read(written(tmp_path / "m.csv", text))
    assert metadata.of("a.jpg") == {"year": 1867, "height": 1.5, "code": "007", "mixed": "3"}
    assert metadata.of("b.jpg") == {"year": -20, "height": 2.0, "code": "12", "mixed": "three"}


def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path):
    text = (
        "file_name,note\r\n"
        '"a, b.jpg","she said ""hi"",\r\non two lines"\r\n'
        "Zürich – 東京.jpg,Grüße\r\n\r\n"
    )
    metadata = Metadata.read(written(tmp_path / "M.CSV", text, "utf-8-sig"))
    assert metadata.of("/x/a, b.jpg") == {"note": 'she said "hi",\r\non two lines'}
    assert metadata.of("/x/Zürich – 東京.jpg") == {"note": "Grüße"}


def test_empty_cells_and_columns_without_a_name_are_no_fields(tmp_path):
    file = written(tmp_path / "m.csv", ",file_name,a,b\n0,cat.jpg,,0\n1,dog.jpg\n")
    metadata = Metadata.read(file)
    assert metadata.of("cat.jpg") == {"b": 0}
    assert metadata.of("dog.jpg") == {}


def test_jsonl_keeps_the_types_of_its_values(tmp_path):
    rows = [
        {"file_name": "cat.jpg", "year": 1867, "size": 1.5, "tags": ["a", "b"], "sold": None},
        {"file_name": "dog.jpg", "place": {"city": "Zürich"}, "framed": True},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    metadata = Metadata.read(written(tmp_path / "m.jsonl", text, "utf-8-sig"))
    for row in rows:
        assert metadata.of(str(row.pop("file_name"))) == row


def test_a_file_in_the_photos_folder_is_found_and_names_paths_in_it(tmp_path):
    written(tmp_path / "a/metadata.jsonl", '{"file_name": "sub/cat.jpg", "n": 1}\n')
    written(tmp_path / "b/metadata.csv", "file_name,n\ncat.jpg,2\n./x/../dog.jpg,3\n")
    metadata = Metadata.read(None, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert metadata.of(str(tmp_path / "a/sub/cat.jpg")) == {"n": 1}
    assert metadata.of(str(tmp_path / "b/cat.jpg")) == {"n": 2}
    assert metadata.of(str(tmp_path / "b/dog.jpg")) == {"n": 3}
    assert metadata.of(str(tmp_path / "a/cat.jpg")) is None


def test_of_two_files_in_a_folder_the_jsonl_is_read(tmp_path):
    written(tmp_path / "metadata.jsonl", '{"file_name": "cat.jpg", "n": 1}\n')
    written(tmp_path / "metadata.csv", "file_name,n\ncat.jpg,2\n")
    assert Metadata.read(None, [str(tmp_path)]).of(str(tmp_path / "cat.jpg")) == {"n": 1}


def test_without_a_file_beside_the_photos_nothing_is_said(tmp_path):
    (tmp_path / "metadata.csv").mkdir()
    assert not Metadata.read(None, [str(tmp_path)])
    assert not Metadata.read(None)


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("m.csv", "file_name,a\ncat.jpg,1\ndog.jpg,2,3\n", "line 3"),
        ("m.csv", 'file_name,a\n"cat.jpg","on\ntwo"\n,5\n', "line 4"),
        ("m.csv", "name,a\ncat.jpg,1\n", "line 2"),
        ("m.csv", "file_name;a\ncat.jpg;1\n", "line 2"),
        ("m.jsonl", '{"file_name": "a"}\n\n{"file_name": 5}\n', "line 3"),
        ("m.jsonl", '{"file_name": ""}\n', "line 1"),
        ("m.jsonl", '{"file_name": "a"}\n["b"]\n', "line 2"),
        ("m.jsonl", '{"file_name": "a"}\n\nnull\n', "line 3"),
    ],
)
def test_a_row_that_names_no_photo_or_does_not_fit_is_named(tmp_path, name, text, line):
    file = written(tmp_path / name, text)
    message = refusal(file)
    assert repr(str(file)) in message
    assert f"({line}: every row needs a 'file_name'" in message


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"file_name": "b", ', "Expecting property name"),
        ("artist,file_name", "Expecting value"),
        ('{"file_name": "b", "x": NaN}', "Out of range float"),
        ('{"file_name": "b", "x": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_no_json_or_that_milvus_could_not_store_is_named(tmp_path, bad, reason):
    file = written(tmp_path / "m.jsonl", '{"file_name": "a"}\n\n' + bad + "\n")
    message = refusal(file)
    assert "line 3: " in message
    assert reason in message
    assert ".jsonl with an object a line" in message


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    file = written(tmp_path / "m.csv", "file_name,a\ncafé.jpg,1\n", "latin-1")
    assert "'utf-8' codec" in refusal(file)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "gone.csv")
    assert repr(str(tmp_path)) in refusal(tmp_path)


def test_a_bad_file_beside_the_photos_is_refused_too(tmp_path):
    written(tmp_path / "metadata.csv", "name\ncat.jpg\n")
    assert "line 2" in refusal(None, (str(tmp_path),))


def test_a_mapping_to_something_other_than_fields_is_refused():
    assert "metadata of 'cat.jpg' is 'Francis'" in refusal({"cat.jpg": "Francis"})


# --- rows and photos -----------------------------------------------------------------------------


def test_rows_that_name_no_photo_or_one_twice_are_told_by_number_and_name(tmp_path):
    written(
        tmp_path / "metadata.csv", "file_name,n\ngood.jpg,1\nbb.jpg,2\n./good.jpg,3\ncc.jpg,4\n"
    )
    metadata = Metadata.read(None, [str(tmp_path)])
    twice, unknown = metadata.match([str(tmp_path / "good.jpg")])
    assert "an earlier one names, and count in its place: 1 (line 4 './good.jpg')" in twice
    assert "none of these 1 photos: 2 (line 3 'bb.jpg', line 5 'cc.jpg')" in unknown
    assert metadata.of(str(tmp_path / "good.jpg")) == {"n": 3}


@pytest.mark.parametrize(
    ("row", "photo"),
    [
        ("img.jpg", "IMG.JPG"),
        ("\u00e9.jpg", "e\u0301.jpg"),
        ("e\u0301.jpg", "\u00e9.jpg"),
        ("s\\d.jpg", "s/d.jpg"),
        ("S\\\u00c9.jpg", "s/e\u0301.JPG"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_row_that_differs_in_spelling_alone_is_taken_and_told(tmp_path, row, photo, beside):
    file = written(tmp_path / "metadata.csv", f"file_name,n\n{row},1\n")
    metadata = Metadata.read(None if beside else file, [str(tmp_path)])
    (told,) = metadata.match([str(tmp_path / photo), str(tmp_path / "other.jpg")])
    assert f"were taken for it: 1 (line 2 {row!r})" in told
    assert metadata.of(str(tmp_path / photo)) == {"n": 1}


def test_a_name_that_is_right_is_not_taken_for_another_spelling():
    metadata = Metadata.read({"a.jpg": {"n": 1}})
    assert metadata.match(["/p/A.JPG", "/p/a.jpg"]) == []
    assert metadata.of("/p/A.JPG") is None


@pytest.mark.parametrize("uris", [["/p/a/cat.jpg", "/p/b/cat.jpg"], ["/p/Cat.jpg", "/p/CAT.jpg"]])
def test_a_name_that_fits_two_photos_is_refused(uris):
    with pytest.raises(SettingsError, match=r"'cat.jpg' fits 2 photos, such as .* and .*: write"):
        Metadata.read({"cat.jpg": BY_FRANCIS}, ["/p"]).match(uris)


def test_a_word_for_no_value_leaves_a_column_numbers_and_is_told(tmp_path):
    text = "file_name,year\na.jpg,2001\nb.jpg,2020.5\nc.jpg,N/A\nd.jpg,unknown\n"
    metadata = Metadata.read(written(tmp_path / "m.csv", text))
    assert [metadata.of(f"{name}.jpg") for name in "abcd"] == [
        {"year": 2001.0},
        {"year": 2020.5},
        {},
        {},
    ]
    (told,) = metadata.match([f"{name}.jpg" for name in "abcd"])
    assert (
        "column 'year' is numbers: values left out that are none: 2, such as 'N/A' in line 4"
        in told
    )


def test_another_text_among_numbers_makes_the_column_text_and_is_told(tmp_path):
    text = "file_name,year\na.jpg,2001\nb.jpg,2020\nc.jpg,about 1900\n"
    metadata = Metadata.read(written(tmp_path / "m.csv", text))
    assert metadata.of("a.jpg") == {"year": "2001"}
    (told,) = metadata.match(["a.jpg", "b.jpg", "c.jpg"])
    assert "'year' stays text" in told
    assert "3 values 1 are no numbers, such as 'about 1900' in line 4" in told


def test_what_lies_beside_the_photo_gives_way_to_what_was_given():
    given = Told({"year": 1, "artist": "Francis"})
    beside = Told({"year": 2, "place": "Zürich"}, ["year", "place"])
    both = beside.over(given)
    assert both == {"year": 1, "artist": "Francis", "place": "Zürich"}
    assert both.beside == {"place"}
    assert Told({"place": "Basel"}, ["place"]).over(both)["place"] == "Basel"
    assert Told({"place": "Bern"}).over(both).beside == frozenset()


# --- EXIF ----------------------------------------------------------------------------------------


def with_exif(kind: str) -> bytes:
    exif = PIL.Image.Exif()
    exif[Base.Make], exif[Base.Model], exif[Base.Orientation] = "ACME", "ACME Eye 3", 6
    exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2024:05:01 12:30:00"
    exif.get_ifd(IFD.Exif)[Base.OffsetTimeOriginal] = "+02:00"
    exif.get_ifd(IFD.GPSInfo).update({1: "S", 2: (8.0, 30.0, 36.0), 3: "E", 4: (9.0, 0.0, 0.0)})
    exif.get_ifd(IFD.GPSInfo).update({5: b"\x01", 6: 12.5})
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 24), "red").save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_the_camera_wrote_becomes_fields_that_compare(kind):
    assert exif_fields(with_exif(kind), "a") == {
        "exif_camera": "ACME Eye 3",
        "exif_orientation": 6,
        "exif_date": "2024-05-01T12:30:00+02:00",
        "exif_time": 1714559400,
        "exif_latitude": -8.51,
        "exif_longitude": 9.0,
        "exif_altitude": -12.5,
    }


def test_broken_exif_is_no_fields():
    good = with_exif("JPEG")
    assert exif_fields(good.replace(b"2024:05:01", b"2024:99:01"), "a").keys() == {
        "exif_camera",
        "exif_orientation",
        "exif_latitude",
        "exif_longitude",
        "exif_altitude",
    }
    start = good.index(b"Exif\0\0") + 6
    for at in range(start, start + 60):
        exif_fields(good[:at] + b"\xff\xff\xff" + good[at + 3 :], "a")
    assert exif_fields(b"no photo", "a") == {}


def test_a_huge_file_and_one_that_is_none_are_refused_at_once(tmp_path):
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(8 * 10**9)  # takes no room
    assert "it has 8,000,000,000 bytes, and 268,435,456 are read at once: split it" in refusal(huge)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    assert "it is a folder, pipe, socket or device" in refusal(tmp_path / "pipe.csv")
    assert "loop.csv" in refusal(tmp_path / "loop.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    assert "it is a folder, pipe, socket or device" in refusal(tmp_path / "zero.csv")
