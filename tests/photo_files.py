"""A real photo, as files of every kind, and what is said of one that is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from skimage import data as photos

from cwf_milvus.errors import ImageError
from cwf_milvus.photos.images import load_image

CHELSEA = photos.chelsea()  # (300, 451, 3), a cat


def encoded(image: np.ndarray | PIL.Image.Image = CHELSEA, kind: str = "PNG", **save: object):
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **{"lossless": True, **save} if kind == "WEBP" else save)
    return stream.getvalue()


def saved(path: Path, image: np.ndarray = CHELSEA, kind: str = "PNG") -> Path:
    path.write_bytes(encoded(image, kind))
    return path


def refusal(source: object, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    return str(caught.value)
