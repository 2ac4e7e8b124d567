"""`cwf-milvus demo`: real photos, real weights, and every view of a thing found."""

import importlib.util
from pathlib import Path

import PIL.Image
import pytest

from cwf_milvus.cli.program import main
from cwf_milvus.demo import THINGS, run_demo, write_photos


def views(thing):
    """The names of all the photos that show a thing; the motorcycle has a second real one."""
    stem = Path(thing.photo).stem
    made = {f"{stem}-{kind}.jpg" for kind in ("crop", "turned", "mirrored-darker")}
    made |= {f"{stem}-in-{Path(scene).stem}.jpg" for scene in thing.scenes}
    return made | {thing.photo} | ({"motorcycle_right.png"} if "motorcycle" in stem else set())


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_every_view_of_each_thing_ranks_above_all_else_and_a_second_run_skips_them(tmp_path):
    said = []
    outcome = run_demo(tmp_path / "demo", say=said.append, progress=False)
    assert (outcome.report.added, outcome.report.failed) == (39, [])
    for thing, hits in zip(THINGS, outcome.answers, strict=True):
        assert hits.query.box == thing.box
        first = [Path(hit.uri).name for hit in hits][: len(views(thing))]
        assert set(first) == views(thing)
        assert f"query {thing.photo}, box " in "".join(said)
        assert hits.found
        assert hits[0].stages[-1].stage == "graph"
    assert outcome.absent.found is False
    assert "probably not here" in "".join(said)
    scenes = said[said.index("\nphotos of one scene:") + 1 :]
    assert any("motorcycle_left.png" in one and "motorcycle_right.png" in one for one in scenes)
    page = outcome.page.read_text()
    assert outcome.page == tmp_path / "demo" / "hits.html"
    assert str(outcome.page) in said[-1]
    assert page.count("data:image/") >= sum(len(hits) + 1 for hits in outcome.answers)
    assert "http://" not in page
    assert "<script" not in page

    again = run_demo(tmp_path / "demo", say=said.append, progress=False)
    assert (again.report.added, again.report.updated, again.report.skipped) == (0, 0, 39)
    for before, after in zip(outcome.answers, again.answers, strict=True):
        assert [hit.uri for hit in after] == [hit.uri for hit in before]


def test_photos_are_written_whole_once_and_others_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    files = write_photos(tmp_path)
    assert len(files) == len(set(files)) == 39
    assert tmp_path / "holiday.jpg" not in files
    for file in files:
        with PIL.Image.open(file) as photo:
            photo.load()
    before = content(tmp_path)
    assert len(before) == 40  # nothing half written
    for thing in THINGS:
        assert views(thing) <= set(before)

    (tmp_path / "coffee-crop.jpg").unlink()

    write_bytes = Path.write_bytes

    def cut_off(file, data):  # a disk that fills up
        write_bytes(file, data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut_off)
        with pytest.raises(OSError, match="No space"):
            write_photos(tmp_path)
    assert not (tmp_path / "coffee-crop.jpg").exists()
    assert write_photos(tmp_path) == files
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["demo", "--folder", str(tmp_path / "file" / "demo")]) == 2
    message = capsys.readouterr().err
    assert "cannot write the demonstration to" in message
    assert "--folder" in message


def test_without_the_packages_of_the_photos_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec

    def missing(name, *rest):
        if name.startswith("skimage"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert main(["demo", "--folder", str(tmp_path / "demo")]) == 2
    assert "pip install 'cwf-milvus[demo]'" in capsys.readouterr().err
