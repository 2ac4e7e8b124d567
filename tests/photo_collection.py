"""Real photos of two things in several views, with others, in a small Milvus Lite collection."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.demo import write_photos
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.photos.box import Box

CAT = Box(90, 5, 355, 275)  # in chelsea.png
_WANTED = ("chelsea", "coffee", "rocket", "china", "flower", "gravel", "camera", "moon")


@cache
def encoder() -> Encoder:
    return Encoder()


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="photos-")


@cache
def photos() -> tuple[Path, ...]:
    folder = Path(_folder().name)
    write_photos(folder)
    return tuple(sorted(p for p in folder.iterdir() if p.stem.startswith(_WANTED)))


@cache
def encodings() -> tuple[Encoding, ...]:
    return tuple(encoder().encode([str(photo) for photo in photos()]))


def photo(name: str) -> str:
    return next(str(path) for path in photos() if path.name == name)


def is_cat(uri: str) -> bool:
    return "chelsea" in Path(uri).name


@contextmanager
def collection(place: str | Path, n: int | None = None) -> Iterator[InstanceCollection]:
    """A collection of the first n photos, each with its place among them as metadata."""
    with InstanceCollection.create(place, "photos", encoder()) as made:
        stored = list(encodings()[:n])
        if stored:
            made.upsert(stored, [{"place": place} for place in range(len(stored))])
        yield made
