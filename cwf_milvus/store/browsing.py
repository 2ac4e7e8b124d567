"""Photos a page at a time, and how many of them share a value: for who looks around."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cwf_milvus.errors import FilterError, SettingsError, StoreError
from cwf_milvus.store.answers import is_unreachable, words_of
from cwf_milvus.store.client import check_limit
from cwf_milvus.store.fields import TYPES
from cwf_milvus.store.filters import quoted
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import Row, as_row

_SHOWN = ("content", "width", "height", "class_ids", "class_scores", "$meta")
_EXAMPLES, _LONGEST = 12, 80  # of a field, and characters of each
_NAME = re.compile(r"[A-Za-z_]\w{0,254}")
_DATES = ("exif_date", "date")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)


@dataclass(frozen=True)
class Group:
    """Photos that share a value.

    Attributes:
        value: of the field, the day as ``2024-05-31``, or the folder.
        count: how many photos.
        filter: what finds them, in Milvus' filter language.
    """

    value: str | int | float | bool
    count: int
    filter: str


@dataclass(frozen=True)
class Field:
    """One of the user's fields.

    Attributes:
        name: of the field.
        type: what its values are in most photos.
        count: photos that have it.
        examples: some of its values, each once.
    """

    name: str
    type: str
    count: int
    examples: tuple[Any, ...]


def photos_after(
    collection: PhotoRows, after: str = "", *, limit: int = 100, filter: str | None = None
) -> list[Row]:
    """Return the photos that come after one, in the order of their uris, without vectors.

    Args:
        collection: the photos.
        after: uri of the last photo of the page before; "" for the first page.
        limit: how many at most.
        filter: a Milvus filter expression; None for all photos.

    Raises:
        FilterError: Milvus refused the filter.
        SettingsError: a limit out of range.
        StoreError: Milvus failed.
    """
    check_limit(limit)
    asked = (filter or "").strip()
    check_closed(asked)
    parts = [f"({asked})"] if asked else []
    if after:
        parts.append(f"uri > {quoted(after)}")
    try:
        rows = collection.store.call(
            "query",
            collection.name,
            filter=" and ".join(parts),
            output_fields=["uri", *_SHOWN],
            limit=limit,
            iterator="True",  # asks for the order of the keys
            consistency_level="Session",
        )
    except StoreError as error:
        words = words_of(error.__cause__ or error)
        if not asked or is_unreachable(words):
            raise
        raise FilterError(f"Milvus refused the filter {asked!r}: {words}") from error
    return [as_row(collection.layout, row) for row in rows]


def check_closed(filter: str) -> None:
    """Raise `FilterError` for a filter whose brackets or quotes reach beyond it."""
    depth = 0
    rest = _TEXT.sub("", filter)
    for letter in rest:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            break
    if depth or '"' in rest or "'" in rest:
        raise FilterError(f"the filter {filter!r} has a bracket or a quote without its other half")


def groups(collection: PhotoRows, by: str) -> list[Group]:
    """Count the photos by folder, by day, or by one of the user's fields.

    Every row is looked at, without its vectors; what is held is a number for each value.

    Args:
        collection: the photos.
        by: "folder", where a folder's photos are also those of the folders in it; "date", the
            day in ``exif_date`` or else in a field ``date`` that begins as 2024-05-31; or a field.

    Returns:
        Folders and days in their order, values of other fields the most frequent first.

    Raises:
        SettingsError: not the name of a field.
        StoreError: Milvus failed.
    """
    if not _NAME.fullmatch(by):
        raise SettingsError(f"by={by!r}: give folder, date, or the name of a field")
    counts: Counter[tuple[str, Any]] = Counter()
    fields = [] if by == "folder" else ["$meta"]
    for raw in collection.store.scan(collection.name, "uri", fields):
        told = {} if by == "folder" else collection.layout.metadata_of(raw)
        counts.update(_values(by, raw["uri"], told))
    if by == "folder":
        most = max(counts.values(), default=0)
        above = [key for key in counts if counts[key] == most]  # folders with nothing beside them
        counts = counts - Counter(dict.fromkeys(sorted(above)[:-1], most))
    if by in ("folder", "date"):
        return [_group(by, key, counts[key]) for key in sorted(counts)]
    return [_group(by, key, n) for key, n in counts.most_common()]


def described_fields(collection: PhotoRows) -> list[Field]:
    """Return the user's fields, by name, with some of their values.

    Every row is looked at, without its vectors.

    Raises:
        StoreError: Milvus failed.
    """
    types: dict[str, Counter[str]] = {}
    examples: dict[str, dict[str, Any]] = {}
    for raw in collection.store.scan(collection.name, "uri", ["$meta"]):
        for name, value in collection.layout.metadata_of(raw).items():
            types.setdefault(name, Counter())[TYPES.get(type(value), "null")] += 1
            seen = examples.setdefault(name, {})
            if len(seen) < _EXAMPLES and len(repr(value)) <= _LONGEST:
                seen.setdefault(repr(value), value)
    return [
        Field(name, kinds.most_common(1)[0][0], kinds.total(), tuple(examples[name].values()))
        for name, kinds in sorted(types.items())
    ]


def same_bytes(collection: PhotoRows) -> list[list[str]]:
    """Return groups of photos with the same bytes, the largest group first.

    Raises:
        StoreError: Milvus failed.
    """
    first: dict[bytes, str] = {}
    several: dict[bytes, list[str]] = {}
    for raw in collection.store.scan(collection.name, "uri", ["content"]):
        content = bytes.fromhex(raw["content"])
        if (one := first.setdefault(content, raw["uri"])) != raw["uri"]:
            several.setdefault(content, [one]).append(raw["uri"])
    return sorted(several.values(), key=lambda group: (-len(group), group))


def _values(by: str, uri: str, told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (field, value) of a photo: one, but each folder that it is in."""
    if by == "folder":
        start = uri.find("://") + 3 if "://" in uri else 0
        end = uri.find("/", start + 1)
        while end > 0:
            yield by, uri[:end]
            end = uri.find("/", end + 1)
    elif by == "date":
        for field in _DATES:
            day = str(told.get(field, ""))[:10]
            if _DAY.fullmatch(day):
                yield field, day
                return
    elif isinstance(told.get(by), str | int | float):
        # 1, 1.0 and True are one key of a dict.
        yield f"{by}\n{type(told[by]).__name__}", told[by]


def _group(by: str, key: tuple[str, Any], count: int) -> Group:
    field, value = key[0].partition("\n")[0], key[1]
    if by == "folder":
        # From the first name in it to the last: "0" is the letter after "/".
        return Group(value, count, f"uri > {quoted(value + '/')} and uri < {quoted(value + '0')}")
    if by == "date":
        after = value[:-1] + chr(ord(value[-1]) + 1)
        return Group(value, count, f"{field} >= {quoted(value)} and {field} < {quoted(after)}")
    shown = quoted(value) if isinstance(value, str) else str(value).lower()
    return Group(value, count, f"{field} == {shown}")
