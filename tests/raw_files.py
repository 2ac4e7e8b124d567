"""A camera's RAW file, as small as LibRaw takes it: a DNG with a JPEG preview."""

from __future__ import annotations

import struct

import numpy as np

_KINDS = {1: "B", 3: "H", 4: "I", 10: "i"}  # of TIFF's values; 10 is a fraction


def dng(preview: bytes, size: tuple[int, int], orientation: int = 1) -> bytes:
    """Return a DNG of 48 x 32 raw pixels whose preview is a JPEG of `size`."""
    raw = np.random.default_rng(0).integers(0, 4000, (32, 48), np.uint16).tobytes()
    width, height = size
    identity = [number for i in range(9) for number in (int(i % 4 == 0), 1)]

    def folders(second: int, preview_at: int, raw_at: int) -> tuple[bytes, bytes]:
        # fmt: off
        first = [
            (254, 4, [1]), (256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8]),
            (259, 3, [7]), (262, 3, [6]), (271, 1, b"Maker\0"), (272, 1, b"Model\0"),
            (273, 4, [preview_at]), (274, 3, [orientation]), (277, 3, [3]), (278, 4, [height]),
            (279, 4, [len(preview)]), (330, 4, [second]), (50706, 1, [1, 4, 0, 0]),
            (50708, 1, b"Maker Model\0"), (50721, 10, identity),
        ]
        other = [
            (254, 4, [0]), (256, 4, [48]), (257, 4, [32]), (258, 3, [16]), (259, 3, [1]),
            (262, 3, [32803]), (273, 4, [raw_at]), (277, 3, [1]), (278, 4, [32]),
            (279, 4, [len(raw)]), (33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]),
        ]
        # fmt: on
        return _folder(first, 8), _folder(other, second)

    lengths = [len(folder) for folder in folders(0, 0, 0)]
    second = 8 + lengths[0]
    preview_at = second + lengths[1]
    raw_at = preview_at + len(preview) + len(preview) % 2
    padded = preview + b"\0" * (len(preview) % 2)
    return b"".join((b"II*\0\x08\0\0\0", *folders(second, preview_at, raw_at), padded, raw))


def _folder(entries, at):
    fields, beyond = b"", b""
    end = at + 6 + 12 * len(entries)
    for tag, kind, values in entries:
        data = struct.pack(f"<{len(values)}{_KINDS[kind]}", *values)
        count = len(values) // 2 if kind == 10 else len(values)
        if len(data) > 4:
            place = struct.pack("<I", end + len(beyond))
            beyond += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        fields += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(entries)) + fields + bytes(4) + beyond
