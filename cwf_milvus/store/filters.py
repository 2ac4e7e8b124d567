"""Text in Milvus' filter language, whatever is in it."""

from __future__ import annotations

from collections.abc import Sequence


def quoted(text: str) -> str:
    """Return text as a literal of Milvus' filter language, whatever is in it.

    pymilvus' own ``ids=`` puts keys between quotes as they are.
    """
    return '"' + text.translate(_ESCAPES) + '"'


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def one_of(field: str, values: Sequence[str]) -> str:
    """Return the filter that a field has one of these values."""
    return f"{field} in [{', '.join(map(quoted, values))}]"


def is_storable(text: str) -> bool:
    """Tell whether text is valid Unicode, which Milvus demands; file names need not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
