"""What decoders warn of: with the photo's name, once, and no more than is read."""

from __future__ import annotations

import io
import logging
import re
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest
from photo_files import CHELSEA, encoded, refusal, saved

from cwf_milvus.errors import ImageError, PhotoWarning
from cwf_milvus.photos.images import load_image

CAT = PIL.Image.fromarray(CHELSEA)


def with_bad_tags(count: int) -> bytes:
    """A TIFF with tags whose values lie beyond its end, each of which Pillow warns of."""
    whole = bytearray(encoded(CHELSEA[:40, :60], "TIFF"))
    (at,) = struct.unpack_from("<I", whole, 4)
    (n,) = struct.unpack_from("<H", whole, at)
    entries = [whole[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(n)]
    entries += [struct.pack("<HHII", 1000 + i, 2, 2**30, 0) for i in range(count)]
    whole[4:8] = struct.pack("<I", len(whole))
    return bytes(whole) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def damaged_fax() -> bytes:
    bits = np.random.default_rng(0).integers(0, 2, (200, 200), np.uint8) * 255
    data = bytearray(encoded(PIL.Image.fromarray(bits).convert("1"), "TIFF", compression="group4"))
    data[600:900] = bytes(range(256)) + bytes(44)
    return bytes(data)


def damaged_zip() -> bytes:
    data = bytearray(encoded(kind="TIFF", compression="tiff_adobe_deflate"))
    data[300:900] = bytes(600)
    return bytes(data)


def said_of(source: bytes, name: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_image(source, uri=name)
    assert all(one.category is PhotoWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_warning_carries_the_photos_name():
    (said,) = said_of(with_bad_tags(1), "p/a.tif")
    assert said.startswith("'p/a.tif': ")
    assert re.search("Skipping tag 1000|truncated", said)


def test_thousands_of_warnings_are_one_line():
    (said,) = said_of(with_bad_tags(15_000), "p/a.tif")
    assert re.search(r"; and [\d,]+ more$", said)
    assert len(said) < 500


def test_each_photo_is_named_though_python_shows_a_text_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in ("a.tif", "b.tif"):
            load_image(with_bad_tags(1), uri=name)
    assert [str(one.message)[:7] for one in caught] == ["'a.tif'", "'b.tif'"]


def test_warnings_as_errors_do_not_refuse_a_photo_that_pillow_only_warns_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PhotoWarning)
        assert load_image(with_bad_tags(1)).width == 60


@pytest.mark.parametrize("make", [damaged_fax, damaged_zip])
def test_libtiff_writes_nothing_on_its_own(make, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ImageError):  # the fax is read as far as it goes
            load_image(make(), uri="p/b.tif")
    assert capfd.readouterr() == ("", "")


def test_log_lines_of_pillow_are_warnings_too(caplog, monkeypatch):
    log = logging.getLogger("PIL.TiffImagePlugin")
    # as another library may leave them, in tests before this one
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    monkeypatch.setattr(log, "level", logging.WARNING)
    log.manager._clear_cache()
    from cwf_milvus.photos import warned

    with warnings.catch_warnings(record=True) as caught, warned.named("a.tif"):
        warnings.simplefilter("always")
        log.error("more samples than can be decoded")
    assert [str(w.message) for w in caught] == ["'a.tif': more samples than can be decoded"]
    log.error("of the host's own photo")
    assert [record.message for record in caplog.records] == ["of the host's own photo"]


def test_the_hosts_own_use_of_pillow_is_as_it_was(capfd):
    with pytest.warns(UserWarning, match=r"Skipping tag 1000|Truncated") as caught:
        PIL.Image.open(io.BytesIO(with_bad_tags(1)))
    assert not any(isinstance(one.message, PhotoWarning) for one in caught)
    assert caught[0].filename.endswith("TiffImagePlugin.py")
    with pytest.raises(OSError, match="decoder error"):
        PIL.Image.open(io.BytesIO(damaged_zip())).load()
    assert "ZIPDecode" in capfd.readouterr().err


def test_threads_do_not_mix_their_photos():
    sources = {f"{i}.tif": with_bad_tags(1 + i) for i in range(8)}
    start = threading.Barrier(8)

    def load(name: str) -> None:
        start.wait()
        for _ in range(5):
            load_image(sources[name], uri=name)

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        list(pool.map(load, sources))
    said = [str(one.message) for one in caught]
    assert len(said) == 40
    for name in sources:
        assert sum(text.startswith(f"'{name}': ") for text in said) == 5


def test_the_command_line_prints_one_line_a_photo(tmp_path, capsys):
    from command_line import TINY

    from cwf_milvus.cli import main

    (tmp_path / "a.tif").write_bytes(with_bad_tags(15_000))
    (tmp_path / "b.tif").write_bytes(with_bad_tags(2))
    saved(tmp_path / "c.png")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["index", str(tmp_path), "--uri", str(tmp_path / "p.db"), *TINY]) == 0
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "a.tif" in line or "b.tif" in line
    ]
    assert sorted(line.partition(": ")[2][: len(str(tmp_path)) + 8] for line in lines) == [
        f"'{tmp_path}/a.tif'",
        f"'{tmp_path}/b.tif'",
    ]


def test_a_photo_that_cannot_be_read_has_its_error_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "above the limit of 10;" in refusal(with_bad_tags(3), uri="a.tif", max_pixels=10)
