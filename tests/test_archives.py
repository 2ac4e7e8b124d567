"""Photos in archives, near and far: what is read, and what is refused before it is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from photo_files import CHELSEA, encoded, refusal
from test_web import give, serving, to

from cwf_milvus.errors import ImageError
from cwf_milvus.photos import archives, sources, web
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.photos.sources import read_bytes

PHOTO = encoded(CHELSEA[:60, :90])


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    web._kept.clear()
    yield
    web._kept.clear()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("in/a.png", "in/deep/b.png", "c.png", "notes.txt"):
            archive.writestr(name, PHOTO)
    return file.getvalue()


def tarred(mode: str = "w", *headers: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for header in headers:
            archive.addfile(header)
        for name in ("in/a.png", "in/deep/b.png", "c.png", "notes.txt"):
            about = tarfile.TarInfo(name)
            about.size = len(PHOTO)
            archive.addfile(about, io.BytesIO(PHOTO))
    return file.getvalue()


KINDS = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda: tarred("w:gz"),
    "tar.bz2": lambda: tarred("w:bz2"),
    "tar.xz": lambda: tarred("w:xz"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_photos_are_listed_and_read_from_files_and_by_http_which_is_asked_once(kind, tmp_path):
    data, protocol = KINDS[kind](), kind[:3]
    (tmp_path / "p").write_bytes(data)
    asked = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        give(request, data)

    with serving(answer) as host:
        for place in (f"{tmp_path}/p", f"simplecache::{host}/p?x=a::b"):
            found = list_photos(f"{protocol}://::{place}")
            assert found == [
                f"{protocol}://{name}::{place}" for name in ("c.png", "in/a.png", "in/deep/b.png")
            ]
            assert list_photos(f"{protocol}://in::{place}") == found[1:]
            assert list_photos(f"{protocol}://in/*.png::{place}") == found[1:2]
            assert list_photos(f"{protocol}://in::{place}", recursive=False) == found[1:2]
            for uri in found:
                image = load_image(uri)
                assert (image.uri, image.width) == (uri, 90)
            with pytest.raises(ImageError, match="does not exist"):
                list_photos(f"{protocol}://nowhere::{place}")
            assert "has no 'x.png'" in refusal(f"{protocol}://x.png::{place}")
    assert asked == ["/p?x=a::b"]


def test_an_archive_in_an_archive_is_read_and_one_in_that_is_not(tmp_path):
    for name, inner in (("two", zipped()), ("three", None)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("in.zip", inner or (tmp_path / "two").read_bytes())
    assert load_image(f"zip://c.png::zip://in.zip::{tmp_path}/two").width == 90
    message = refusal(f"zip://c.png::zip://in.zip::zip://in.zip::{tmp_path}/three")
    assert "such a chain is not read" in message


@pytest.mark.parametrize("stage", ["body", "endless", "declared", "redirect", "loop", "missing"])
def test_an_archive_by_http_has_the_limits_of_a_photo(stage, monkeypatch):
    monkeypatch.setattr(web, "SECONDS", 0.5)
    monkeypatch.setattr(sources, "MAX_BYTES", 10**6)
    over = threading.Event()

    def answer(asked: BaseHTTPRequestHandler) -> None:
        if stage == "missing":
            asked.send_error(404)
        elif stage == "declared":
            give(asked, zipped(), **{"Content-Length": 10**15})
        elif stage in ("redirect", "loop"):
            to("file:///etc/passwd" if stage == "redirect" else f"{asked.path}x")(asked)
        else:
            asked.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nPK")
            while not over.wait(0.05 if stage == "body" else 0):
                asked.wfile.write(b"x" if stage == "body" else bytes(2**16))

    words = {
        "body": "it took more than 0.5 seconds",
        "endless": "is larger than 1,000,000 bytes",
        "declared": "bytes too early",
        "redirect": "is not allowed",
        "loop": "the host answers 302",
        "missing": "the host answers 404",
    }
    with serving(answer) as host:
        message = refusal(f"zip://c.png::{host}/p.zip")
        with pytest.raises(ImageError, match=words[stage]):
            list_photos(f"zip://::{host}/p.zip")
        over.set()
    assert words[stage] in message
    assert "\n" not in message


def test_an_archive_by_http_never_leads_from_outside_into_the_local_network(monkeypatch):
    class Outside:
        is_global = True

    with serving(lambda asked: give(asked, zipped())) as inside, serving(to(inside)) as host:
        seen = iter([Outside()])
        known = web.ipaddress.ip_address
        monkeypatch.setattr(web.ipaddress, "ip_address", lambda text: next(seen, known(text)))
        message = refusal(f"zip://c.png::{host}/p.zip")
    assert "it leads from a public host into a local network" in message


@pytest.mark.parametrize(
    "url",
    [
        *("zip://a.png::git", "zip://a.png::reference", "zip://a.png::data:application/zip,x"),
        *("ZIP://a.png::GIT://x", "simplecache::git://x", "zip://a.png::filecache::http://x/y"),
    ],
)
def test_every_part_of_a_chain_must_be_of_a_protocol_that_is_on(url):
    assert "is not on; set CWF_MILVUS_PROTOCOLS=" in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        *("zip://a.png", "zip://", "http::zip://a.png", "https://h::zip://a.zip"),
        *("zip://a.png::s3://b::https://h/x", "zip://a::" + "simplecache::" * 9999),
    ],
)
def test_a_chain_that_leads_nowhere_is_refused_in_a_line(url):
    with pytest.raises(ImageError, match=r"write zip://PHOTO::ARCHIVE") as caught:
        read_bytes(url)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "url", ["zip://a.png::{}", "tar://a.png::local://{}", "simplecache::file://{}", "local://{}"]
)
def test_a_pipe_is_never_waited_for_however_it_is_named(url, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe, socket or device" in refusal(url.format(tmp_path / "pipe"))


def test_members_that_climb_stay_within_and_links_and_devices_are_passed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(PHOTO)
    headers = []
    for name, kind in (("l.png", b"2"), ("h.png", b"1"), ("d.png", b"3"), ("p.png", b"6")):
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, str(secret)
        headers.append(header)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.tar").write_bytes(tarred("w", *headers))
    assert len(list_photos(f"tar://::{tmp_path}/in/p.tar")) == 3
    assert "has no 'l.png'" in refusal(f"tar://l.png::{tmp_path}/in/p.tar")
    with zipfile.ZipFile(tmp_path / "in" / "p.zip", "w") as archive:
        archive.writestr("../up.png", PHOTO)
    assert load_image(f"zip://../up.png::{tmp_path}/in/p.zip").width == 90
    assert "has no '../secret.png'" in refusal(f"zip://../secret.png::{tmp_path}/in/p.zip")


def bomb(path: Path, n_bytes: int) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(n_bytes))
    return f"zip://a.png::{path}"


def test_a_member_is_unpacked_as_far_as_a_photo_may_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 10**6)
    url = bomb(tmp_path / "p.zip", 10**6 + 1)
    assert "'a.png' of the archive is larger than 1,000,000 bytes" in refusal(url)
    with pytest.raises(ImageError, match="larger than 5,000 bytes"):
        read_bytes(bomb(tmp_path / "p.zip", 10**6), max_bytes=5000)


def test_an_archive_within_an_archive_is_unpacked_as_far(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in.zip", bytes(10**7))
    assert "larger than" in refusal(f"zip://a.png::zip://in.zip::{tmp_path}/p.zip")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_so_many_members_and_folders_are_listed_and_no_more(kind, tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes(KINDS[kind]())
    monkeypatch.setattr(archives, "MEMBERS", 4)
    assert len(list_photos(f"{kind}://::{tmp_path}/p")) == 3
    monkeypatch.setattr(archives, "MEMBERS", 3)
    assert "more than 3 members or folders" in refusal(f"{kind}://c.png::{tmp_path}/p")
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("/".join("abcdefg") + ".png", PHOTO)
    assert "more than 3 members or folders" in refusal(f"zip://c.png::{tmp_path}/deep.zip")


def test_a_directory_or_header_of_a_gigabyte_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_AT_ONCE", 10**5)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for i in range(1000):
            archive.writestr(f"{i:0200}.png", b"")
    assert "more than 100,000 bytes" in refusal(f"zip://a.png::{tmp_path}/p.zip")
    for kind in (b"x", b"g", b"L"):  # of a tar, read whole before its member
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, 4 * 10**9
        with (tmp_path / "p.tar").open("wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.truncate(4 * 10**9 + 2048)
        assert "more than 100,000 bytes" in refusal(f"tar://a.png::{tmp_path}/p.tar")


def test_a_packed_tar_is_unpacked_up_to_a_place(tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes(tarred("w:gz"))
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 2000)
    assert "unpacks to more than 2,000 bytes" in refusal(f"tar://c.png::{tmp_path}/p")
