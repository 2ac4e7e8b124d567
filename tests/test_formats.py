"""Formats: what each is told by, decoded by, and said of where nothing here reads it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from photo_files import CHELSEA, encoded, refusal
from raw_files import dng

from cwf_milvus.photos import formats
from cwf_milvus.photos.formats import HEIC, JPEG, RAW, format_of
from cwf_milvus.photos.images import load_image

CAT = PIL.Image.fromarray(CHELSEA)


def heic(image: PIL.Image.Image = CAT, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()  # to write them, not to read
    return encoded(image, "HEIF", quality=90, **options)


def raw(orientation: int = 1) -> bytes:
    pytest.importorskip("rawpy")
    return dng(encoded(kind="JPEG", quality=95), CAT.size, orientation)


@pytest.fixture
def no_extras(monkeypatch):
    """As after a plain install: no pillow-heif, no rawpy."""
    formats.decoder_of.cache_clear()
    monkeypatch.setattr(formats, "_library", lambda name: None)
    yield
    formats.decoder_of.cache_clear()


def is_the_cat(source: object, **options: object) -> bool:
    pixels = load_image(source, **options).pixels
    return pixels.shape == CHELSEA.shape and np.abs(pixels.astype(int) - CHELSEA).mean() < 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(kind="AVIF", quality=90),
        lambda: encoded(kind="JPEG2000"),
        lambda: encoded(kind="JPEG2000", no_jp2=True),
        lambda: encoded(kind="MPO", quality=95, save_all=True, append_images=[CAT.rotate(90)]),
        heic,
    ],
    ids=["avif", "jp2", "j2k", "mpo", "heic"],
)
def test_phones_and_scanners_formats_are_read(make):
    assert is_the_cat(make())


def test_a_raw_file_is_read_by_its_preview(tmp_path):
    path = tmp_path / "IMG_1.DNG"
    path.write_bytes(raw())
    assert is_the_cat(path)


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_heic_avif_and_raw_come_upright(turn):
    made = PIL.Image.Exif()
    made[0x0112] = turn
    exif = made.tobytes()
    quarter = {3: 2, 6: -1, 8: 1}[turn]
    expected = np.rot90(CHELSEA, quarter)
    for source, name in (
        (encoded(kind="AVIF", quality=90, exif=exif), "a.avif"),
        (heic(exif=exif), "a.heic"),
        (raw(turn), "a.dng"),
    ):
        image = load_image(source, uri=name)
        assert (image.width, image.height) == expected.shape[1::-1]
        assert np.abs(image.pixels.astype(int) - expected).mean() < 4, name


def test_the_bytes_decide_not_the_name(tmp_path):
    path = tmp_path / "really_a_jpeg.heic"
    path.write_bytes(encoded(kind="JPEG", quality=95))
    assert is_the_cat(path)
    assert format_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf").name == "AVIF"
    assert format_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") is HEIC


def test_without_its_library_a_photo_is_named_with_the_remedy(no_extras, tmp_path):
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    message = refusal(start, uri="IMG_1.jpg")  # as phones' folders have them, renamed
    assert "'IMG_1.jpg' is a HEIC photo, which cannot be read here" in message
    assert "pip install 'cwf-milvus[heic]'" in message
    whole = dng(encoded(kind="JPEG"), CAT.size)
    assert "pip install 'cwf-milvus[raw]'" in refusal(whole, uri="IMG_1.dng")
    assert "if it is a HEIC photo as its name says, pip" in refusal(b"text", uri="a.heic")


def test_a_format_that_nothing_reads_is_named():
    message = refusal(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), uri="a.jxl")
    assert "is a JPEG XL photo, which cannot be read here; save it as JPEG or PNG" in message


def test_a_raw_file_without_a_preview_is_refused():
    assert "damaged or cut off" in refusal(raw()[:600], uri="a.dng")


def test_every_ending_belongs_to_one_format():
    assert len(set(formats.PHOTO_SUFFIXES)) == len(formats.PHOTO_SUFFIXES)
    assert formats.format_by_name("A.JPG") is JPEG
    assert formats.format_by_name("a.CR3") is RAW
    assert formats.format_by_name("jpg") is None


def test_a_jpeg_2000_is_reduced_by_its_decoder_as_far_as_it_can_be():
    large = CAT.resize((2000, 1330))
    for levels, shape in ((6, (333, 500, 3)), (2, (665, 1000, 3))):
        source = encoded(large, "JPEG2000", num_resolutions=levels)
        image = load_image(source, at_least=500)
        assert image.pixels.shape == shape
        assert (image.width, image.height) == (2000, 1330)
