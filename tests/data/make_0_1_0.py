"""Make `collection-0.1.0.tar.xz`: a small collection as version 0.1.0 wrote it.

Run once, with that version in place of this one, in an empty folder:
    git worktree add /tmp/v010 9c1c97b
    PYTHONPATH=/tmp/v010 python tests/data/make_0_1_0.py
"""

import random
import tarfile

from PIL import Image, ImageDraw

from cwf_milvus import Encoder, InstanceCollection


def drawn(seed: int) -> Image.Image:
    """Return a photo of coloured shapes."""
    chance = random.Random(seed)
    image = Image.new("RGB", (160, 120), tuple(chance.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, size = chance.randrange(160), chance.randrange(120), chance.randrange(15, 60)
        colour = tuple(chance.randrange(256) for _ in range(3))
        chance.choice((draw.ellipse, draw.rectangle))((x, y, x + size, y + size), fill=colour)
    return image


def make() -> None:
    """Index six drawn photos in two runs, remove one, and pack what there is."""
    images = {f"/p/{i}.png": drawn(i) for i in range(6)}
    metadata = {
        uri: {"place": "Oslo" if i % 2 else "Rome", "year": 2010 + i}
        for i, uri in enumerate(images)
    }
    encoder = Encoder(
        image_size=96, class_image_size=96, whitening=None, n_classes=4, region_levels=(1, 2)
    )
    first = dict(list(images.items())[:4])
    with InstanceCollection.create("photos.db", "photos", encoder) as photos:
        photos.add(first, metadata=metadata, progress=False)
    with InstanceCollection.open("photos.db", "photos") as photos:
        photos.add(images, metadata=metadata, progress=False)
        photos.remove(["/p/5.png"])
        print(photos.count(), photos.verify())
    with tarfile.open("collection-0.1.0.tar.xz", "w:xz", preset=9) as packed:
        packed.add("photos.db")


if __name__ == "__main__":
    make()
