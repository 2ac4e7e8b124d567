"""The user's own fields: which a collection has, and which a filter names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cwf_milvus.errors import FilterError
from cwf_milvus.store.photo_rows import PhotoRows

TYPES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.DOTALL)
_NAME = re.compile(r"(?<![\w$.])[A-Za-z_]\w*(?!\w*\s*\()")
_WORDS = frozenset(["and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"])


def fields_of(collection: PhotoRows) -> dict[str, dict[str, int]]:
    """Return, for each of the user's fields, how many photos have it as a value of which type.

    Every row is looked at, without its vectors.

    Raises:
        StoreError: Milvus failed.
    """
    found: dict[str, Counter[str]] = {}
    for raw in collection.store.scan(collection.name, "uri", ["$meta"]):
        for name, value in collection.layout.metadata_of(raw).items():
            found.setdefault(name, Counter())[TYPES.get(type(value), "null")] += 1
    return {name: dict(types.most_common()) for name, types in sorted(found.items())}


def named_in(filter: str) -> set[str]:
    """Return the fields that a filter expression names."""
    names = _NAME.findall(_TEXT.sub(" ", filter))
    return {name for name in names if name.lower() not in _WORDS}


def check_filter(collection: PhotoRows, filter: str, found: Iterable[dict[str, Any]]) -> None:
    """Raise `FilterError` where a filter names a field that no photo has; says which there are.

    Milvus takes such a field for one that every photo lacks, and finds nothing.

    Args:
        collection: that was searched.
        filter: the expression.
        found: the user's fields of the hits, which need not be looked for.
    """
    unknown = named_in(filter) - set(collection.layout.fields) - collection.seen_fields
    for fields in found if unknown else ():
        unknown -= fields.keys()
    if not unknown or not collection.count():
        return
    there = fields_of(collection)
    collection.seen_fields.update(there)
    missing = sorted(unknown - there.keys())
    if missing:
        own = ", ".join(f"{name} ({' or '.join(types)})" for name, types in there.items())
        raise FilterError(
            f"the filter {filter!r} names {missing[0]!r}, a field that no photo has. Your fields: "
            f"{own or 'none'}; the collection's own: uri, content, width, height, class_ids, "
            "class_scores"
        )
