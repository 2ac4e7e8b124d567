"""The main job on real photos that two packages carry: index, search, say what is not there."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PilImage
from PIL import ImageEnhance, ImageOps

from cwf_milvus.answers.answer import Hits
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.files import write_whole
from cwf_milvus.index.indexing import Report
from cwf_milvus.photos.box import Box

_SCIKIT_IMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
ABSENT = "logo.png"
"""A photo of a thing that none of the others shows, also inside scikit-image."""


@dataclass(frozen=True)
class Thing:
    """A thing in one of the photos, and the photos that its views are pasted into.

    Attributes:
        photo: file name of the photo that shows it.
        box: where it is, in pixels.
        scenes: file names of photos of other things.
    """

    photo: str
    box: Box
    scenes: tuple[str, str]


THINGS = (
    Thing("chelsea.png", Box(90, 5, 355, 275), ("china.jpg", "gravel.png")),
    Thing("coffee.png", Box(80, 14, 478, 390), ("grass.png", "rocket.jpg")),
    Thing("astronaut.png", Box(110, 0, 320, 330), ("brick.png", "flower.jpg")),
    Thing("motorcycle_left.png", Box(118, 66, 690, 452), ("grass.png", "china.jpg")),
)


@dataclass(frozen=True)
class Outcome:
    """What the demonstration did.

    Attributes:
        report: of the indexing.
        answers: one for each of `THINGS`.
        absent: the answer for `ABSENT`.
        page: the HTML page that shows them.
        folder: where photos, collection and page are.
    """

    report: Report
    answers: list[Hits]
    absent: Hits
    page: Path
    folder: Path


def run_demo(
    folder: str | Path,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
    limit: int = 8,
) -> Outcome:
    """Index real photos and views of them, search four things by a box, write a page.

    The photos are those inside scikit-image and scikit-learn. The views are made here: a crop, a
    turned and a darker one, and the thing pasted small into photos of something else. Before the
    search their graph is built; after it a thing is asked for that is not there, and photos of one
    scene are grouped.

    Args:
        folder: where to write; a collection of an earlier demonstration there is used again.
        say: told each step in a line.
        progress: show a progress bar.
        limit: hits for each thing.

    Raises:
        SettingsError: scikit-image is not installed, or the folder cannot be written.
    """
    root = Path(folder)
    photos = root / "photos"
    try:
        written = write_photos(photos)
    except OSError as error:
        raise SettingsError(
            f"cannot write the demonstration to {str(folder)!r} ({error.strerror}): name a folder "
            "that can be written with --folder"
        ) from error
    say(f"{len(written)} real photos and views of them in {photos}")
    with InstanceCollection.create(
        str(root / "photos.db"), "demo", Encoder("efficientnet_lite0"), exist_ok=True
    ) as collection:
        report = collection.add(written, progress=progress)
        say(str(report))
        say(str(collection.build_graph(progress=progress)))
        queries = [str(photos / thing.photo) for thing in THINGS]
        answers = collection.search(queries, box=[thing.box for thing in THINGS], limit=limit)
        for thing, hits in zip(THINGS, answers, strict=True):
            say(f"\nquery {thing.photo}, box {','.join(f'{side:g}' for side in thing.box)}")
            say(str(hits))
        absent = collection.search(str(_place("skimage.data") / ABSENT), limit=3)
        say(f"\nquery {ABSENT}, which none of the photos shows\n{absent}")
        say("\nphotos of one scene:")
        for group in collection.duplicates():
            names = (group.representative, *group.copies, *group.others)
            say(f"  {', '.join(Path(name).name for name in names)}")
    from cwf_milvus.answers.page import save_page

    shown = [(hits.query, hits, hits.found) for hits in (*answers, absent)]
    page = save_page(shown, root / "hits.html")
    say(f"\nthe same with pictures: {page.resolve()}")
    return Outcome(report, answers, absent, page, root)


def write_photos(folder: Path) -> list[Path]:
    """Write the photos and their views to `folder`; returns them.

    A file that is there already is left as it is, and one is there only when it is whole.

    Raises:
        SettingsError: scikit-image is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = dict(_sources())
    files = [folder / name for name in sources]
    for file in files:
        if not file.exists():
            write_whole(file, sources[file.name].read_bytes())
    for thing in THINGS:
        for name, view in _views(thing, sources):
            files.append(folder / name)
            if not files[-1].exists():
                stream = io.BytesIO()
                view.save(stream, "JPEG", quality=92)
                write_whole(files[-1], stream.getvalue())
    return files


def _sources() -> Iterator[tuple[str, Path]]:
    for package, names in (
        ("skimage.data", _SCIKIT_IMAGE),
        ("sklearn.datasets.images", _SCIKIT_LEARN),
    ):
        for name in names:
            yield name, _place(package) / name


def _place(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise SettingsError(
            f"the demonstration uses the photos inside {package.partition('.')[0]}, which is "
            "not installed: pip install 'cwf-milvus[demo]'"
        )
    return Path(spec.origin).parent


def _views(thing: Thing, sources: dict[str, Path]) -> Iterator[tuple[str, PilImage.Image]]:
    stem = Path(thing.photo).stem
    with PilImage.open(sources[thing.photo]) as opened:
        photo = opened.convert("RGB")
    part = photo.crop(thing.box.cells())
    yield f"{stem}-crop.jpg", part
    yield f"{stem}-turned.jpg", photo.rotate(25, PilImage.Resampling.BICUBIC, expand=True)
    yield (
        f"{stem}-mirrored-darker.jpg",
        ImageEnhance.Brightness(ImageOps.mirror(photo)).enhance(0.5),
    )
    for scene, angle, share, corner in zip(
        thing.scenes, (0, -15), (0.5, 0.4), ((0.45, 0.45), (0.08, 0.1)), strict=True
    ):
        with PilImage.open(sources[scene]) as opened:
            background = opened.convert("RGB")
        width, height = background.size
        scale = share * min(width / part.width, height / part.height)
        small = part.resize((round(part.width * scale), round(part.height * scale)))
        mask = PilImage.new("L", small.size, 255).rotate(angle, expand=True)
        background.paste(
            small.rotate(angle, PilImage.Resampling.BICUBIC, expand=True),
            (round(corner[0] * width), round(corner[1] * height)),
            mask,
        )
        yield f"{stem}-in-{Path(scene).stem}.jpg", background
