"""What a benchmark says: its images, its queries, and what is right for each of them."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cwf_milvus.errors import BoxError, ImageError, SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.sources import PHOTO_SUFFIXES

DISTRACTOR = "distractor:"
"""Prefix of the names of distractors, which come from a folder of their own."""

SETUPS = ("easy", "medium", "hard")
_SHOWN = 5
_GLANCE = 64  # pixels: a photo is read for its size alone


@dataclass(frozen=True)
class QueryTruth:
    """One query and its right answers.

    Attributes:
        image: name of the query photo; it need not be among `Dataset.images`.
        box: the thing in it, in pixels of the upright original; None for the whole photo.
        positives: names of what should be found.
        junk: names taken out of a ranking before it is scored, as if they were not there.
        group: building or thing that the query shows, or None.
        hard: those of the positives that ROxford and RParis call hard; the others are easy.
    """

    image: str
    box: Box | None
    positives: frozenset[str]
    junk: frozenset[str] = frozenset()
    group: str | None = None
    hard: frozenset[str] = frozenset()

    def at(self, setup: str) -> "QueryTruth":
        """The same query as ROxford and RParis judge it (Radenović et al., CVPR 2018).

        "easy": easy images are positive, hard ones junk; "medium": both are positive; "hard":
        hard ones are positive, easy ones junk.
        """
        if setup == "medium":
            return self
        easy = self.positives - self.hard
        if setup == "easy":
            return replace(self, positives=easy, junk=self.junk | self.hard, hard=frozenset())
        if setup == "hard":
            return replace(self, positives=self.hard, junk=self.junk | easy)
        raise SettingsError(f"there is no setup {setup!r}; choose one of {', '.join(SETUPS)}")


@dataclass(frozen=True)
class Dataset:
    """A benchmark on the user's own disk: what is searched, what is asked, what is right.

    Attributes:
        name: "oxford5k", or the name of the ground-truth file's folder.
        images: names of the images to search that are there, distractors last.
        queries: those whose photo is there.
        files: name to file, of every image and query photo that is there.
        missing: names that the ground truth gives and the folder lacks. Missing positives stay
            positive: they count as not found.
        surplus: photos in the folder that the benchmark does not know; they are not searched.
        skipped: name to the reason why it is left out on purpose.
        expected: what the published benchmark has of "images" and "queries", where known.
        setups: ("easy", "medium", "hard") for ROxford and RParis; else empty.
        scores_ns: whether the N-S score is defined (UKBench).
    """

    name: str
    images: tuple[str, ...]
    queries: tuple[QueryTruth, ...]
    files: Mapping[str, Path]
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    setups: tuple[str, ...] = ()
    scores_ns: bool = False

    def path(self, name: str) -> Path:
        """File of an image or query photo by its name; SettingsError when it is not there."""
        if name not in self.files:
            raise SettingsError(f"{self.name} has no file for {name!r}; see Dataset.missing")
        return self.files[name]

    def check(self) -> list[str]:
        """What to know before hours are spent, a line each; empty when all is as published."""
        lines = []
        searched = set(self.images)
        n_distractors = sum(name.startswith(DISTRACTOR) for name in self.images)
        counts = {"images": len(self.images) - n_distractors, "queries": len(self.queries)}
        for what, expected in self.expected.items():
            if counts[what] != expected:
                lines.append(f"{counts[what]} {what}, where {self.name} has {expected}")
        if self.missing:
            lines.append(
                f"{len(self.missing)} missing, named by the ground truth: {_first(self.missing)}"
            )
        if self.surplus:
            lines.append(
                f"{len(self.surplus)} surplus, not searched (give distractors in a folder of their "
                f"own): {_first(self.surplus)}"
            )
        unjudged = [
            query.image
            for query in self.queries
            if query.image in searched and query.image not in query.positives | query.junk
        ]
        if unjudged:
            lines.append(
                f"{len(unjudged)} query photos are among the images, and neither junk nor positive "
                f"for themselves, so that finding them counts as wrong: {_first(unjudged)}"
            )
        lines += self.boxes_outside()
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [
            f"{len(names)} skipped, {reason}: {_first(names)}"
            for reason, names in by_reason.items()
        ]
        return lines

    def boxes_outside(self) -> list[str]:
        """Say of each query whose box does not lie in its photo what is wrong with it."""
        lines = []
        for query in self.queries:
            if query.box is not None:
                try:
                    photo = load_image(self.path(query.image), at_least=_GLANCE)
                    query.box.checked(photo.width, photo.height)
                except ImageError:
                    continue  # encoding it says why
                except BoxError as error:
                    lines.append(f"the query {query.image!r}: {error}")
        return lines

    def __str__(self) -> str:
        n_distractors = sum(name.startswith(DISTRACTOR) for name in self.images)
        text = f"{self.name}: {len(self.images)} images, {len(self.queries)} queries"
        return f"{text}, {n_distractors} of the images distractors" if n_distractors else text


def assemble(
    name: str,
    *,
    files: Mapping[str, Path],
    images: Iterable[str],
    queries: Iterable[QueryTruth],
    surplus: Iterable[str] = (),
    skipped: Mapping[str, str] = MappingProxyType({}),
    expected: Mapping[str, int] = MappingProxyType({}),
    distractors: str | Path | None = None,
    setups: tuple[str, ...] = (),
    scores_ns: bool = False,
) -> Dataset:
    """Hold what the ground truth names against the files that are there, and add distractors.

    Raises:
        SettingsError: none of the images, or none of the queries, is there.
    """
    named, asked = list(images), list(queries)
    present = [image for image in named if image in files]
    answerable = [query for query in asked if query.image in files]
    wanted = set(named)
    for query in asked:
        wanted |= {query.image} | query.positives | query.junk
    missing = sorted(wanted - files.keys())
    for what, all_of_them, there in (("image", named, present), ("query", asked, answerable)):
        if not there:
            raise SettingsError(
                f"{name}: of its {len(all_of_them)} named files not one {what} is there"
                + (f" (first missing: {_first(missing)})" if missing else "")
                + "; is this the right root folder?"
            )
    reason = "as queries, since their photos are missing"
    skipped = {**skipped, **{q.image: reason for q in asked if q.image not in files}}
    kept = {image: files[image] for image in wanted if image in files}
    if distractors is not None:
        more = photos_among(walk(distractors))
        if not more:
            raise SettingsError(f"no photo among the distractors in {str(distractors)!r}")
        extra = {DISTRACTOR + relative: path for relative, path in more.items()}
        present += extra
        kept |= extra
    return Dataset(
        name=name,
        images=tuple(present),
        queries=tuple(answerable),
        files=kept,
        missing=tuple(missing),
        surplus=tuple(surplus),
        skipped=skipped,
        expected=dict(expected),
        setups=setups,
        scores_ns=scores_ns,
    )


def walk(root: str | Path, leave_out: str | Path | None = None) -> dict[str, Path]:
    """Every file below a folder, by its path relative to it (with "/"), sorted.

    Links to folders are followed, each folder once, so that a loop of links ends.

    Args:
        root: the folder.
        leave_out: a folder that is not entered (the distractors, when they lie inside).

    Raises:
        SettingsError: root is no folder, or a folder in it cannot be read.
    """
    top = Path(root)
    if not top.is_dir():
        raise SettingsError(f"{str(root)!r} is no folder; give the dataset's root folder")
    entered = set() if leave_out is None else {os.path.realpath(leave_out)}
    files = {}
    for folder, subfolders, names in os.walk(top, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders.sort()
        here = Path(folder)
        for name in names:
            if is_file(here / name):
                files[(here / name).relative_to(top).as_posix()] = here / name
    return dict(sorted(files.items()))


def is_file(path: Path) -> bool:
    """Whether there is a file, or a link to one, that can be reached."""
    try:
        return path.is_file()
    except OSError:  # no access, or a name longer than the file system allows
        return False


def photos_among(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the files whose names are a photo's: by their ending, and not hidden."""
    return {name: path for name, path in files.items() if is_photo(path.name)}


def is_photo(file_name: str) -> bool:
    """Whether a file name ends like a photo's and is not hidden, as when a folder is indexed."""
    return file_name.lower().endswith(PHOTO_SUFFIXES) and not file_name.startswith(".")


def by_stem(
    photos: Mapping[str, Path], belongs: Callable[[str], Any]
) -> tuple[dict[str, str], list[str]]:
    """Index photos by file name without suffix, wherever they lie.

    Returns:
        stem to name, for those stems that belong to the benchmark; and the names of the others,
        among them second copies of the same stem.
    """
    names: dict[str, str] = {}
    surplus = []
    for name, path in photos.items():
        if belongs(path.stem) and path.stem not in names:
            names[path.stem] = name
        else:
            surplus.append(name)
    return names, surplus


def checked_box(values: Sequence[Any], where: str) -> Box:
    """A Box from four numbers x1, y1, x2, y2 of a ground-truth file; `where` begins the error."""
    try:
        if len(values) != 4 or any(isinstance(value, bool | str) for value in values):
            raise ValueError
        x1, y1, x2, y2 = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{where}: a box is four numbers, x1, y1, x2, y2") from None
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)) or x1 >= x2 or y1 >= y2:
        raise SettingsError(
            f"{where}: the box {(x1, y1, x2, y2)} is empty; x1 < x2 and y1 < y2 are needed"
        )
    return Box(x1, y1, x2, y2)


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")


def _unreadable(error: OSError) -> None:
    raise SettingsError(f"cannot read the folder {error.filename!r}: {error.strerror}") from error
