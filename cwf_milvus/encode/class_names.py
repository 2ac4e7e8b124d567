"""The names of an encoder's classes, kept in the cache folder for searches without its network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress

from cwf_milvus.files import cache_folder, read_whole, write_whole

_FINGERPRINT = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 2**22


def kept_class_names(fingerprint: str) -> tuple[str, ...] | None:
    """Return the names of an encoder's classes; None where they are not kept, or damaged."""
    folder = cache_folder("class-names")
    if folder is None or not _FINGERPRINT.fullmatch(fingerprint):
        return None
    try:
        told = json.loads(read_whole(folder / f"{fingerprint}.json", _MOST_BYTES))
        names, digest = told["names"], told["sha256"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    if digest != _digest(names):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def keep_class_names(fingerprint: str, names: Sequence[str]) -> None:
    """Keep the names of an encoder's classes, unless they are; where it cannot be, nothing is."""
    folder = cache_folder("class-names")
    known = kept_class_names(fingerprint)
    if folder is not None and known != tuple(names):
        with suppress(OSError):
            told = {"names": list(names), "sha256": _digest(list(names))}
            write_whole(folder / f"{fingerprint}.json", json.dumps(told).encode())


def _digest(names: object) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
