"""The service's photos: in pages, in groups, as pictures, and new ones dropped in."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from operator_photos import fitted
from small_encoders import CHELSEA, COFFEE, crops
from web_service import events, served

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import FilterError, SettingsError
from cwf_milvus.store.browsing import described_fields, groups, photos_after, same_bytes

DAYS = ("2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-01-01T12:00:00+02:00")


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("looking")


@pytest.fixture(scope="module")
def stored(root: Path) -> Iterator[InstanceCollection]:
    """Twelve photos in three folders, two of them with the same bytes, with fields."""
    metadata = {}
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x0112] = "A camera", 6
    for i, pixels in enumerate(crops(11)):
        file = root / "photos" / ("a b", "ä'\"%", "a b/deep")[i % 3] / f"{i:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(pixels, exif=exif))
        metadata[str(file)] = {
            "exif_date": DAYS[i % 3],
            "colour": ("red", 'bl"ue')[i % 2],
            "year": 2000 + i % 2,
        }
    (root / "photos" / "again.jpg").write_bytes((root / "photos/a b/00.jpg").read_bytes())
    encoder = fitted(descriptor="both", keypoints=100)
    with InstanceCollection.create(root / "photos.db", "photos", encoder) as photos:
        photos.add(root / "photos", metadata=metadata, progress=False)
        photos.build_graph(neighbours=3, progress=False)
        yield photos


@pytest.fixture(scope="module")
def client(stored: InstanceCollection, root: Path) -> Iterator[httpx.Client]:
    with served({"photos": stored}, root, cache_bytes=40_000) as client:
        yield client


# The library beneath


def test_pages_give_every_photo_once_in_the_order_of_the_uris(stored: InstanceCollection) -> None:
    found: list[str] = []
    while rows := photos_after(stored, found[-1] if found else "", limit=5):
        found += [row.uri for row in rows]
    assert found == sorted(stored.uris())
    assert len(found) == 12


@pytest.mark.parametrize("by", ["folder", "date", "colour", "year"])
def test_the_filter_of_a_group_finds_as_many_photos_as_it_counts(
    stored: InstanceCollection, by: str
) -> None:
    found = groups(stored, by)
    assert len(found) > 1
    for group in found:
        assert len(photos_after(stored, filter=group.filter)) == group.count, group


def test_folders_hold_those_of_the_folders_in_them_below_the_common_one(
    stored: InstanceCollection, root: Path
) -> None:
    counts = {group.value: group.count for group in groups(stored, "folder")}
    base = str(root / "photos")
    assert counts == {base: 12, f"{base}/a b": 7, f"{base}/a b/deep": 3, f"{base}/ä'\"%": 4}


def test_days_are_counted_whatever_the_hour(stored: InstanceCollection) -> None:
    counts = {group.value: group.count for group in groups(stored, "date")}
    assert counts == {"2023-12-31": 4, "2024-01-01": 7}


def test_fields_are_described_with_their_values(stored: InstanceCollection) -> None:
    told = {field.name: field for field in described_fields(stored)}
    assert set(told) == {"colour", "exif_date", "year"}
    assert told["year"].type == "whole number"
    assert told["year"].count == 11
    assert set(told["colour"].examples) == {"red", 'bl"ue'}


def test_photos_with_the_same_bytes_are_a_group(stored: InstanceCollection, root: Path) -> None:
    base = root / "photos"
    assert same_bytes(stored) == [[str(base / "a b/00.jpg"), str(base / "again.jpg")]]


def test_no_filter_reaches_beyond_its_brackets(stored: InstanceCollection) -> None:
    for filter in ('true) or (uri != ""', "(year > 1", 'colour == "red'):
        with pytest.raises(FilterError, match="other half"):
            photos_after(stored, filter=filter)
    assert len(photos_after(stored, filter='colour != ")"')) == 11


def test_a_group_of_no_field_is_refused(stored: InstanceCollection) -> None:
    with pytest.raises(SettingsError, match="give folder, date"):
        groups(stored, "year; drop")


# Over HTTP


def test_the_pages_of_photos_follow_their_cursor(client: httpx.Client) -> None:
    found, after = [], ""
    while after is not None:
        page = client.get("/api/photos", params={"limit": 5, "after": after}).json()
        found += page["photos"]
        after = page["after"]
    assert len({photo["uri"] for photo in found}) == 12
    assert found[0]["fields"]["colour"] == "red"
    assert found[0]["name"] == "00.jpg"


def test_a_group_over_http_leads_to_its_photos(client: httpx.Client) -> None:
    group = client.get("/api/groups", params={"by": "colour"}).json()[0]
    page = client.get("/api/photos", params={"filter": group["filter"]}).json()
    assert len(page["photos"]) == group["count"]


def test_a_collection_tells_what_it_is(client: httpx.Client) -> None:
    (told,) = client.get("/api/collections").json()
    expected = {"photos": 12, "writable": False, "urls": False, "graph": True, "keypoints": True}
    assert told == {"name": "photos", **expected}
    info = client.get("/api/info").json()
    assert info["stages"] == ["regions", "spatial", "graph"]
    assert [field["name"] for field in info["fields"]] == ["colour", "exif_date", "year"]
    assert client.get("/api/info", params={"collection": "other"}).status_code == 404


def test_a_photo_tells_its_classes_neighbours_and_duplicates(
    client: httpx.Client, root: Path
) -> None:
    uri = str(root / "photos" / "again.jpg")
    told = client.get("/api/photo", params={"uri": uri}).json()
    assert told["in_graph"] is True
    assert len(told["classes"]) == len(told["scores"]) == 16
    near = client.get("/api/neighbours", params={"uri": uri}).json()
    assert near[0]["name"] == "00.jpg"
    for kind in ("bytes", "scene"):
        group = client.get("/api/duplicates", params={"kind": kind}).json()[0]
        assert uri in group["uris"]


def test_thumbnails_are_upright_small_and_asked_for_once(client: httpx.Client, root: Path) -> None:
    uri = str(root / "photos" / "a b" / "00.jpg")
    answer = client.get("/api/thumbnail", params={"uri": uri, "size": 100})
    picture = PIL.Image.open(io.BytesIO(answer.content))
    assert max(picture.size) <= 128
    stored = client.get("/api/photo", params={"uri": uri}).json()
    assert (picture.width < picture.height) == (stored["width"] < stored["height"])
    assert not picture.getexif()
    again = client.get(
        "/api/thumbnail",
        params={"uri": uri, "size": 128},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304
    assert not again.content


def test_the_folder_of_thumbnails_keeps_to_its_limit(client: httpx.Client, root: Path) -> None:
    photos = client.get("/api/photos").json()["photos"]
    for size in (64, 256, 1024):
        for photo in photos:
            asked = {"uri": photo["uri"], "size": size}
            assert client.get("/api/thumbnail", params=asked).status_code == 200
    held = sum(file.stat().st_size for file in (root / "thumbnails").rglob("*.jpg"))
    assert 20_000 < held <= 40_000


def test_originals_come_as_they_are_stored_or_as_their_pixels_alone(
    client: httpx.Client, stored: InstanceCollection, root: Path, tmp_path: Path
) -> None:
    uri = str(root / "photos" / "a b" / "00.jpg")
    answer = client.get("/api/original", params={"uri": uri})
    assert answer.content == Path(uri).read_bytes()
    assert answer.headers["content-type"] == "image/jpeg"
    with served({"photos": stored}, tmp_path, strip_exif=True) as stripping:
        data = stripping.get("/api/original", params={"uri": uri}).content
    assert b"A camera" in answer.content
    assert b"A camera" not in data
    upright = client.get("/api/photo", params={"uri": uri}).json()
    assert PIL.Image.open(io.BytesIO(data)).size == (upright["width"], upright["height"])


def test_an_explanation_is_a_picture_that_is_made_once(client: httpx.Client, root: Path) -> None:
    uri = str(root / "photos" / "a b" / "00.jpg")
    answer = client.get("/api/explanation", params={"uri": uri})
    assert PIL.Image.open(io.BytesIO(answer.content)).format == "PNG"


# Dropped in


def drop(client: httpx.Client, files: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    sent = [("photos", file) for file in files]
    answer = client.post("/api/photos", files=sent)
    assert answer.status_code == 200
    return [json.loads(data) for _, data in events(answer.text)]


def test_nothing_is_dropped_into_a_service_that_only_reads(client: httpx.Client) -> None:
    assert client.post("/api/photos", files={"photos": b"x"}).status_code == 405


def test_photos_that_are_dropped_are_stored_found_and_kept_under_safe_names(
    tmp_path: Path,
) -> None:
    encoder = fitted(descriptor="both")
    (tmp_path / "added").mkdir()
    old, new = (tmp_path / "added" / f".{letter * 16}.part" for letter in "ab")
    for part in (old, new):
        part.write_bytes(b"half a photo")
    os.utime(old, (1e9, 1e9))  # of a service that was killed; the other may be being written
    with (
        InstanceCollection.create(tmp_path / "photos.db", "photos", encoder) as photos,
        served({"photos": photos}, tmp_path, writable=True) as client,
    ):
        assert (old.exists(), new.exists()) == (False, True)
        new.unlink()
        cat, cup = jpeg(CHELSEA), jpeg(COFFEE)
        told = drop(
            client,
            [
                ("../../evil cat.jpg", cat),
                ("cup.exe", cup),
                ("notes.txt", b"no photo"),
                ("empty.jpg", b""),
            ],
        )
        outcomes = [one["outcome"] for one in told[:-1]]
        assert outcomes == ["added", "added", "failed", "failed"]
        assert "not a photo" in told[2]["reason"]
        assert told[-1] == {"counts": {"added": 2, "failed": 2}}
        assert client.get("/api/collections").json()[0]["photos"] == photos.count() == 2
        kept = sorted(file.name for file in (tmp_path / "added").iterdir())
        assert [name[:4] for name in kept] == ["cup-", "evil"]
        assert all(name.endswith(".jpg") for name in kept)
        answer = client.post("/api/search", files={"photo": cup}, data={"limit": "1"}).json()
        assert answer["hits"][0]["name"].startswith("cup-")
        again = drop(client, [("cup.exe", cup)])
        assert again[0]["outcome"] == "skipped"
        assert client.post("/api/photos", data={"photos": "text"}).status_code in (415, 422)
