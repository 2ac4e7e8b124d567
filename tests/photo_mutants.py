"""Damaged photos of every format, decoded one after another: what became of them, as JSON.

A program of its own, since what is looked for may end it:
python tests/photo_mutants.py COUNT [SEED] writes a line for each format.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np
import PIL.Image
from raw_files import dng
from skimage import data as photos

from cwf_milvus.errors import ImageError
from cwf_milvus.photos.decoding import decode
from cwf_milvus.photos.formats import HEIC, RAW, can_read
from cwf_milvus.photos.limits import MAX_PIXELS

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def samples(size: tuple[int, int] = (150, 100)) -> dict[str, list[bytes]]:
    """Return whole photos of each format, in the ways that it can be written."""
    cat = PIL.Image.fromarray(photos.chelsea()).resize(size)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    alpha = cat.copy()
    alpha.putalpha(cat.convert("L"))
    palette = cat.quantize(64)
    deep = PIL.Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257)
    two = {"save_all": True, "append": cat.rotate(90)}

    def written(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        if "append" in options:
            options["append_images"] = [options.pop("append").copy()]
        image.copy().save(stream, kind, **options)  # a copy: saving leaves its settings there
        return stream.getvalue()

    tiff = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
    found = {
        "JPEG": [
            written(cat, "JPEG", exif=turned, icc_profile=bytes(3000), comment=b"x" * 99),
            written(cat, "JPEG", progressive=True),
            written(cat.convert("CMYK"), "JPEG", restart_marker_blocks=3),
            written(cat, "MPO", **two),
        ],
        "PNG": [
            written(cat, "PNG", exif=turned),
            written(palette, "PNG", transparency=3),
            written(deep, "PNG"),
            written(alpha, "PNG", **two),
        ],
        "WebP": [
            written(cat, "WEBP", exif=turned),
            written(alpha, "WEBP", lossless=True),
            written(cat, "WEBP", **two),
        ],
        "TIFF": [written(cat, "TIFF", compression=one) for one in tiff]
        + [
            written(cat.convert("1"), "TIFF", compression="group4"),
            written(deep, "TIFF", exif=turned),
            written(cat, "TIFF", **two),
        ],
        "BMP": [written(cat, "BMP"), written(palette, "BMP"), _run_length_coded()],
        "GIF": [
            written(palette, "GIF", comment=b"x" * 600),
            written(palette, "GIF", interlace=1, transparency=3),
            written(cat, "GIF", **two),
        ],
        "AVIF": [written(cat, "AVIF", speed=10, exif=turned), written(alpha, "AVIF", speed=10)],
        "JPEG 2000": [
            written(cat, "JPEG2000"),
            written(cat, "JPEG2000", tile_size=(64, 64), irreversible=True),
            written(deep, "JPEG2000", no_jp2=True),
        ],
    }
    if can_read(HEIC):
        from pillow_heif import from_pillow

        for image in (cat, alpha):
            stream = io.BytesIO()
            from_pillow(image).save(stream)
            found.setdefault("HEIC", []).append(stream.getvalue())
    if can_read(RAW):
        found["RAW"] = [dng(written(cat, "JPEG"), cat.size, 6)]
    return found


def _run_length_coded() -> bytes:
    rows = b"".join(b"\x05\x01\x00\x03\x07\x08\x09\x00\x03\x02\x00\x00" for _ in range(40))
    header = b"BM" + (54 + 1024 + len(rows)).to_bytes(4, "little") + bytes(4)
    header += (54 + 1024).to_bytes(4, "little") + (40).to_bytes(4, "little")
    for number, size in ((11, 4), (40, 4), (1, 2), (8, 2), (1, 4), (len(rows), 4)):
        header += number.to_bytes(size, "little")
    return header + bytes(16) + bytes(range(256)) * 4 + rows


def mutants(wholes: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged photos: bytes, numbers, pieces cut, doubled, and put from one to another."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        whole = bytearray(wholes[number % len(wholes)])
        for _ in range(int(rng.choice([1, 1, 2, 4, 16]))):
            head = len(whole) if rng.random() < 0.5 else min(len(whole), 400)
            at = int(rng.integers(2, max(3, head)))
            length = int(rng.choice([1, 2, 4, 8, 64, 1024]))
            match int(rng.integers(6)):
                case 0:
                    whole[at : at + 1] = rng.bytes(1)
                case 1:
                    size, order = int(rng.choice([1, 2, 4])), str(rng.choice(["little", "big"]))
                    value = int(rng.choice(_NUMBERS)) & (256**size - 1)
                    whole[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
                case 2:
                    del whole[at : at + length]
                case 3:
                    whole[at:at] = whole[at : at + length] * int(rng.choice([1, 2, 300]))
                case 4:
                    other = wholes[int(rng.integers(len(wholes)))]
                    whole[at : at + length] = other[at : at + length]
                case _:
                    whole[at : at + length] = rng.bytes(length)
        if rng.random() < 0.1:
            del whole[int(rng.integers(1, len(whole) + 1)) :]
        yield bytes(whole)


def main(count: int, seed: int = 0) -> None:
    """Decode `count` mutants of each format; a foreign exception or a crash ends the program."""
    warnings.simplefilter("ignore")
    for kind, wholes in samples().items():
        name = "x.dng" if kind == "RAW" else "x"
        slowest, decoded = 0.0, 0
        for whole in wholes:
            decode(whole, name, 100, 0, MAX_PIXELS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, mutant in enumerate(mutants(wholes, count, seed)):
            start = time.perf_counter()
            try:
                pixels, _, _ = decode(mutant, name, 100 if number % 2 else None, 0, MAX_PIXELS)
                decoded += 1
                assert pixels.ndim == 3
                assert pixels.dtype == np.uint8
            except ImageError:
                pass
            taken = time.perf_counter() - start
            if taken > max(slowest, 1):
                print(f"{kind} {number} takes {taken:.1f} s", file=sys.stderr)
            slowest = max(slowest, taken)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = {"kind": kind, "mutants": count, "decoded": decoded, "slowest": round(slowest, 2)}
        print(json.dumps(line | {"grew": (peak - before) // 1024}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
