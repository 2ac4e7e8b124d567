"""Limits: settled from the header, whatever the bytes; junk is refused at once."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from photo_files import CHELSEA, encoded, refusal

from cwf_milvus.errors import ImageError
from cwf_milvus.photos import limits
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.lean import lean_boxes
from cwf_milvus.photos.limits import MAX_PIXELS, Budget

CAT = PIL.Image.fromarray(CHELSEA)
JPEG = encoded(kind="JPEG", quality=95)
PNG = encoded()
GIF = encoded(CAT.quantize(64), "GIF")
MIB = 2**20


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def plain(width: int, height: int, kind: str = "JPEG", **options: object) -> bytes:
    return encoded(PIL.Image.new("L", (width, height), 120), kind, **options)


# --- large photos --------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
def test_a_phones_108_megapixels_are_read_reduced(progressive):
    image = load_image(plain(12_000, 9000, progressive=progressive), at_least=1280)
    assert (image.width, image.height) == (12_000, 9000)
    assert image.pixels.shape == (1125, 1500, 3)


def test_what_cannot_be_read_reduced_names_the_number_that_lets_it_in():
    source = plain(12_000, 9000, "PNG")
    message = refusal(source, at_least=1280)
    assert f"12000 x 9000 = 108,000,000 pixels, above the limit of {MAX_PIXELS:,}" in message
    assert "max_pixels=108000000 (--max-pixels 108000000)" in message
    assert load_image(source, at_least=1280, max_pixels=108_000_000).pixels.shape == (1125, 1500, 3)


def test_a_format_that_takes_more_memory_is_refused_at_fewer_pixels():
    source = plain(8000, 7000, "WEBP", quality=1, method=0)
    message = refusal(source, at_least=1280)
    assert "MiB to decode as WebP, above the limit of" in message
    raised = int(message.partition("max_pixels=")[2].partition(" ")[0])
    assert load_image(source, at_least=1280, max_pixels=raised).width == 8000


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "1"])
def test_above_16_megapixels_any_photo_is_brought_to_what_is_needed(mode):
    grid = np.kron(
        np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((1250, 1250), np.uint8)
    )
    if mode == "I;16":
        image = PIL.Image.fromarray(grid.astype(np.uint16) * 257)
    else:
        image = PIL.Image.fromarray(grid).convert(mode, dither=PIL.Image.Dither.NONE)
    found = load_image(encoded(image, "PNG", compress_level=1), at_least=1200)
    assert (found.width, found.height) == (5000, 3750)
    assert found.pixels.shape == (938, 1250, 3)
    plainly = PIL.Image.fromarray(grid) if mode == "I;16" else image
    whole = np.asarray(plainly.convert("RGB"))
    assert np.array_equal(found.pixels[100:900:156, 100::312], whole[400:3600:624, 400::1248])


def test_a_box_keeps_the_pixels_that_it_needs():
    source = plain(8000, 6000)
    for box, side in ((None, 1000), (Box(0, 0, 8000, 100), 1000), (Box(0, 0, 900, 2000), 4000),
                      (Box(5, 5, 500, 500), 8000)):  # fmt: skip
        assert load_image(source, at_least=1000, box=box).pixels.shape[1] == side


def test_a_tile_larger_than_its_photo_is_refused():
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, CHELSEA, tile=(16, 16))
    whole = stream.getvalue()
    place = whole.find(struct.pack("<H", 322))
    wide = whole[:place] + struct.pack("<HHII", 322, 4, 1, 2**30) + whole[place + 12 :]
    assert "1073741824 x 16" in refusal(wide)


def test_a_header_that_claims_more_than_its_bytes_can_hold_is_refused_undecoded():
    small = plain(64, 64)
    place = small.find(b"\xff\xc0")
    claimed = small[: place + 5] + struct.pack(">HH", 9000, 9000) + small[place + 9 :]
    assert "bytes cannot hold 9000 x 9000 pixels" in refusal(claimed)


# --- what lies beside the pixels -----------------------------------------------------------------


def test_profiles_prompts_and_comments_of_any_length_do_not_refuse_a_good_photo():
    long = zlib.compress(bytes(80 * MIB))
    beside = [
        chunk(b"tEXt", b"parameters\0" + b"a photo of a cat, " * 200_000),
        chunk(b"zTXt", b"prompt\0\0" + long),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x/>" * MIB),
        chunk(b"iCCP", b"profile\0\0" + long),
    ]
    png = PNG[:33] + b"".join(beside) + PNG[33:]
    assert np.array_equal(load_image(png).pixels, CHELSEA)
    jpeg = b"".join(
        [
            JPEG[:2],
            segment(0xFE, b"x" * 65_000) * 200,
            segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"y" * 60_000) * 200,
            *(segment(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(60_000)) for _ in range(255)),
            JPEG[2:],
        ]
    )
    assert np.array_equal(load_image(jpeg).pixels, load_image(JPEG).pixels)
    gif = GIF[:205] + b"!\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0" + GIF[205:]
    assert np.array_equal(load_image(gif).pixels, load_image(GIF).pixels)


def test_an_exif_block_that_points_everywhere_is_emptied_in_an_avif():
    entries = b"".join(struct.pack("<HHII", 1000 + i, 1, 40_000, 40_000) for i in range(200))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 200) + entries + bytes(80_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = encoded(kind="AVIF", exif=exif)
    tamed = lean_boxes(source).data
    assert len(tamed) == len(source)
    at = source.find(exif)
    assert tamed[at : at + 12] == b"II*\0\x08\0\0\0\0\0" + exif[10:12]
    assert load_image(source).width == 451
    honest = encoded(kind="AVIF", exif=exif[:10] + entries[:24] + bytes(80_000))
    assert lean_boxes(honest).data == honest


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_block_that_points_everywhere_costs_nothing(kind):
    count, length = 3000, 2 * MIB if kind in ("PNG", "WEBP") else 60_000
    entries = [struct.pack("<HHII", 0x0112, 3, 1, 3)]
    entries += [struct.pack("<HHII", 1000 + i, 1, length - 50_000, 50_000) for i in range(count)]
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)
    exif += bytes(length - len(exif))
    if kind == "JPEG":
        source = JPEG[:2] + segment(0xE1, b"Exif\0\0" + exif) + JPEG[2:]
    elif kind == "PNG":
        source = PNG[:33] + chunk(b"eXIf", exif) + PNG[33:]
    else:
        source = encoded(kind=kind, exif=exif)
    with counted_steps() as steps:
        image = load_image(source)
    assert steps[0] < 100_000
    assert np.abs(image.pixels[::-1, ::-1].astype(int) - CHELSEA).mean() < 12


# --- junk ----------------------------------------------------------------------------------------

RUNS = b"BM" + bytes(12) + struct.pack("<IIIHH6I", 40, 1000, 1000, 1, 8, 1, 0, 0, 0, 0, 0)
JUNK = {
    "zeros": lambda n: b"\xff\xd8\xff" + bytes(n),
    "fill": lambda n: b"\xff\xd8" + b"\xff" * n,
    "markers": lambda n: b"\xff\xd8" + b"\xff\x01" * (n // 2),
    "segments": lambda n: b"\xff\xd8" + b"\xff\xe2\0\2" * (n // 4),
    "tables": lambda n: b"\xff\xd8" + segment(0xDB, bytes(65) * 1000) * (n // 65_000),
    "half a jpeg, then fill": lambda n: JPEG[: len(JPEG) // 2] + b"\xff" * n,
    "empty chunks": lambda n: PNG[:33] + chunk(b"teXt", b"") * (n // 12),
    "empty pixels": lambda n: PNG[:33] + chunk(b"IDAT", b"") * (n // 12),
    "small pixels": lambda n: PNG[:33] + chunk(b"IDAT", bytes(99)) * (n // 111),
    "a gif of nothing": lambda n: GIF[:205] + bytes(n),
    "extensions": lambda n: GIF[:205] + b"!\xfe\x01x\0" * (n // 5),
    "blocks": lambda n: GIF[:205] + b"!\xfe" + b"\x01x" * (n // 2),
    "no tags": lambda n: b"II*\0\x08\0\0\0" + bytes(n),
    "runs": lambda n: RUNS + b"\1\1" * (n // 2),
    "boxes": lambda n: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * (n // 8),
    "parts": lambda n: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x08free" * (n // 8),
}  # fmt: skip


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the calls of Python and C functions, which is what junk used to cost by the byte."""
    steps = [0]

    def step(*_: object) -> None:
        steps[0] += 1

    sys.setprofile(step)
    try:
        yield steps
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_refused_at_once_whatever_its_length(kind):
    junk = JUNK[kind](20 * MIB)
    with counted_steps() as steps:
        message = refusal(junk, uri="junk")
    assert "'junk' is damaged or cut off" in message
    assert steps[0] < 2_500_000  # some for every byte were 100 million


def test_a_jpeg_of_more_scans_than_a_photo_has_is_refused_undecoded():
    whole = plain(9000, 9000, progressive=True)
    last = whole.rfind(b"\xff\xda")
    scans = whole[:last] + whole[last:-2] * 400 + whole[-2:]
    assert "it goes over 9000 x 9000 pixels" in refusal(scans)
    small = plain(90, 60, progressive=True)
    last = small.rfind(b"\xff\xda")
    assert load_image(small[:last] + small[last:-2] * 50 + small[-2:]).width == 90


def test_a_good_photo_with_junk_behind_it_is_read():
    for whole in (JPEG, PNG, GIF):
        for tail in (bytes(MIB), b"\xff" * MIB):
            assert np.array_equal(load_image(whole + tail).pixels, load_image(whole).pixels)


def test_a_decoder_that_works_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.0)
    assert "takes more than 0 seconds to decode" in refusal(PNG)


# --- many at once --------------------------------------------------------------------------------


def test_a_budget_lets_in_no_more_than_it_has_and_keeps_the_order():
    budget = Budget(100)
    inside, most, done = [0], [0], []
    lock = threading.Lock()

    def work(amount: int) -> None:
        with budget.held(amount):
            with lock:
                inside[0] += min(amount, 100)
                most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            with lock:
                inside[0] -= min(amount, 100)
                done.append(amount)

    amounts = [30, 50, 500, 20, 100, 1, 60] * 6
    threads = [threading.Thread(target=work, args=(amount,)) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(amounts)
    assert most[0] <= 100


def test_large_uploads_at_once_keep_to_the_budget():
    """Each is a PNG of 80 kB and takes 100 MiB."""
    program = """
import io, resource, threading, PIL.Image
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos import decoding, limits
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
data = io.BytesIO(); PIL.Image.new("RGB", (5000, 5000)).save(data, "PNG")
decoding.DECODING = limits.Budget(260 * 2**20)
before = peak()
threads = [threading.Thread(target=load_image, args=(data.getvalue(),), kwargs={"at_least": 1280})
           for _ in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(peak() - before)
"""
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    )
    assert int(run.stdout) < 400  # all at once took 1,000


# --- where the limit can be raised ---------------------------------------------------------------


def test_the_limit_is_an_argument_of_the_encoder_of_add_and_of_search(tmp_path):
    from small_encoders import tiny

    from cwf_milvus.collection import InstanceCollection

    photo = tmp_path / "in" / "a.png"
    photo.parent.mkdir()
    photo.write_bytes(plain(400, 300, "PNG"))
    encoder = tiny(whitening=None, max_pixels=100_000)
    with pytest.raises(ImageError, match="limit of 100,000; save it smaller, or give max_pixels="):
        encoder.encode([photo])
    with InstanceCollection.create(tmp_path / "p.db", "photos", encoder) as photos:
        assert len(photos.add(photo, progress=False).failed) == 1
        assert photos.add(photo, progress=False, max_pixels=120_000).added == 1
        with pytest.raises(ImageError, match="max_pixels=120000"):
            photos.search(photo)
        assert len(photos.search(photo, max_pixels=120_000)) == 1
    assert tiny(whitening=None).fingerprint == encoder.fingerprint


@pytest.mark.parametrize("command", ["index", "search", "classes", "explain"])
def test_the_limit_is_an_option_of_the_command_line(command, tmp_path, capsys):
    from command_line import TINY

    from cwf_milvus.cli import main

    photo = tmp_path / "a.png"
    photo.write_bytes(plain(400, 300, "PNG"))
    uri = ("--uri", str(tmp_path / "p.db"))
    assert main(["index", str(photo), *uri, *TINY]) == 0
    options = {
        "index": (str(tmp_path / "in"), *uri),
        "search": (str(photo), *uri),
        "classes": (str(photo), "--backbone", "timm:test_resnet", "--weights", "random"),
        "explain": (
            *(str(photo), "--backbone", "timm:test_resnet", "--weights", "random"),
            *("-o", str(tmp_path / "explain.png")),
        ),
    }[command]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").write_bytes(plain(400, 301, "PNG"))
    capsys.readouterr()
    assert main([command, *options, "--max-pixels", "100000"]) in (1, 2)
    assert "--max-pixels 120" in capsys.readouterr().err
    assert main([command, *options, "--max-pixels", "120400"]) == 0


def test_the_limit_that_is_named_is_enough_for_any_size() -> None:
    side = 2**31 - 1
    with pytest.raises(ImageError, match=f"max_pixels={side * side} "):
        limits.check_size((side, side), "a.png", MAX_PIXELS)
