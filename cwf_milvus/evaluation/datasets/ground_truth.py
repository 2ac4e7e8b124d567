"""Ground truth of one's own, as JSON: see docs/ground-truth.md for every field."""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.truth import (
    Dataset,
    QueryTruth,
    assemble,
    checked_box,
    is_file,
    is_photo,
)

_FIELDS = {"images": True, "queries": True, "note": False}  # name to whether it is required
_QUERY_FIELDS = {
    "image": True,
    "positives": True,
    "junk": False,
    "bbox": False,
    "group": False,
}


def load_ground_truth(
    path: str | Path, root: str | Path | None = None, distractors: str | Path | None = None
) -> Dataset:
    """A dataset from a JSON file; the names in it are relative to root.

    Args:
        path: the file.
        root: the folder of the photos; the file's own folder by default.
        distractors: a folder of further photos to search among.

    Raises:
        SettingsError: the file is no such JSON (the message names the query by its index), a name
            leads out of root, or no photo is there.
    """
    source = Path(path)
    folder = source.parent if root is None else Path(root)
    try:
        text = source.read_text(encoding="utf-8-sig")
        truth = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except OSError as error:
        raise SettingsError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{str(path)!r} is no valid JSON: {error}") from error
    _check_fields(truth, _FIELDS, "the ground truth")
    if not isinstance(truth.get("note", ""), str):
        raise SettingsError("note must be text")
    images = _names(truth["images"], "images")
    if not isinstance(truth["queries"], list):
        raise SettingsError("queries must be a list")
    known = frozenset(images)
    queries = [_query(entry, known, f"query {i}") for i, entry in enumerate(truth["queries"])]
    asked = {query.image for query in queries}
    files = {name: folder / name for name in known | asked if is_file(folder / name)}
    return assemble(
        source.absolute().parent.name or source.stem,
        files=files,
        images=images,
        queries=queries,
        surplus=_surplus(folder, known, known | asked),
        distractors=distractors,
    )


def _query(entry: Any, images: frozenset[str], where: str) -> QueryTruth:
    _check_fields(entry, _QUERY_FIELDS, where)
    judged = {}
    for kind in ("positives", "junk"):
        judged[kind] = frozenset(_names(entry.get(kind, []), f"{where}: {kind}"))
    for name in sorted(judged["positives"] - images):
        raise SettingsError(f"{where}: positives has {name!r}, which is not among images")
    judged["junk"] &= images  # what is not searched cannot be found
    for name in sorted(judged["positives"] & judged["junk"]):
        raise SettingsError(f"{where}: {name!r} is among positives and junk; choose one")
    box, group = entry.get("bbox"), entry.get("group")
    if box is not None and not isinstance(box, list):
        raise SettingsError(f"{where}: bbox must be a list of four numbers, or null")
    if group is not None and not isinstance(group, str):
        raise SettingsError(f"{where}: group must be text, or null")
    return QueryTruth(
        image=_name(entry["image"], f"{where}: image"),
        box=None if box is None else checked_box(box, f"{where}: bbox"),
        group=group,
        **judged,
    )


def _check_fields(entry: Any, fields: Mapping[str, bool], where: str) -> None:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where} must be an object with the fields {', '.join(fields)}")
    for name in entry:
        if name not in fields:
            raise SettingsError(
                f"{where} has the unknown field {name[:80]!r}; known are {', '.join(fields)}"
            )
    for name, required in fields.items():
        if required and name not in entry:
            raise SettingsError(f"{where} lacks the field {name!r}")


def _names(values: Any, where: str) -> list[str]:
    if not isinstance(values, list):
        raise SettingsError(f"{where} must be a list of names")
    names = [_name(value, where) for value in values]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SettingsError(f"{where} has {name!r} twice")
        seen.add(name)
    return names


def _name(value: Any, where: str) -> str:
    """A relative path with "/", in its shortest spelling, that cannot lead out of the root."""
    if not isinstance(value, str):
        raise SettingsError(f"{where}: a name is text, and this is a {type(value).__name__}")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(value).drive:
        raise SettingsError(f"{where}: {value[:200]!r} leads out of the root; give relative paths")
    control = any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    if not path.parts or control or "\\" in value:
        raise SettingsError(f"{where}: {value[:200]!r} is no name of a file; give paths with '/'")
    return str(path)


def _surplus(folder: Path, images: frozenset[str], named: frozenset[str]) -> list[str]:
    """Photos beside the listed ones that the ground truth does not name."""
    surplus = []
    for parent in {PurePosixPath(name).parent for name in images}:
        if not (folder / parent).is_dir():
            continue
        for path in (folder / parent).iterdir():
            name = str(parent / path.name)
            if is_photo(name) and name not in named and is_file(path):
                surplus.append(name)
    return sorted(surplus)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return entry


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
