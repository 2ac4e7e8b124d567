"""`upgrade`: keypoints for a collection that was made without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from milvus_server import MilvusServer
from PIL import Image as PilImage
from small_encoders import CHELSEA, COFFEE, ROCKET, tiny

from cwf_milvus.cli.program import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.settings import COMPACT
from cwf_milvus.index import upgrade
from cwf_milvus.store.layout import Layout

PHOTOS = {"chelsea": CHELSEA, "coffee": COFFEE, "part": CHELSEA[:, 80:400], "rocket": ROCKET}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny(whitening=None, keypoints=0)


@pytest.fixture
def place(tmp_path: Path, encoder: Encoder) -> tuple[str, str]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in PHOTOS.items():
        PilImage.fromarray(pixels).save(folder / f"{name}.png")
    with InstanceCollection.create(tmp_path / "photos.db", "old", encoder) as made:
        made.add(folder, metadata={f"{n}.png": {"thing": n} for n in PHOTOS}, progress=False)
    return str(tmp_path / "photos.db"), "old"


def uris(place: tuple[str, str]) -> dict[str, str]:
    folder = Path(place[0]).parent / "photos"
    return {name: str(folder / f"{name}.png") for name in PHOTOS}


def test_rows_get_their_keypoints_and_are_searched_by_them(place):
    with InstanceCollection.open(*place) as photos:
        before = photos.get(sorted(photos.uris()), vectors=True)
        report = photos.upgrade(progress=False)
        assert (report.updated, report.failed) == (4, [])
        assert photos.encoder.settings.keypoints == 800
    with InstanceCollection.open(*place) as photos:
        assert photos.verify().ok
        assert photos.info()["n_keypoints"] == 800
        after = photos.get(sorted(photos.uris()), vectors=True)
        for old, new in zip(before, after, strict=True):
            assert new.metadata == old.metadata
            np.testing.assert_array_equal(new.unpack().region_vectors, old.unpack().region_vectors)
            assert len(new.unpack().keypoints) > 50
        found = photos.search(CHELSEA, box=(90, 5, 355, 275))
        assert [stage.stage for stage in found[0].stages] == ["descriptor", "regions", "spatial"]
        part = next(hit for hit in found if "part" in hit.uri)
        assert part.framed_by == "keypoints"
        assert part.metadata == {"thing": "part"}
        assert len(photos.encoder.keypoints_read) == 0


@pytest.mark.server
def test_on_a_server_they_are_those_of_milvus_lite(place, encoder, server: MilvusServer):
    with InstanceCollection.create(server.uri, "later", encoder) as there:
        there.add(list(uris(place).values()), progress=False)
        assert there.upgrade(progress=False).updated == 4
        assert there.upgrade(progress=False).skipped == 4
        assert there.verify().ok
        rows = there.get(sorted(there.uris()), vectors=True)
        assert there.search(CHELSEA, box=(90, 5, 355, 275))[0].stages[-1].stage == "spatial"
        there.drop()
    with InstanceCollection.open(*place) as here:
        here.upgrade(progress=False)
        for mine, theirs in zip(here.get(sorted(here.uris()), vectors=True), rows, strict=True):
            assert mine.unpack().keypoints.descriptors.any()
            np.testing.assert_array_equal(
                mine.unpack().keypoints.descriptors, theirs.unpack().keypoints.descriptors
            )


def test_they_are_those_that_indexing_gives(place, encoder, tmp_path):
    fresh = tiny(whitening=None)
    with InstanceCollection.open(*place) as photos:
        photos.upgrade(progress=False)
        uri = uris(place)["part"]
        later = photos.get([uri], vectors=True)[0].unpack().keypoints
        assert photos.encoder.fingerprint == fresh.fingerprint
    with InstanceCollection.create(tmp_path / "fresh.db", "new", fresh) as new:
        new.add(uri, progress=False)
        first = new.get([uri], vectors=True)[0].unpack().keypoints
    np.testing.assert_array_equal(later.positions, first.positions)
    np.testing.assert_array_equal(later.descriptors, first.descriptors)


def test_what_cannot_be_read_is_named_and_done_by_the_next_run(place):
    names = uris(place)
    gone, changed = Path(names["coffee"]), Path(names["rocket"])
    kept = gone.read_bytes()
    gone.unlink()
    changed.write_bytes(kept)
    with InstanceCollection.open(*place) as photos:
        report = photos.upgrade(progress=False)
        assert report.updated == 2
        failed = dict(report.failed)
        assert "another photo" in failed[names["rocket"]]
        assert "coffee.png" in failed[names["coffee"]]
        assert photos.verify().ok
        gone.write_bytes(kept)
        again = photos.upgrade(progress=False)
        assert (again.updated, again.skipped, len(again.failed)) == (1, 2, 1)


def test_after_an_interruption_all_rows_are_whole_and_a_further_run_goes_on(place, monkeypatch):
    monkeypatch.setattr(upgrade, "_AT_ONCE", 1)
    reads = upgrade._read

    def interrupted(row, saved):
        if "part" in row["uri"]:
            raise KeyboardInterrupt
        return reads(row, saved)

    with InstanceCollection.open(*place) as photos, monkeypatch.context() as patch:
        patch.setattr(upgrade, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            photos.upgrade(progress=False)
    with InstanceCollection.open(*place) as photos:
        assert photos.verify().ok
        assert photos.search(CHELSEA, limit=4)[0].metadata == {"thing": "chelsea"}
        report = photos.upgrade(progress=False)
        assert (report.updated, report.skipped) == (2, 2)
        assert photos.verify().ok


def test_the_command_line_upgrades_and_says_what_it_did(place, capsys):
    uri, name = place
    where = ["--uri", uri, "--collection", name, "--quiet"]
    assert main(["index", "--upgrade", *where]) == 0
    assert "4 updated" in capsys.readouterr().out
    assert main(["index", *where]) == 2
    assert main(["index", "--upgrade", "photos", *where]) == 2
    assert "--upgrade without any" in capsys.readouterr().err


def test_a_compact_row_takes_at_most_30_kb():
    encoder = tiny(whitening=None, **COMPACT)
    layout = Layout(1024, encoder.n_classes, encoder.n_regions, "int4", encoder.n_keypoints)
    assert layout.row_bytes <= 30_000
    (photo,) = encoder.encode([CHELSEA])
    assert (len(photo.region_vectors), len(photo.class_ids)) == (10, 1)


def test_photos_are_added_and_told_about_after_an_upgrade(place, tmp_path):
    with InstanceCollection.open(*place) as photos:
        photos.upgrade(progress=False)
        more = tmp_path / "more.png"
        PilImage.fromarray(COFFEE[:, ::-1].copy()).save(more)
        assert photos.add(more, progress=False).added == 1
        uri = uris(place)["coffee"]
        photos.set_metadata({uri: {"thing": "cup"}})
        row, new = photos.get([uri, str(more)], vectors=True)
        assert row.metadata == {"thing": "cup"}
        assert len(row.unpack().keypoints) > 50
        assert len(new.unpack().keypoints) > 50
        assert photos.verify().ok
