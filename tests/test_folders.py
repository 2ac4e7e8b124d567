"""Folders that live: photos that move, folders that vanish, and which photos a name means."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from small_encoders import tiny

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.views import Prepared
from cwf_milvus.errors import CollectionError, FilterError, SettingsError
from cwf_milvus.model import ClassWeightedEmbeddingFunction
from cwf_milvus.store.ledger import Ledger
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.verification import Originals


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny(whitening=None, image_size=64, class_image_size=32, n_classes=4, n_pooled=4)


@pytest.fixture
def photos(tmp_path: Path, encoder: Encoder) -> Iterator[InstanceCollection]:
    place = tmp_path / "a.db"
    with InstanceCollection.create(place, "photos", encoder, class_rows=True) as made:
        yield made


@pytest.fixture
def passes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many photos each pass of the network from here on has."""
    sizes: list[int] = []
    encode = encoder.encode_prepared

    def counted(batch: Sequence[Prepared]) -> list[object]:
        sizes.append(len(batch))
        return list(encode(batch))

    monkeypatch.setattr(encoder, "encode_prepared", counted)
    return sizes


def drawn(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), np.uint8)
    PIL.Image.fromarray(small).resize((72, 48)).save(path)
    return path


def fill(folder: Path, n: int) -> list[Path]:
    return [drawn(folder / f"{i}.png", i) for i in range(n)]


def fields(collection: InstanceCollection) -> dict[str, dict[str, object]]:
    return {row.uri: row.metadata for row in collection.get(list(collection.uris())) if row}


def tell(collection: InstanceCollection, paths: Sequence[Path]) -> None:
    collection.set_metadata({str(path): {"n": i} for i, path in enumerate(paths)})


def statuses(report: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return {line["uri"]: line["status"] for line in lines if "uri" in line}


# Photos that moved


def test_moved_and_renamed_photos_keep_row_and_fields_without_a_pass(
    photos: InstanceCollection, tmp_path: Path, passes: list[int]
) -> None:
    root = tmp_path / "in"
    paths = fill(root, 30)
    photos.add(root, progress=False)
    tell(photos, paths)
    vectors = {i: photos.get(path, vectors=True)[0].packed for i, path in enumerate(paths)}
    chance = random.Random(0)
    shutil.move(root, tmp_path / "away")
    names = [f"{chance.choice('abc')}/{i}.png" for i in range(20)] + [f"{i}.png" for i in range(10)]
    chance.shuffle(names)  # some get a name that another had
    for path, name in zip(paths, names, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "away" / path.name, root / name)
    passes.clear()
    report = photos.add(root, progress=False, report_file=tmp_path / "r.jsonl")
    still = sum(paths[i] == root / name for i, name in enumerate(names))
    assert passes == []
    assert (report.moved, report.added, report.skipped) == (30 - still, 0, still)
    assert fields(photos) == {str(root / name): {"n": i} for i, name in enumerate(names)}
    for i, name in enumerate(names):
        assert photos.get(root / name, vectors=True)[0].packed == vectors[i]
    assert photos.verify().ok
    assert list(statuses(tmp_path / "r.jsonl").values()).count("moved") == 30 - still


def test_a_folder_that_was_renamed_keeps_its_rows(
    photos: InstanceCollection, tmp_path: Path, passes: list[int]
) -> None:
    paths = fill(tmp_path / "old", 3)
    photos.add(tmp_path / "old", progress=False)
    tell(photos, paths)
    passes.clear()
    (tmp_path / "old").rename(tmp_path / "new")
    assert photos.add(tmp_path / "new", progress=False).moved == 3
    assert passes == []
    assert fields(photos) == {str(tmp_path / "new" / f"{i}.png"): {"n": i} for i in range(3)}


def test_a_few_new_photos_are_held_against_rows_of_their_content_alone(
    photos: InstanceCollection,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = fill(tmp_path / "in", 4)
    photos.add(tmp_path / "in", progress=False)
    passes.clear()
    renamed = paths[0].rename(tmp_path / "in" / "renamed.png")

    def listed() -> Iterator[str]:
        pytest.fail("every stored photo was listed")
        yield ""

    monkeypatch.setattr(photos, "uris", listed)
    assert photos.add([renamed], progress=False).moved == 1
    assert passes == []


def test_many_new_photos_are_held_against_all_rows(
    photos: InstanceCollection,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(tmp_path / "in", 4)
    photos.add(tmp_path / "in", progress=False)
    passes.clear()
    (tmp_path / "in").rename(tmp_path / "new")
    monkeypatch.setattr("cwf_milvus.index.moved._LOOKUP", 2)
    assert photos.add(tmp_path / "new", progress=False).moved == 4
    assert passes == []


def test_a_copy_of_a_photo_is_no_moved_photo(photos: InstanceCollection, tmp_path: Path) -> None:
    (path,) = fill(tmp_path / "in", 1)
    photos.add(tmp_path / "in", progress=False)
    shutil.copy(path, tmp_path / "in" / "copy.png")
    report = photos.add(tmp_path / "in", progress=False)
    assert (report.added, report.moved, photos.count()) == (1, 0, 2)


def test_the_name_of_a_moved_photo_may_be_another_photos_now(
    photos: InstanceCollection, tmp_path: Path, passes: list[int]
) -> None:
    (path,) = fill(tmp_path / "in", 1)
    photos.add(tmp_path / "in", progress=False)
    tell(photos, [path])
    path.rename(tmp_path / "in" / "kept.png")
    drawn(path, 99)
    passes.clear()
    report = photos.add(tmp_path / "in", progress=False)
    assert (report.moved, report.added, report.updated, passes) == (1, 1, 0, [1])
    assert fields(photos) == {str(tmp_path / "in" / "kept.png"): {"n": 0}, str(path): {}}
    assert photos.verify().ok


@pytest.mark.parametrize("step", ["note", "write", "remove"])
def test_a_move_that_was_cut_off_is_ended_by_the_next_run(
    photos: InstanceCollection, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = fill(tmp_path / "in", 1)
    photos.add(tmp_path / "in", progress=False)
    tell(photos, [path])
    moved = path.rename(tmp_path / "in" / "moved.png")

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        where = {"note": (Ledger, "_give"), "remove": (PhotoRows, "remove")}
        if step == "write":
            patch.setattr(photos.class_rows, "copy", cut)
        else:
            patch.setattr(*where[step], cut)
        with pytest.raises(KeyboardInterrupt):
            photos.add(tmp_path / "in", progress=False)
    photos.add(tmp_path / "in", progress=False)
    assert fields(photos) == {str(moved): {"n": 0}}
    outcome = photos.verify()
    assert outcome.ok, outcome


def test_relocate_gives_a_folder_that_cannot_be_read_its_new_name(
    photos: InstanceCollection, encoder: Encoder
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 72, 3), np.uint8)
    names = ["s3://old/a/1.jpg", "s3://old/a/b/2.jpg", "s3://old/ab/3.jpg"]
    photos.add(dict.fromkeys(names, image), progress=False)
    assert photos.relocate("s3://old/a", "s3://new") == 2
    assert set(photos.uris()) == {"s3://new/1.jpg", "s3://new/b/2.jpg", names[2]}
    with pytest.raises(CollectionError, match="nothing is stored of 's3://old/a'"):
        photos.relocate("s3://old/a", "s3://new")
    photos.add({"s3://old/ab/1.jpg": image}, progress=False)
    with pytest.raises(CollectionError, match="is stored already"):
        photos.relocate("s3://old/ab", "s3://new")
    assert photos.verify().ok


# Fields


def test_a_second_file_adds_fields_and_the_folders_own_undoes_none_that_was_given(
    photos: InstanceCollection, tmp_path: Path
) -> None:
    paths = fill(tmp_path / "in", 2)
    own = tmp_path / "in" / "metadata.csv"
    own.write_text("file_name,year,place\n0.png,1,here\n1.png,1,here\n")

    def added(**options: object) -> dict[str, object]:
        photos.add(tmp_path / "in", progress=False, **options)
        return fields(photos)[str(paths[0])]

    assert added() == {"year": 1, "place": "here"}
    assert added(metadata={"0.png": {"year": 2, "who": "me"}}) == {
        "year": 2,
        "place": "here",
        "who": "me",
    }
    own.write_text("file_name,year,place\n0.png,3,there\n1.png,3,there\n")
    drawn(paths[0], 77)  # and other bytes change nothing in this
    assert added() == {"year": 2, "place": "there", "who": "me"}
    assert fields(photos)[str(paths[1])] == {"year": 3, "place": "there"}
    again = {"metadata": {"0.png": {"n": 1}}, "replace_metadata": True}
    assert added(**again) == {"n": 1}
    assert fields(photos)[str(paths[1])] == {"year": 3, "place": "there"}
    assert photos.verify().ok


def test_exif_fields_can_be_added_to_stored_photos(
    photos: InstanceCollection, tmp_path: Path, passes: list[int]
) -> None:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Model] = "Eye 3"
    PIL.Image.new("RGB", (72, 48), "red").save(tmp_path / "a.jpg", exif=exif)
    photos.add(tmp_path / "a.jpg", progress=False, metadata={"a.jpg": {"exif_camera": "mine"}})
    PIL.Image.new("RGB", (72, 48), "blue").save(tmp_path / "b.jpg", exif=exif)
    photos.add(tmp_path / "b.jpg", progress=False)
    passes.clear()
    photos.add([tmp_path / "a.jpg", tmp_path / "b.jpg"], progress=False, exif=True)
    assert passes == []
    cameras = [row["exif_camera"] for row in fields(photos).values()]
    assert cameras == ["mine", "Eye 3"]


def test_info_lists_fields_with_types_and_counts(
    photos: InstanceCollection, tmp_path: Path
) -> None:
    told = {"0.png": {"year": 1, "tags": ["a"]}, "1.png": {"year": 1.5}, "2.png": {"year": "x"}}
    fill(tmp_path / "in", 4)
    photos.add(tmp_path / "in", progress=False, metadata=told)
    assert photos.info()["fields"] == {
        "tags": {"list": 1},
        "year": {"whole number": 1, "number": 1, "text": 1},
    }


@pytest.mark.parametrize(
    "filter",
    [
        "yeer > 1",
        "year > 0 or yeer > 1",
        "yeer is null",
        "array_length(yeer) > 0",
        'yeer == "year"',
    ],
)
def test_a_filter_that_names_an_unknown_field_says_which_there_are(
    photos: InstanceCollection, tmp_path: Path, filter: str
) -> None:
    paths = fill(tmp_path / "in", 2)
    photos.add(tmp_path / "in", progress=False, metadata={"0.png": {"year": 1}})
    with pytest.raises(FilterError, match=r"names 'yeer'.* Your fields: year \(whole number\)"):
        photos.search(paths[0], filter=filter)


@pytest.mark.parametrize(
    "filter",
    ["year > 5", 'year == 1 or content == "yeer"', "width >= 1e1", "array_contains(class_ids, 3)"],
)
def test_a_filter_that_finds_nothing_may_be_right(
    photos: InstanceCollection, tmp_path: Path, filter: str
) -> None:
    paths = fill(tmp_path / "in", 2)
    photos.add(tmp_path / "in", progress=False, metadata={"0.png": {"year": 1}})
    assert len(photos.search(paths[0], filter=filter)) in (0, 1, 2)


def test_fields_are_shown_in_table_and_page(photos: InstanceCollection, tmp_path: Path) -> None:
    paths = fill(tmp_path / "in", 2)
    told = {"0.png": {"year": 1867, "note": "secret", "artist": "Francis"}}
    photos.add(tmp_path / "in", progress=False, metadata=told)
    page = tmp_path / "page.html"
    hits = photos.search(paths[0])
    header, first, *_ = hits.table(show=["artist", "year"]).splitlines()
    assert "photo" in header.split()[:-4]
    assert header.split()[-4:] == ["artist", "year", "shared", "classes"]
    assert "Francis  1867" in first
    hits.save(page, show=["artist"])
    assert "Francis" in page.read_text()
    assert "secret" not in page.read_text()


# Pruning


@pytest.mark.parametrize("gone", ["empty", "missing", "a third"])
def test_prune_stops_where_so_much_is_gone_that_the_folder_may_be_out_of_reach(
    photos: InstanceCollection, tmp_path: Path, gone: str
) -> None:
    root = tmp_path / "in"
    paths = fill(root, 12)
    photos.add(root, progress=False)
    for path in paths[:4] if gone == "a third" else paths:
        path.unlink()
    if gone == "missing":
        root.rmdir()
    with pytest.raises(SettingsError, match="give --prune-anyway"):
        photos.add(root, prune=True, progress=False)
    assert photos.count() == 12
    report = photos.add(root, prune_anyway=True, progress=False)
    assert report.pruned == 12 - photos.count() == (4 if gone == "a third" else 12)


def test_prune_removes_a_fifth_and_moved_photos_are_none_of_them(
    photos: InstanceCollection, tmp_path: Path
) -> None:
    paths = fill(tmp_path / "in", 10)
    photos.add(tmp_path / "in", progress=False)
    for path in paths[:2]:
        path.unlink()
    for path in paths[2:]:
        path.rename(path.with_name(f"new-{path.name}"))
    report = photos.add(tmp_path / "in", prune=True, progress=False)
    assert (report.pruned, report.moved, photos.count()) == (2, 8, 8)


# One name for one photo


def test_one_text_or_path_is_one_photo_and_never_its_letters(
    photos: InstanceCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = fill(tmp_path / "in", 2)
    photos.add({str(i): paths[0] for i in (0, 1, 10)}, progress=False)
    photos.add("in", progress=False)
    assert photos.remove("10") == 1
    assert set(photos.contents("1")) == {"1"}
    for name in (paths[0], str(paths[0]), "in/0.png", Path("in/0.png")):
        assert [row.uri for row in photos.get(name)] == [str(paths[0])]
        assert [row.uri for row in photos.get([name])] == [str(paths[0])]
        assert str(paths[0]) not in [hit.uri for hit in photos.search(like=name)]
        assert photos.set_metadata({name: {"name": repr(name)}}) == [str(paths[0])]
    assert photos.remove(["in/0.png", Path("in/1.png")]) == 2
    assert set(photos.uris()) == {"0", "1"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_its_other_unicode_form_means_the_photo(
    photos: InstanceCollection, tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    stored = tmp_path / "in" / unicodedata.normalize(form, "Zürich.png")
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], str(stored))
    photos.add(drawn(stored, 1), progress=False)
    assert photos.contents(other).keys() == {str(stored)}
    photos.add(drawn(Path(other), 2), progress=False)  # now it is a photo of its own
    assert photos.contents([other]).keys() == {other}
    assert photos.remove(Path(other)) == 1
    assert list(photos.uris()) == [str(stored)]


@pytest.mark.parametrize("wrong", [b"in/0.png", 5, [5], [None]])
def test_what_is_no_name_is_refused(photos: InstanceCollection, wrong: object) -> None:
    for work in (photos.get, photos.remove, photos.contents):
        with pytest.raises(SettingsError, match="is no name"):
            work(wrong)


def test_one_photo_in_place_of_a_list_to_encode_is_refused(
    encoder: Encoder, tmp_path: Path
) -> None:
    (path,) = fill(tmp_path, 1)
    for one in (path, str(path), path.read_bytes(), PIL.Image.open(path), np.zeros((9, 9, 3))):
        with pytest.raises(SettingsError, match="several photos"):
            encoder.encode(one)
        with pytest.raises(SettingsError, match="several queries"):
            encoder.encode_queries(one)
    function = object.__new__(ClassWeightedEmbeddingFunction)
    function.encoder = encoder
    for one in (path, str(path), (str(path), (0, 0, 9, 9))):
        with pytest.raises(SettingsError, match="several queries"):
            function.encode_queries(one)


def test_two_photos_of_one_name_are_refused(photos: InstanceCollection) -> None:
    image = np.zeros((48, 72, 3), np.uint8)
    with pytest.raises(SettingsError, match="two photos are called '1'"):
        photos.add({1: image, "1": image}, progress=False)


# On the command line


def test_remove_takes_a_deleted_folder_and_asks_before_what_is_still_there(
    photos: InstanceCollection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "old", 2)
    fill(tmp_path / "here", 2)
    photos.add([tmp_path / "old", tmp_path / "here"], progress=False)
    shutil.rmtree(tmp_path / "old")
    where = ("--uri", str(tmp_path / "a.db"))
    assert main(["remove", str(tmp_path / "old"), *where]) == 0
    assert main(["remove", str(tmp_path / "here"), *where]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert main(["remove", "--all", *where]) == 2
    assert photos.count() == 2
    assert main(["relocate", str(tmp_path / "here"), str(tmp_path / "there"), *where]) == 0
    assert set(photos.uris()) == {str(tmp_path / "there" / f"{i}.png") for i in range(2)}
    assert main(["remove", "--all", "--yes", *where]) == 0
    assert not InstanceCollection.exists(tmp_path / "a.db", "photos")


# Photos that are gone or changed


def test_verify_names_the_rows_whose_files_are_gone_changed_or_unreadable(
    photos: InstanceCollection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, changed, folder, kept = fill(tmp_path / "in", 4)
    photos.add(tmp_path / "in", progress=False)
    photos.add({"a key": np.zeros((40, 40, 3), np.uint8)}, progress=False)
    assert photos.verify(files=True).ok
    gone.unlink()
    drawn(changed, 99)
    folder.unlink()
    folder.mkdir()
    assert photos.verify().ok
    outcome = photos.verify(files=True)
    assert outcome.originals == Originals([str(gone)], [str(changed)], [str(folder)], 1)
    assert not outcome.ok
    assert repr(str(changed)) in str(outcome)
    assert str(kept) not in str(outcome)
    photos.close()
    assert main(["verify", "--files", "--json", "--uri", str(tmp_path / "a.db")]) == 1
    assert json.loads(capsys.readouterr().out)["originals"]["gone"] == [str(gone)]
