"""Photos of every kind, good and bad, and the boxes on them."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
from photo_files import CHELSEA, encoded, refusal, saved
from skimage import data as photos

from cwf_milvus.errors import BoxError, ImageError, SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import (
    MAX_PIXELS,
    Image,
    crop,
    load_image,
    resize,
    target_size,
    thumbnail,
)

LOSSLESS = ("PNG", "WEBP", "TIFF", "BMP")


def huge_png(width: int, height: int) -> bytes:
    """A header of any size, with pixels that no one should get to."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


# --- what comes in -------------------------------------------------------------------------------


def test_a_path_bytes_a_file_an_array_pil_and_a_tensor_give_the_same_pixels(tmp_path):
    path = saved(tmp_path / "cat.png")
    tensor = torch.from_numpy(CHELSEA).permute(2, 0, 1)
    sources = [str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), CHELSEA]
    for source in [*sources, PIL.Image.open(path), tensor, path.as_uri(), bytearray(encoded())]:
        image = load_image(source)
        assert np.array_equal(image.pixels, CHELSEA)
        assert image.pixels.dtype == np.uint8
        assert (image.width, image.height) == (451, 300)


def test_content_is_the_sha256_of_the_bytes_wherever_they_come_from(tmp_path):
    path = saved(tmp_path / "cat.png")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert load_image(source).content == expected


def test_content_of_arrays_depends_on_their_shape_and_pixels():
    other = CHELSEA.copy()
    other[0, 0, 0] ^= 1
    same = [
        load_image(CHELSEA),
        load_image(CHELSEA.copy()),
        load_image(PIL.Image.fromarray(CHELSEA)),
    ]
    assert len({image.content for image in same}) == 1
    different = [CHELSEA, other, CHELSEA.reshape(451, 300, 3)]
    assert len({load_image(array).content for array in different}) == 3


def test_what_has_no_name_is_named_by_its_content_or_by_the_uri_given():
    image = load_image(CHELSEA)
    assert image.uri == f"sha256:{image.content}"
    assert load_image(encoded()).uri == f"sha256:{hashlib.sha256(encoded()).hexdigest()}"
    assert load_image(encoded(), uri="my cat").uri == "my cat"
    assert load_image(CHELSEA, uri="my cat").uri == "my cat"


def test_an_image_is_returned_as_it_is():
    image = load_image(CHELSEA)
    assert load_image(image) is image


def test_an_array_may_be_changed_afterwards():
    mine = CHELSEA.copy()
    image = load_image(mine)
    mine[:] = 0
    assert np.array_equal(image.pixels, CHELSEA)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_come_back_exactly(kind):
    assert np.array_equal(load_image(encoded(kind=kind)).pixels, CHELSEA)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_comes_back_exactly(compression):
    image = load_image(encoded(kind="TIFF", compression=compression))
    assert np.array_equal(image.pixels, CHELSEA)


def test_a_jpeg_comes_back_nearly():
    pixels = load_image(encoded(kind="JPEG", quality=95)).pixels
    assert np.abs(pixels.astype(int) - CHELSEA).mean() < 2


def test_other_types_are_refused_with_what_is_possible():
    for source in (None, 7, [[1, 2], [3, 4]], {"a": 1}):
        assert "give a path, url, bytes, array or PIL image" in refusal(source)


def test_a_text_file_object_and_one_that_fails_are_refused():
    assert "mode 'rb'" in refusal(io.StringIO("text"))
    closed = io.BytesIO(encoded())
    closed.close()
    assert "closed file" in refusal(closed)


def test_a_file_object_that_gives_a_little_at_a_time_is_read_to_its_end():
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(1000)

    assert np.array_equal(load_image(Slow(encoded())).pixels, CHELSEA)


# --- kinds of pixels -----------------------------------------------------------------------------


def test_grey_photos_become_three_equal_channels():
    camera = photos.camera()
    for source in (encoded(camera), camera, camera[..., None], torch.from_numpy(camera)[None]):
        assert np.array_equal(load_image(source).pixels, np.repeat(camera[..., None], 3, 2))


def test_black_and_white_photos_are_0_and_255():
    mask = photos.camera() > 100
    for source in (mask, encoded(PIL.Image.fromarray(mask)), torch.from_numpy(mask)[None]):
        assert np.array_equal(load_image(source).pixels[..., 0], mask * np.uint8(255))


def test_16_bit_grey_is_divided_by_257_in_png_tiff_and_arrays():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(ramp / 257 + 0.5).astype(np.uint8)
    big = ramp.astype(">u2")
    tensor = torch.from_numpy(ramp.astype(np.int32))[None]
    for source in (ramp, big, encoded(ramp), encoded(ramp, "TIFF"), tensor):
        assert np.array_equal(load_image(source).pixels[..., 1], expected)


def test_16_bit_colour_keeps_its_colours(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "deep.tif", CHELSEA.astype(np.uint16) * 257)
    for source in (CHELSEA.astype(np.uint16) * 257, tmp_path / "deep.tif"):
        assert np.array_equal(load_image(source).pixels, CHELSEA)


def test_a_16_bit_array_is_16_bit_even_when_it_is_dark():
    assert load_image(np.full((4, 4), 200, np.uint16)).pixels.max() == 1


def test_other_integers_are_8_bit_up_to_255_and_16_bit_up_to_65535():
    assert np.array_equal(load_image(CHELSEA.astype(np.int64)).pixels, CHELSEA)
    assert np.array_equal(load_image(CHELSEA.astype(np.int32) * 257).pixels, CHELSEA)
    for wrong in (-1, 65536):
        message = refusal(np.full((4, 4), wrong, np.int64))
        assert "0..65535" in message
        assert str(wrong) in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_0_to_1_or_0_to_255(dtype, top):
    source = (CHELSEA / 255 * top).astype(dtype)
    assert np.array_equal(load_image(source).pixels, CHELSEA)


def test_float_tensors_on_any_type_follow_the_same_rule():
    tensor = torch.from_numpy(CHELSEA).permute(2, 0, 1) / 255
    assert np.array_equal(load_image(tensor).pixels, CHELSEA)
    halved = load_image(tensor.bfloat16().requires_grad_()).pixels
    assert np.abs(halved.astype(int) - CHELSEA).max() <= 1


def test_float_tiff_follows_the_rule_of_float_arrays(tmp_path):
    import tifffile

    grey = photos.camera()
    tifffile.imwrite(tmp_path / "float.tif", grey.astype(np.float32) / 255)
    assert np.array_equal(load_image(tmp_path / "float.tif").pixels[..., 0], grey)
    broken = grey.astype(np.float32)
    broken[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", broken)
    assert "NaN" in refusal(tmp_path / "nan.tif")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(value):
    source = CHELSEA / 255
    source[5, 6, 1] = value
    assert "NaN or infinite" in refusal(source)
    assert "NaN or infinite" in refusal(torch.from_numpy(source).permute(2, 0, 1))


@pytest.mark.parametrize(("low", "high"), [(-2.1, 2.6), (0.0, 1.3), (0.0, 300.0), (-5.0, 200.0)])
def test_floats_of_another_range_are_refused_and_named(low, high):
    message = refusal(np.linspace(low, high, 300).reshape(10, 10, 3))
    assert f"{low:g} to {high:g}" in message
    assert "0..1 or 0..255" in message


def test_types_that_are_no_pixels_are_refused():
    for source in (np.full((4, 4), 1j), np.full((4, 4), "a"), np.full((4, 4), None)):
        assert str(source.dtype) in refusal(source)


@pytest.mark.parametrize("shape", [(7,), (0, 5, 3), (3, 40, 50), (2, 40, 50, 3), (40, 50, 5), ()])
def test_arrays_of_another_shape_are_refused_and_named(shape):
    message = refusal(np.zeros(shape, np.uint8))
    assert str(shape) in message
    assert "(h, w, 3)" in message


@pytest.mark.parametrize("shape", [(40, 50, 3), (1, 3, 40, 50), (3, 0, 5), (40, 50)])
def test_tensors_of_another_shape_are_refused_and_named(shape):
    message = refusal(torch.zeros(shape))
    assert str(shape) in message
    assert "(3, h, w)" in message


def test_transparent_pixels_are_laid_on_white():
    alpha = np.zeros(CHELSEA.shape[:2], np.uint8)
    alpha[:, 200:] = 255
    alpha[:, 100:200] = 128
    rgba = np.dstack([CHELSEA, alpha])
    tensor = torch.from_numpy(rgba).permute(2, 0, 1)
    for source in (rgba, encoded(rgba), encoded(rgba, "WEBP", exact=True), tensor):
        pixels = load_image(source).pixels
        assert (pixels[:, :100] == 255).all()
        assert np.array_equal(pixels[:, 200:], CHELSEA[:, 200:])
        between = CHELSEA[:, 100:200] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(pixels[:, 100:200] - between).max() <= 1


def test_grey_with_alpha_is_laid_on_white():
    camera = photos.camera()
    alpha = np.where(np.arange(512) < 256, 0, 255).astype(np.uint8) * np.ones_like(camera)
    la = np.dstack([camera, alpha])
    for source in (la, encoded(PIL.Image.fromarray(la, "LA"))):
        pixels = load_image(source).pixels
        assert (pixels[:, :256] == 255).all()
        assert np.array_equal(pixels[:, 256:, 2], camera[:, 256:])


def test_a_palette_becomes_its_colours():
    palette = PIL.Image.fromarray(CHELSEA).quantize(64)
    expected = np.array(palette.convert("RGB"))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(load_image(encoded(palette, kind)).pixels, expected), kind


def test_the_transparent_entry_of_a_palette_becomes_white():
    palette = PIL.Image.fromarray(CHELSEA).quantize(64)
    index = int(np.bincount(np.array(palette).ravel()).argmax())
    hidden = np.array(palette) == index
    expected = np.array(palette.convert("RGB"))
    expected[hidden] = 255
    for kind in ("PNG", "GIF"):
        pixels = load_image(encoded(palette, kind, transparency=index)).pixels
        assert np.array_equal(pixels, expected), kind


def test_a_palette_with_partial_transparency_is_laid_on_white():
    palette = PIL.Image.fromarray(CHELSEA).quantize(16)
    source = encoded(palette, "PNG", transparency=bytes([0] * 8 + [255] * 8))
    hidden = np.array(palette) < 8
    expected = np.array(palette.convert("RGB"))
    expected[hidden] = 255
    assert hidden.any()
    assert np.array_equal(load_image(source).pixels, expected)


def test_the_transparent_colour_of_an_rgb_png_becomes_white():
    colour = tuple(int(value) for value in CHELSEA[10, 10])
    hidden = (np.array(colour) == CHELSEA).all(-1)
    pixels = load_image(encoded(transparency=colour)).pixels
    assert (pixels[hidden] == 255).all()
    assert np.array_equal(pixels[~hidden], CHELSEA[~hidden])


def test_cmyk_becomes_rgb_in_tiff_and_in_adobes_inverted_jpeg():
    cmyk = PIL.Image.fromarray(CHELSEA).convert("CMYK")
    assert np.array_equal(load_image(encoded(cmyk, "TIFF")).pixels, CHELSEA)
    jpeg = encoded(cmyk, "JPEG", quality=95)
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\0"
    inverted = jpeg[:2] + adobe + jpeg[2:]
    assert PIL.Image.open(io.BytesIO(inverted)).info["adobe"] == 100
    for source in (jpeg, inverted):
        for at_least in (None, 100):
            image = load_image(source, at_least=at_least)
            small = np.array(PIL.Image.fromarray(CHELSEA).resize(image.pixels.shape[1::-1]))
            assert np.abs(image.pixels.astype(int) - small).mean() < 5


def test_of_several_frames_or_pages_the_first_is_taken():
    first, second = PIL.Image.fromarray(CHELSEA), PIL.Image.fromarray(255 - CHELSEA)
    for kind in ("PNG", "WEBP", "TIFF"):
        source = encoded(first, kind, save_all=True, append_images=[second])
        assert PIL.Image.open(io.BytesIO(source)).n_frames == 2
        assert np.array_equal(load_image(source).pixels, CHELSEA), kind
    gif = [image.quantize(64) for image in (first, second)]
    source = encoded(gif[0], "GIF", save_all=True, append_images=gif[1:])
    assert PIL.Image.open(io.BytesIO(source)).n_frames == 2
    assert np.array_equal(load_image(source).pixels, np.array(gif[0].convert("RGB")))


def test_of_a_multi_picture_jpeg_the_first_is_taken_also_at_reduced_scale():
    first, second = PIL.Image.fromarray(CHELSEA), PIL.Image.fromarray(255 - CHELSEA)
    source = encoded(first, "MPO", save_all=True, append_images=[second])
    assert PIL.Image.open(io.BytesIO(source)).format == "MPO"
    image = load_image(source, at_least=200)
    assert image.pixels.shape == (150, 226, 3)
    assert abs(image.pixels.mean() - CHELSEA.mean()) < 2


# --- EXIF ----------------------------------------------------------------------------------------

TURNED = {  # how a camera that writes this orientation stores the upright photo
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def turned(orientation: int, kind: str, **save: object) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(TURNED[orientation](CHELSEA)), kind, exif=exif, **save)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_all_eight_exif_orientations_come_upright(orientation, kind):
    image = load_image(turned(orientation, kind))
    assert np.array_equal(image.pixels, CHELSEA)
    assert (image.width, image.height) == (451, 300)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("at_least", [None, 200])
def test_turned_jpegs_come_upright_at_full_and_reduced_scale(orientation, at_least):
    source = turned(orientation, "JPEG", quality=95)
    image = load_image(source, at_least=at_least)
    assert (image.width, image.height) == (451, 300)
    assert image.pixels.shape == ((300, 451, 3) if at_least is None else (150, 226, 3))
    small = np.array(PIL.Image.fromarray(CHELSEA).resize(image.pixels.shape[1::-1]))
    assert np.abs(image.pixels.astype(int) - small).mean() < 4


def test_a_pil_image_is_turned_as_its_exif_says():
    for orientation in TURNED:
        opened = PIL.Image.open(io.BytesIO(turned(orientation, "PNG")))
        assert np.array_equal(load_image(opened).pixels, CHELSEA)


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_orientations_that_do_not_exist_turn_nothing(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encoded(exif=exif)).pixels, CHELSEA)


def test_a_damaged_exif_block_does_not_spoil_the_photo():
    source = encoded(exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(load_image(source).pixels, CHELSEA)


# --- damaged, empty, enormous --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_truncated_photo_is_refused_even_where_pillow_is_lenient(
    kind, share, lenient, tmp_path, monkeypatch
):
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole = encoded(kind=kind)
    path = tmp_path / "cut\noff.jpg"
    path.write_bytes(whole[: int(len(whole) * share)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = refusal(path)
    assert repr(str(path)) in message
    assert "damaged or cut off" in message
    assert "copy it again" in message


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("at_least", [None, 100])
def test_a_truncated_jpeg_is_refused_at_every_scale(progressive, at_least):
    whole = encoded(kind="JPEG", progressive=progressive)
    for end in (-1, -1000, len(whole) // 2):
        assert "cut off" in refusal(whole[:end], uri="cut.jpg", at_least=at_least)


@pytest.mark.parametrize("marker", [b"\xff\xc0", b"\xff\xda"])
def test_a_jpeg_whose_segments_are_too_short_for_what_they_say_is_refused(marker):
    whole = encoded(kind="JPEG")
    at = whole.index(marker)
    for length in (2, 7 if marker == b"\xff\xc0" else 2):
        cut = whole[:at] + marker + length.to_bytes(2, "big") + bytes(length - 2)
        assert "(it is truncated)" in refusal(cut + whole[at + 4 :], uri="short.jpg")
        assert "(it is truncated)" in refusal(cut, uri="short.jpg")


def test_a_zero_byte_photo_is_refused(tmp_path):
    path = tmp_path / "zero.jpg"
    path.touch()
    for source in (path, b"", io.BytesIO(b"")):
        assert "is empty (0 bytes)" in refusal(source)
    assert repr(str(path)) in refusal(path)


def test_text_named_jpg_is_refused_with_its_beginning_and_what_can_be_read(tmp_path):
    path = tmp_path / "letter.jpg"
    path.write_text("Dear photographer, this is no photo.")
    message = refusal(path)
    assert repr(str(path)) in message
    assert "b'Dear photogr'" in message
    assert "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF and JPEG 2000 are read" in message


@pytest.mark.parametrize(
    "source",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns=''/>", b"\0\0\0\x18ftypisom", b"P6\n1 1\n"],
)
def test_formats_that_run_programs_or_are_unknown_are_refused(source):
    assert "is not a photo that can be read" in refusal(source)


def test_random_bytes_behind_a_good_beginning_raise_nothing_but_image_errors():
    rng = np.random.default_rng(0)
    decoded = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
            whole = np.frombuffer(encoded(CHELSEA[:40, :60], kind), np.uint8)
            for _ in range(60):
                broken = whole.copy()
                where = rng.integers(4, len(whole) if rng.random() < 0.5 else 64, 6)
                broken[where] = rng.integers(0, 256, 6)
                try:
                    image = load_image(broken.tobytes(), max_pixels=10**6)
                except ImageError:
                    continue
                decoded += 1
                assert image.pixels.shape == (image.height, image.width, 3)
    assert decoded > 0


def test_one_pixel_is_a_photo():
    for kind in ("JPEG", *LOSSLESS, "GIF"):
        image = load_image(encoded(np.full((1, 1, 3), 255, np.uint8), kind), at_least=512)
        assert image.pixels.tolist() == [[[255, 255, 255]]]
        assert resize(image, 64, 32).shape == (3, 32, 64)
        assert crop(image, Box(0, 0, 1, 1)).pixels.shape == (1, 1, 3)


def test_a_decompression_bomb_is_refused_from_its_header_with_size_and_limit():
    start = time.process_time()
    message = refusal(huge_png(20_000, 20_000), uri="bomb.png")
    assert time.process_time() - start < 0.5
    assert "'bomb.png' has 20000 x 20000 = 400,000,000 pixels" in message
    assert f"limit of {MAX_PIXELS:,}" in message


def test_a_real_bomb_is_not_decoded():
    bomb = encoded(PIL.Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    start = time.process_time()
    with pytest.raises(ImageError, match="20000 x 20000"):
        load_image(bomb)
    refused = time.process_time() - start
    assert refused < 0.1  # decoding it takes some seconds


@pytest.mark.parametrize("kind", ["JPEG", *LOSSLESS, "GIF"])
def test_the_pixel_limit_holds_for_every_format_and_is_an_argument(kind):
    source = encoded(kind=kind)
    assert "451 x 300" in refusal(source, max_pixels=451 * 300 - 1)
    assert load_image(source, max_pixels=451 * 300).width == 451


def test_a_webp_that_pillow_itself_will_not_open_is_refused_as_too_large():
    canvas = struct.pack("<I", 16382)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas
    message = refusal(b"RIFF" + struct.pack("<I", len(body)) + body, uri="bomb.webp")
    assert "'bomb.webp'" in message
    if "damaged" not in message:  # Pillow before 13 finds it cut off
        assert "too large to open (Image size (268402689 pixels) exceeds limit" in message


def test_a_pil_image_above_the_limit_is_refused_before_it_is_decoded():
    opened = PIL.Image.open(io.BytesIO(encoded()))
    assert "451 x 300" in refusal(opened, max_pixels=1000)
    assert np.array_equal(load_image(opened).pixels, CHELSEA)


def test_the_limit_needs_no_global_of_pillow_and_gives_no_warning(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encoded()).width == 451
        assert load_image(encoded(kind="JPEG"), at_least=100).width == 451
        refusal(huge_png(12_000, 10_000))
    assert PIL.Image.MAX_IMAGE_PIXELS == 100
    assert PIL.ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_more_bytes_than_the_limit_are_refused(tmp_path):
    path = saved(tmp_path / "cat.png")
    size = path.stat().st_size
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert f"larger than {size - 1:,} bytes" in refusal(source, max_bytes=size - 1)
        assert load_image(source if source is path else path, max_bytes=size).width == 451


def test_a_file_above_512_mib_is_refused_unread(tmp_path):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(40 * 2**30)
    start = time.process_time()
    assert "larger than 536,870,912 bytes" in refusal(path)
    assert time.process_time() - start < 0.5


def test_many_threads_may_load_at_once():
    sources = [turned(k, kind) for k in TURNED for kind in ("JPEG", "PNG", "WEBP", "TIFF")] * 4
    expected = [load_image(source, at_least=200).pixels for source in sources]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda source: load_image(source, at_least=200).pixels, sources))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


# --- boxes ---------------------------------------------------------------------------------------


def test_a_box_is_made_of_text_numbers_arrays_and_boxes():
    box = Box(279, 100, 601.5, 862)
    for value in ("279,100,601.5,862", " 279, 100, 601.5, 862 ", [279, 100, 601.5, 862], box):
        assert Box.of(value) == box
    assert Box.of(np.array(box)) == box
    assert Box.of(torch.tensor(box)) == box
    assert Box.parse("279,100,601.5,862") == box
    assert Box.of(None) is None


@pytest.mark.parametrize(
    "value",
    ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1;2;3;4", [1, 2, 3], [1, 2, 3, None], 7, b"1234 "],
)
def test_what_is_not_four_numbers_is_no_box(value):
    with pytest.raises(BoxError, match="not four numbers; give x1,y1,x2,y2"):
        Box.of(value)


def test_a_box_that_reaches_over_the_border_is_clipped():
    assert Box(-5, 10, 1000, 299.5).checked(451, 300) == Box(0, 10, 451, 299.5)
    assert Box(0, 0, 451, 300).checked(451, 300) == Box(0, 0, 451, 300)


@pytest.mark.parametrize(
    "box", [(451, 0, 460, 9), (-9, -9, 0, 5), (5, 300, 9, 400), (1, -7, 9, -2)]
)
def test_a_box_outside_the_photo_is_refused_with_both_sizes(box):
    with pytest.raises(BoxError, match="outside the photo of 451 x 300 pixels") as caught:
        Box.of(box).checked(451, 300)
    assert ",".join(map(str, box)) in str(caught.value)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (100, 100, 50, 50)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(BoxError, match="has no area; give corners with x1 < x2"):
        Box.of(box).checked(451, 300)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_box_with_nan_or_infinity_is_refused(value):
    for place in range(4):
        numbers = ["1", "2", "30", "40"]
        numbers[place] = value
        with pytest.raises(BoxError, match="is not finite"):
            Box.parse(",".join(numbers)).checked(451, 300)


def test_a_box_is_scaled_by_x_and_y():
    assert Box(10, 20, 30, 40).scaled(2, 0.5) == Box(20, 10, 60, 20)


def test_a_crop_holds_the_pixels_of_the_half_open_box():
    image = load_image(CHELSEA, uri="cat")
    cut = crop(image, Box(100, 50, 300, 200))
    assert np.array_equal(cut.pixels, CHELSEA[50:200, 100:300])
    assert (cut.width, cut.height, cut.uri) == (200, 150, "cat")
    assert cut.content == load_image(CHELSEA[50:200, 100:300]).content


def test_a_crop_takes_every_pixel_that_the_box_touches_and_at_least_one():
    image = load_image(CHELSEA)
    assert np.array_equal(crop(image, Box(10.9, 5.2, 12.1, 6)).pixels, CHELSEA[5:6, 10:13])
    assert np.array_equal(crop(image, Box(450.2, 299.4, 450.3, 900)).pixels, CHELSEA[299:, 450:])


def test_a_crop_of_a_bad_box_is_refused():
    for box in (Box(5, 5, 5, 9), Box(500, 0, 600, 9), Box(0, 0, math.nan, 9)):
        with pytest.raises(BoxError):
            crop(load_image(CHELSEA), box)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twelve_megapixels() -> bytes:
    """A JPEG as a phone writes it, 4032 x 3024, of a real photo."""
    large = PIL.Image.fromarray(photos.astronaut()[:384]).resize((4032, 3024))
    return encoded(large, "JPEG", quality=90)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        (None, (4032, 3024)),
        (4033, (4032, 3024)),
        (2017, (4032, 3024)),
        (2016, (2016, 1512)),
        (1009, (2016, 1512)),
        (1008, (1008, 756)),
        (504, (504, 378)),
        (1, (504, 378)),
    ],
)
def test_a_jpeg_is_reduced_to_no_less_than_is_needed(twelve_megapixels, at_least, size):
    image = load_image(twelve_megapixels, at_least=at_least)
    assert image.pixels.shape[1::-1] == size
    assert (image.width, image.height) == (4032, 3024)
    assert image.content == hashlib.sha256(twelve_megapixels).hexdigest()


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (7, 4000), (333, 501), (17, 16)])
def test_odd_and_thin_jpegs_are_never_reduced_below_what_is_needed(shape):
    source = encoded(np.full((*shape, 3), 90, np.uint8), "JPEG")
    for at_least in (1, 8, 63, 100, 450, 5000):
        image = load_image(source, at_least=at_least)
        assert max(image.pixels.shape) >= min(at_least, *[max(shape)])
        assert (image.height, image.width) == shape


def test_a_reduced_decode_is_much_faster(twelve_megapixels):
    def fastest(at_least: int | None) -> float:
        times = []
        for _ in range(4):
            start = time.thread_time()
            load_image(twelve_megapixels, at_least=at_least)
            times.append(time.thread_time() - start)
        return min(times)

    assert fastest(1000) < 0.6 * fastest(None)


def test_a_crop_of_a_reduced_decode_shows_the_same_place(twelve_megapixels):
    box = Box(1500.5, 300, 2700, 1800.25)
    full = crop(load_image(twelve_megapixels), box)
    reduced = crop(load_image(twelve_megapixels, at_least=900), box)
    assert (full.width, full.height) == (reduced.width, reduced.height) == (1200, 1501)
    assert full.pixels.shape == (1501, 1200, 3)
    assert reduced.pixels.shape == (376, 300, 3)
    a, b = (resize(image, 96, 128).float() for image in (full, reduced))
    assert (a - b).abs().mean() < 3
    shifted = resize(crop(load_image(twelve_megapixels), Box(1560, 300, 2760, 1801)), 96, 128)
    assert (a - shifted.float()).abs().mean() > 6


def test_only_jpegs_are_reduced():
    assert load_image(encoded(), at_least=50).pixels.shape == CHELSEA.shape


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((4032, 3024), {}, (512, 384)),
        ((3024, 4032), {}, (384, 512)),
        ((451, 300), {}, (512, 352)),
        ((451, 300), {"multiple": 1}, (512, 341)),
        ((451, 300), {"mode": "shortest"}, (768, 512)),
        ((451, 300), {"mode": "squash"}, (512, 512)),
        ((60_000, 1), {}, (512, 32)),
        ((60_000, 1), {"mode": "shortest"}, (2048, 512)),
        ((1, 1), {}, (512, 512)),
        ((1, 60_000), {"mode": "shortest", "multiple": 16}, (512, 2048)),
    ],
)
def test_target_sizes_are_multiples_and_keep_the_aspect_ratio(size, options, expected):
    assert target_size(*size, 512, **options) == expected


def test_target_sizes_that_cannot_be_are_refused():
    for arguments in ((0, 5, 512), (5, 5, 0), (5, -1, 512)):
        with pytest.raises(SettingsError, match="above 0"):
            target_size(*arguments)
    with pytest.raises(SettingsError, match="'longest', 'shortest' or 'squash'"):
        target_size(5, 5, 512, mode="widest")


@pytest.mark.parametrize("size", [(224, 160), (451, 300), (640, 448), (32, 32)])
def test_resizing_is_pillows_antialiased_bicubic_within_two(size):
    readonly = CHELSEA.copy()
    readonly.flags.writeable = False
    for source in (load_image(CHELSEA), readonly, CHELSEA[:, ::-1]):
        pixels = source.pixels if isinstance(source, Image) else source
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = resize(source, *size)
        expected = np.array(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))
        assert found.dtype == torch.uint8
        assert found.shape == (3, size[1], size[0])
        difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 2
        assert difference.mean() < 0.1


def test_a_thumbnail_fits_and_is_never_enlarged():
    image = load_image(CHELSEA)
    assert thumbnail(image, 100).size == (100, 67)
    assert thumbnail(image, 1000).size == (451, 300)
    assert thumbnail(load_image(np.zeros((1, 900, 3), np.uint8)), 64).size == (64, 1)
    assert np.array_equal(image.pixels, CHELSEA)
    with pytest.raises(SettingsError):
        thumbnail(image, 0)
