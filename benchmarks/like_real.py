"""Made-up descriptors whose neighbours are as near as those of real photos, as many as wanted.

Vectors drawn at random on the sphere are all equally far from each other: the worst case of every
index, and like no collection. Here a thing is a mixture of three real descriptors with noise, and
its photos are the thing with more noise; how many photos a thing has, and both noises, are chosen
so that among as many made-up vectors as there are real ones, the 1st, 5th, 20th and 100th
neighbours have about the cosines that they have among the real ones (`neighbours`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.photos.listing import list_photos

RANKS = (1, 5, 20, 100)
_AT_ONCE = 10_000
_PHOTOS = 8  # of a thing, in the mean
_MIXED = 3  # real descriptors in a thing
_NOISE = 1.0  # of a thing, over the length of what it is added to
_APART = (1.0, 4.5)  # the photos of a thing likewise, of the closest things and of the loosest


def real_descriptors(folders: Sequence[str], kept: Path, most: int | None = None) -> np.ndarray:
    """Return the default encoder's descriptors of photos, of shape (n, d), from `kept` if there."""
    if not kept.exists():
        encoder, found = Encoder(keypoints=0), []
        photos = list_photos(list(folders))[:most]
        for start in range(0, len(photos), 32):
            images = [encoder.read(photo) for photo in photos[start : start + 32]]
            found += [one.descriptor for one in encoder.encode(images)]
            print(f"\r{len(found)} of {len(photos)} photos encoded", end="", flush=True)
        print()
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.stack(found))
    return np.asarray(np.load(kept), np.float32)


class LikeReal:
    """n made-up unit vectors of shape (n, d), the photos of one thing side by side.

    Args:
        real: descriptors of real photos, of shape (m, d).
        n: how many.
    """

    def __init__(self, real: np.ndarray, n: int) -> None:
        self.real, self.n = real, n
        _, lengths, axes = np.linalg.svd(real - real.mean(axis=0), full_matrices=False)
        self._spread = ((lengths / np.sqrt(len(real)))[:, None] * axes).astype(np.float32)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield them, at most 10,000 at once."""
        for start in range(0, self.n, _AT_ONCE):
            things, apart, rng = self._things(start)
            count = min(_AT_ONCE, self.n - start)
            yield _unit(things[:count] + apart[:count] * self._noise(count, rng))

    def queries(self, n: int) -> np.ndarray:
        """Return n further photos, of things that have photos among the first of them."""
        things, apart, _ = self._things(0)
        rng = np.random.default_rng(1)
        chosen = rng.choice(min(self.n, _AT_ONCE), n, replace=False)
        return _unit(things[chosen] + apart[chosen] * self._noise(n, rng))

    def _things(self, start: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """Return the thing of each photo, how far its photos are from it, and what draws on."""
        rng = np.random.default_rng(start)
        sizes = rng.geometric(1 / _PHOTOS, _AT_ONCE)
        n_things = int(np.searchsorted(np.cumsum(sizes), _AT_ONCE)) + 1
        weights = rng.dirichlet(np.ones(_MIXED), n_things).astype(np.float32)
        of = rng.integers(0, len(self.real), weights.shape)
        mixed = _unit(np.einsum("nk,nkd->nd", weights, self.real[of]))
        things = _unit(mixed + _NOISE * self._noise(n_things, rng))
        apart = rng.uniform(*_APART, (n_things, 1)).astype(np.float32)
        of_photo = np.repeat(np.arange(n_things), sizes[:n_things])[:_AT_ONCE]
        return things[of_photo], apart[of_photo], rng

    def _noise(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n unit vectors that differ as real descriptors differ from their mean."""
        drawn = rng.standard_normal((n, len(self._spread)), dtype=np.float32)
        return _unit(drawn @ self._spread)


def neighbours(vectors: np.ndarray, most: int = 1597) -> dict[int, list[float]]:
    """Return the cosine to the 1st, 5th, 20th and 100th neighbour: 25, 50 and 75 % of vectors."""
    cosines = -np.sort(-(vectors[:most] @ vectors[:most].T), axis=1)
    return {rank: np.quantile(cosines[:, rank], (0.25, 0.5, 0.75)).tolist() for rank in RANKS}


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / lengths).astype(np.float32)
