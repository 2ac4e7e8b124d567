"""Real photos as files and an encoder of a tiny network, for operators of every kind."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
from small_encoders import CHELSEA, COFFEE, ROCKET, crops, tiny

from cwf_milvus.encode.encoder import Encoder

EMBED = {
    "model_name": "timm:test_resnet",
    "weights": "random",
    "n_classes": 16,
    "image_size": 160,
    "class_image_size": 96,
}
"""Arguments of `cam_vgg_embed` for the network of `small_encoders.tiny`."""


def write_photos(folder: Path) -> Path:
    """Write three photos and a damaged one."""
    folder.mkdir()
    for name, pixels in (("cat", CHELSEA), ("cup", COFFEE), ("rocket", ROCKET)):
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "damaged.jpg").write_bytes((folder / "cat.png").read_bytes()[:2000])
    return folder


def fitted(**settings: object) -> Encoder:
    """Return the tiny encoder with a whitening fitted on crops of real photos."""
    return tiny(whitening=None, **settings).fit(crops(60))
