"""Keypoints of a photo as few bytes: a fixed cosine basis, two bits a number, places in 16 bits.

A SIFT descriptor is a grid of 4 x 4 cells with 8 directions each. Neighbouring cells are alike, so
its cosine transform has nearly all of its length in the low frequencies, as a photo's has in JPEG;
the basis is fixed, and no file of principal axes has to be fitted and shipped (these hold 2 % more
of the length, which changes no figure of docs/keypoints.md).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from cwf_milvus.errors import CollectionError

SIFT_DIM: Final = 128

DIM: Final = 64
"""How many numbers of a descriptor are kept."""

MAX_KEYPOINTS: Final = 4096
"""The most that a code may hold."""


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Points of a photo that are found again in other photos of the same thing, strongest first.

    Attributes:
        positions: (n, 2) float32, x and y in pixels of the upright original.
        scales: (n,) float32, the diameter of the point's patch in the same pixels.
        angles: (n,) float32, the direction of the patch in radians, from x towards y.
        descriptors: (n, DIM) float32, as `compact_descriptors` gives them.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
    """

    positions: np.ndarray
    scales: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return int(
            self.positions.nbytes
            + self.scales.nbytes
            + self.angles.nbytes
            + self.descriptors.nbytes
        )

    def __getitem__(self, chosen: slice | np.ndarray) -> Keypoints:
        """Return those chosen by a slice, a mask or their numbers."""
        return Keypoints(
            self.positions[chosen],
            self.scales[chosen],
            self.angles[chosen],
            self.descriptors[chosen],
            self.width,
            self.height,
        )


def compact_descriptors(sift: np.ndarray) -> np.ndarray:
    """Return RootSIFT in the first numbers of its cosine basis, float32 of shape (n, DIM).

    RootSIFT is the root of the l1-normalised descriptor (Arandjelović & Zisserman, CVPR 2012). The
    distance of two results is at most that of the whole descriptors.

    Args:
        sift: (n, 128), not negative: 4 x 4 cells, row by row, with 8 directions each.
    """
    sums = sift.sum(axis=1, keepdims=True, dtype=np.float32)
    roots = np.sqrt(sift / np.where(sums > 0, sums, 1))
    roots = roots.astype(np.float32)
    compact = np.empty((len(roots), DIM), np.float32)
    for start in range(0, len(roots), _ROWS):
        np.matmul(roots[start : start + _ROWS], _BASIS, out=compact[start : start + _ROWS])
    return compact


def pack_keypoints(keypoints: Keypoints) -> bytes:
    """Return keypoints as `PACKED_HEADER` + 22 bytes each.

    After the header stand the mean and the deviation of each of the DIM numbers over this photo,
    then all places, scales, angles and descriptors. A descriptor's number is one of the four levels
    that lose least of a normal distribution (Max, 1960), in two bits.

    Raises:
        CollectionError: more than MAX_KEYPOINTS, or numbers that are not finite.
    """
    n = len(keypoints)
    if n > MAX_KEYPOINTS:
        raise CollectionError(f"{n} keypoints in one code: it holds {MAX_KEYPOINTS}; keep fewer")
    parts = (keypoints.positions, keypoints.scales, keypoints.angles, keypoints.descriptors)
    if not all(np.isfinite(part).all() for part in parts):
        raise CollectionError("keypoints that are not finite: extract them anew")
    longest = max(keypoints.width, keypoints.height)
    places = np.clip(np.rint(keypoints.positions * (_PLACES / longest)), 0, _PLACES)
    shares = np.maximum(keypoints.scales / longest, 2.0**-_OCTAVES)
    scales = np.clip(np.rint((np.log2(shares) / _OCTAVES + 1) * _BYTE), 0, _BYTE)
    angles = np.rint(keypoints.angles * (_TURN / math.tau)) % _TURN
    numbers = keypoints.descriptors
    spread = np.zeros((2, DIM), "<f2")
    if n:
        spread[:] = numbers.mean(axis=0), numbers.std(axis=0)
    mean, deviation = spread.astype(np.float32)
    steps = (numbers - mean) / np.where(deviation > 0, deviation, 1)
    levels = np.searchsorted(_BOUNDS, steps.ravel()).astype(np.uint8).reshape(n, DIM // 4, 4)
    packed = (levels << _SHIFTS).sum(axis=2, dtype=np.uint8)
    return b"".join(
        (
            _HEADER.pack(_VERSION, n, keypoints.width, keypoints.height),
            spread.tobytes(),
            places.astype("<u2").tobytes(),
            scales.astype(np.uint8).tobytes(),
            angles.astype(np.uint8).tobytes(),
            packed.tobytes(),
        )
    )


def unpack_keypoints(data: bytes) -> Keypoints:
    """Return the keypoints in `pack_keypoints`' bytes.

    Raises:
        CollectionError: bytes that are damaged, cut off, or of another version.
    """
    if len(data) < PACKED_HEADER:
        raise _damaged(f"{len(data)} bytes are less than a header")
    version, n, width, height = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise CollectionError(
            f"stored keypoints are of version {version}, and this program reads {_VERSION}: "
            "install a newer cwf-milvus, or add the photo again"
        )
    if n > MAX_KEYPOINTS or len(data) != PACKED_HEADER + n * PACKED_KEYPOINT:
        raise _damaged(f"{len(data)} bytes for {n} keypoints")
    if not (width and height):
        raise _damaged(f"a photo of {width} x {height} pixels")
    raw = np.frombuffer(data, np.uint8)
    spread = raw[_HEADER.size : PACKED_HEADER].view("<f2").astype(np.float32).reshape(2, DIM)
    if not np.isfinite(spread).all():
        raise _damaged("not finite")
    ends = PACKED_HEADER + n * np.cumsum([4, 1, 1])
    places, scales, angles, packed = np.split(raw[PACKED_HEADER:], ends - PACKED_HEADER)
    longest = max(width, height)
    mean, deviation = spread
    return Keypoints(
        positions=places.view("<u2").reshape(n, 2) * np.float32(longest / _PLACES),
        scales=np.exp2((scales / np.float32(_BYTE) - 1) * _OCTAVES) * np.float32(longest),
        angles=angles * np.float32(math.tau / _TURN),
        descriptors=_FOUR_LEVELS[packed].reshape(n, DIM) * deviation + mean,
        width=width,
        height=height,
    )


_VERSION = 1
_ROWS: Final = 2**18 // (SIFT_DIM * DIM)
"""Rows of a product that OpenBLAS does in the calling thread (m n k <= 2^18).

Of a larger one its other threads take a share, and then spin for some 30 ms, waiting for the next:
photo after photo that is a core taken from the network, 36 of 176 processor ms.
"""

_HEADER = struct.Struct("<BHII")  # version, keypoints, width, height

PACKED_HEADER: Final = _HEADER.size + 2 * 2 * DIM
"""Bytes before the keypoints: sizes, and two numbers of 16 bits for each of DIM."""

PACKED_KEYPOINT: Final = 2 * 2 + 1 + 1 + DIM // 4
"""Bytes of one keypoint."""

_PLACES = 0xFFFF
_BYTE = 0xFF
_TURN = 256
_OCTAVES = 12  # a patch is between 1/4096 of the longest side and all of it
_BOUNDS = np.array([-0.9816, 0, 0.9816], np.float32)
_LEVELS = np.array([-1.510, -0.4528, 0.4528, 1.510], np.float32)
_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)
_FOUR_LEVELS = _LEVELS[(np.arange(256)[:, None] >> _SHIFTS) & 3]  # of each byte, (256, 4)


def _cosine_basis() -> np.ndarray:
    """Return the first DIM vectors of the basis, of shape (128, DIM), orthonormal.

    Over the cells it is the cosine transform, over the directions, which close in a circle, the
    Fourier transform. Low frequencies first, and the mean over directions, which says little,
    later.
    """
    n = np.arange(4)  # scipy.fft would take half a second to import
    cells = np.cos(np.pi / 8 * np.outer(n, 2 * n + 1)) * np.sqrt(np.where(n, 1 / 2, 1 / 4))[:, None]
    turns = np.arange(8) * (math.tau / 8)
    waves = [np.full(8, math.sqrt(1 / 8))]
    for k in (1, 2, 3):
        waves += [np.cos(k * turns) / 2, np.sin(k * turns) / 2]
    waves.append(np.cos(4 * turns) * math.sqrt(1 / 8))
    basis = np.einsum("ay,bx,cd->abcyxd", cells, cells, waves).reshape(SIFT_DIM, SIFT_DIM)
    row, column, wave = np.indices((4, 4, 8)).reshape(3, -1)
    frequency = row**1.5 + column**1.5 + ((wave + 1) // 2) ** 1.5 + 2 * (wave == 0)
    return np.ascontiguousarray(basis[np.argsort(frequency, kind="stable")[:DIM]].T, np.float32)


_BASIS = _cosine_basis()


def _damaged(reason: str) -> CollectionError:
    return CollectionError(f"stored keypoints are damaged ({reason}): add the photo again")
