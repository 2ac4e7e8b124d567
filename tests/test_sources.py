"""Where photos are: names, files, folders, globs and urls, good and bad."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from photo_files import CHELSEA, encoded, refusal, saved

from cwf_milvus.errors import ImageError
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.photos.sources import PHOTO_SUFFIXES, read_bytes, size_of, uri_of


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """Turn a test that waits for ever, on a pipe or in a circle of links, into a failure."""

    def stop(*_: object) -> None:
        raise TimeoutError("still waiting after 30 seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- names ---------------------------------------------------------------------------------------

NAMES = [
    'it\'s "quoted".png',
    "two  spaces .png",
    "new\nline\ttab.png",
    "Zürich – 東京 🐈.png",
    "cafe\u0301.png",
    "100%20.png",
    "a#b?c&d;e.png",
    "a[1]*.png",
    "zip::file:x.png",
    "-rf.png",
    "$(touch x) `y` \\ back.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_uri_that_opens_the_same_file_again(name, tmp_path, monkeypatch):
    path = saved(tmp_path / name)
    saved(tmp_path / "a1x.png", 255 - CHELSEA)  # what a[1]*.png would match as a glob
    monkeypatch.chdir(tmp_path)
    for source in (path, str(path), Path(name), name):
        assert uri_of(source) == str(path)
        image = load_image(source)
        assert image.uri == str(path)
        assert np.array_equal(image.pixels, CHELSEA)
        assert list_photos(source) == [str(path)]
    assert read_bytes(uri_of(path)) == path.read_bytes()
    assert np.array_equal(load_image(path.as_uri()).pixels, CHELSEA)
    assert uri_of(path.as_uri()) == str(path)
    assert str(path) in list_photos(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_has_a_percent_encoded_uri_that_opens_it(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 %.png"
    path = Path(os.fsdecode(raw))
    saved(path)
    (uri,) = list_photos(tmp_path)
    assert uri.endswith("/caf%E9%20%25.png")
    assert uri.startswith("file:///")
    assert uri.encode()
    assert uri_of(uri) == uri
    assert read_bytes(uri) == path.read_bytes()
    for source in (uri, str(path), path):
        image = load_image(source)
        assert image.uri == uri
        assert np.array_equal(image.pixels, CHELSEA)
        assert list_photos(source) == [uri]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_uri_with_bytes_that_are_not_utf8_is_the_file_of_these_bytes(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    saved(path)
    for uri in (f"file://{path}", f"file://localhost{path}".replace("caf", "c%61f")):
        assert uri_of(uri) == path.as_uri()
        assert read_bytes(uri) == path.read_bytes()
        assert size_of(uri) == path.stat().st_size
    assert size_of("nul\0byte.jpg") == 0


def test_a_relative_path_and_one_with_dots_have_the_absolute_uri(tmp_path, monkeypatch):
    saved(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    for source in ("cat.png", "./cat.png", "x/../cat.png", Path("cat.png")):
        assert uri_of(source) == str(tmp_path / "cat.png")


def test_names_that_no_file_can_have_are_refused():
    for name in ("lone \ud800 surrogate.jpg", "nul\0byte.jpg"):
        assert repr(name)[1:4] in refusal(name)
        with pytest.raises(ImageError):
            list_photos(name)
    assert "UTF-8" in refusal(encoded(), uri="\udcff")


def test_a_file_uri_of_another_host_is_refused():
    assert "file:///folder/name" in refusal("file://photos/cat.jpg")


# --- what is not a file --------------------------------------------------------------------------


def test_a_folder_named_like_a_photo_is_refused_as_a_photo_and_walked_as_a_folder(tmp_path):
    folder = tmp_path / "x.jpg"
    folder.mkdir()
    inside = saved(folder / "cat.png")
    message = refusal(folder)
    assert repr(str(folder)) in message
    assert "it is a folder" in message
    for source in (folder, tmp_path, str(tmp_path / "*.jpg"), str(tmp_path / "**/*.jpg")):
        assert list_photos(source) == [str(inside)]


def test_a_missing_file_is_refused(tmp_path):
    message = refusal(tmp_path / "gone.jpg")
    assert repr(str(tmp_path / "gone.jpg")) in message
    assert "No such file" in message


def test_a_dangling_link_and_a_link_to_itself_are_refused(tmp_path):
    dangling, circle = tmp_path / "dangling.jpg", tmp_path / "circle.jpg"
    dangling.symlink_to(tmp_path / "gone.jpg")
    circle.symlink_to(circle)
    for link in (dangling, circle):
        message = refusal(link)
        assert repr(str(link)) in message
        assert "a link to nothing" in message
    assert list_photos(tmp_path) == [str(circle), str(dangling)]
    assert list_photos(dangling) == [str(dangling)]


def test_a_link_to_a_photo_keeps_its_own_name(tmp_path):
    saved(tmp_path / "cat.png")
    (tmp_path / "link.png").symlink_to("cat.png")
    assert load_image(tmp_path / "link.png").uri == str(tmp_path / "link.png")


def test_an_unreadable_file_is_refused_with_the_reason(tmp_path, monkeypatch):
    path = saved(tmp_path / "secret.jpg")
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root the mode does not bite

        def denied(name: object, *_: object) -> int:
            raise PermissionError(13, "Permission denied", str(name))

        monkeypatch.setattr(os, "open", denied)
    message = refusal(path)
    assert repr(str(path)) in message
    assert "Permission denied" in message
    assert "access rights" in message


def test_a_folder_without_access_is_listed_so_that_it_is_reported(tmp_path, monkeypatch):
    saved(tmp_path / "a.png")
    closed = tmp_path / "closed"
    closed.mkdir()
    saved(closed / "b.png")
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        scan = os.scandir

        def denied(name: str) -> object:
            if name == str(closed):
                raise PermissionError(13, "Permission denied", name)
            return scan(name)

        monkeypatch.setattr(os, "scandir", denied)
    found = list_photos(tmp_path)
    closed.chmod(0o700)
    assert found == [str(tmp_path / "a.png"), str(closed)]
    assert "it is a folder" in refusal(found[1])


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    message = refusal(pipe)
    assert repr(str(pipe)) in message
    assert "pipe, socket or device" in message
    assert list_photos(tmp_path) == [str(pipe)]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty", "/dev/null"])
def test_a_device_is_refused_without_reading_it(device):
    if not Path(device).exists():
        pytest.skip(f"no {device} here")
    assert "pipe, socket or device" in refusal(device)


# --- folders -------------------------------------------------------------------------------------


def touched(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(str(folder / name) for name in names)


def test_a_folder_gives_its_photos_sorted_and_nothing_else(tmp_path):
    names = [f"b/{i}{suffix}" for i, suffix in enumerate(PHOTO_SUFFIXES)]
    expected = touched(tmp_path, *names, "a/UPPER.JPG", "z.Png", "a.b/c/d.jpeg")
    touched(tmp_path, "notes.txt", "b/jpg", "b/movie.mp4", "vector.eps", "page.pdf", "x.jpg.part")
    assert list_photos(tmp_path) == expected
    assert list_photos(str(tmp_path) + "/") == expected
    assert list_photos(tmp_path.as_uri()) == expected


def test_without_recursion_only_the_top_folder_is_listed(tmp_path):
    expected = touched(tmp_path, "a.jpg", "b.jpg")
    touched(tmp_path, "sub/c.jpg")
    assert list_photos(tmp_path, recursive=False) == expected


def test_hidden_files_and_folders_are_left_out_unless_named(tmp_path):
    expected = touched(tmp_path, "a.jpg")
    touched(tmp_path, ".hidden.jpg", ".cache/b.jpg", "._a.jpg")
    assert list_photos(tmp_path) == expected
    assert list_photos(str(tmp_path / "*")) == expected
    assert list_photos(str(tmp_path / "**/*.jpg")) == expected
    assert list_photos(tmp_path / ".hidden.jpg") == [str(tmp_path / ".hidden.jpg")]
    assert list_photos(tmp_path / ".cache") == [str(tmp_path / ".cache/b.jpg")]


def test_sources_are_joined_each_photo_once_in_stable_order(tmp_path):
    expected = touched(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.png")
    sources = [tmp_path / "sub", str(tmp_path / "a.jpg"), tmp_path, str(tmp_path / "sub/*.png")]
    assert list_photos(sources) == expected
    assert list_photos(reversed(sources)) == expected
    assert list_photos([]) == []


def test_a_named_file_is_kept_whatever_its_ending(tmp_path):
    (note,) = touched(tmp_path, "note.txt")
    assert list_photos([note]) == [note]
    assert "is empty" in refusal(note)


def test_links_to_folders_are_followed_but_no_circle_is_and_the_real_name_wins(tmp_path):
    expected = touched(tmp_path / "photos", "m/a.jpg", "m/n/b.jpg")
    elsewhere = touched(tmp_path / "elsewhere", "c.jpg")
    (tmp_path / "photos" / "a_link_to_m").symlink_to("m")
    (tmp_path / "photos" / "m" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "m" / "n" / "self").symlink_to("self")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "out").symlink_to(tmp_path / "elsewhere")
    for source in (tmp_path / "photos", str(tmp_path / "photo*")):
        assert list_photos(source) == [*expected, str(tmp_path / "photos/out/c.jpg")]
    assert Path(elsewhere[0]).exists()


def test_a_double_star_does_not_go_round_in_circles(tmp_path):
    expected = touched(tmp_path, "a/x.jpg", "b/y.jpg")
    for name in "ab":
        for other in "ab":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    assert list_photos(str(tmp_path / "**/*.jpg")) == expected


def test_globs_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    expected = touched(tmp_path, "[my] sub/a.jpg", "[my] sub/b.png", "[my] sub/note.txt")[:2]
    monkeypatch.chdir(tmp_path / "[my] sub")
    assert list_photos("*.jpg") == expected[:1]
    assert list_photos("./*") == expected
    assert list_photos("../*s?b/[ab].*") == expected
    assert list_photos("..") == expected


def test_an_empty_folder_has_no_photos(tmp_path):
    assert list_photos(tmp_path) == []


@pytest.mark.parametrize("name", ["gone.jpg", "gone", "*.jpg", "**/gone.png"])
def test_a_source_that_does_not_exist_is_named(name, tmp_path):
    with pytest.raises(ImageError, match="does not exist") as caught:
        list_photos([tmp_path, str(tmp_path / name)])
    assert name in str(caught.value)


# --- urls ----------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    for name in ("/cats/a.png", "/cats/sub/b[1].PNG", "/cats/note.txt", "/cats/.hidden/c.png"):
        files.pipe(name, encoded())
    yield files
    files.rm("/cats", recursive=True)


def test_a_url_is_loaded_and_named_as_given(memory):
    image = load_image("memory://cats/a.png")
    assert image.uri == "memory://cats/a.png"
    assert image.content == hashlib.sha256(encoded()).hexdigest()
    assert np.array_equal(image.pixels, CHELSEA)


@pytest.mark.parametrize("folder", ["memory://cats", "memory://cats/", "memory://"])
def test_the_photos_of_a_url_are_listed_and_open(memory, folder):
    found = list_photos(folder)
    assert found == ["memory://cats/a.png", "memory://cats/sub/b[1].PNG"]
    assert all(load_image(uri).uri == uri for uri in found)


def test_urls_may_be_globs_or_single_files_and_need_not_be_walked(memory):
    assert list_photos("memory://cats/*.png") == ["memory://cats/a.png"]
    assert list_photos("memory://cats/sub/b[1].PNG") == ["memory://cats/sub/b[1].PNG"]
    assert list_photos("memory://cats/note.txt") == ["memory://cats/note.txt"]
    assert list_photos("memory://cats", recursive=False) == ["memory://cats/a.png"]


def test_the_photos_of_an_archive_are_listed_and_open_and_cannot_name_other_files(tmp_path):
    secret = saved(tmp_path / "secret.png")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("in/a.png", encoded())
        archive.writestr("in/deep/b.png", encoded())
        archive.writestr(f"in/x::file:{secret}", encoded())
    archive_uri = f"{tmp_path}/p.zip"
    expected = [f"zip://in/a.png::{archive_uri}", f"zip://in/deep/b.png::{archive_uri}"]
    for source in (f"zip://in::{archive_uri}", f"zip://::{archive_uri}"):
        assert list_photos(source) == expected
    assert [load_image(uri).uri for uri in expected] == expected


def test_chained_urls_keep_their_chain(memory):
    expected = ["simplecache::memory://cats/a.png", "simplecache::memory://cats/sub/b[1].PNG"]
    assert list_photos("simplecache::memory://cats") == expected
    assert load_image(expected[0]).uri == expected[0]


def test_an_http_url_is_one_photo_with_its_query_kept():
    url = "https://example.org/photo?id=3&size=[big]*"
    assert list_photos(url) == [url]


def test_urls_that_do_not_exist_or_have_no_driver_are_named(memory):
    with pytest.raises(ImageError, match="'memory://dogs' does not exist"):
        list_photos("memory://dogs")
    assert "'memory://dogs/a.png'" in refusal("memory://dogs/a.png")
    for url in ("nosuch://bucket/a.jpg", "nosuch://bucket/folder"):
        assert url in refusal(url)
    with pytest.raises(ImageError, match="nosuch"):
        list_photos("nosuch://bucket/folder")


def test_a_path_object_is_never_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri_of(Path("memory://cats/a.png")) == str(tmp_path / "memory:/cats/a.png")


def test_urls_have_the_byte_limit_too(memory):
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        read_bytes("memory://cats/a.png", max_bytes=10)


@pytest.mark.parametrize(
    "url",
    [
        "reference://x.json",
        "git://repo:branch@a.jpg",
        "zip://a.jpg::dask://host/a.zip",
        "dir::memory://folder/a.jpg",
        "JUPYTER://host/a.jpg",
        "libarchive://a.jpg::memory://a.rar",
    ],
)
def test_a_protocol_that_is_not_on_is_refused_by_name(url, monkeypatch):
    with pytest.raises(ImageError, match="is not on; set CWF_MILVUS_PROTOCOLS="):
        read_bytes(url)
    with pytest.raises(ImageError, match="is not on; set CWF_MILVUS_PROTOCOLS="):
        list_photos(url.replace("a.jpg", "").replace("x.json", "x"))
    monkeypatch.setenv("CWF_MILVUS_PROTOCOLS", "reference git dask dir jupyter libarchive")
    with pytest.raises(ImageError) as error:
        read_bytes(url)
    assert "is not on" not in str(error.value)
