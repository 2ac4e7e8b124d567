"""Which stored photos a person means: one name or several, as `add` took them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from cwf_milvus.errors import ImageError, SettingsError, quoted
from cwf_milvus.photos.sources import uri_of
from cwf_milvus.store.client import Store

Names: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
"""One stored photo, or several: uris, or paths as `add` took them."""


def listed(names: Names) -> list[str | os.PathLike[str]]:
    """Return names as a list: one text or path is one name, never its letters.

    Raises:
        SettingsError: something that is no name, such as bytes or a number.
    """
    if isinstance(names, str | os.PathLike):
        return [names]
    if isinstance(names, Iterable) and not isinstance(names, bytes | bytearray):
        given = list(names)
        wrong = [name for name in given if not isinstance(name, str | os.PathLike)]
        if not wrong:
            return given
        raise SettingsError(f"{quoted(wrong[0])} is no name: give the uri or path of a photo")
    raise SettingsError(f"{quoted(names)} is no name: give the uri or path of a photo, or a list")


def stored_names(store: Store, collection: str, names: Names) -> list[str]:
    """Return the uris of photos, in the order given.

    A text that is stored as it is means that photo; any other text, and a `Path`, is the path of
    a file, as from the working directory. One that is not stored, while its other Unicode form is,
    means that.

    Raises:
        SettingsError: something that is no name.
        StoreError: Milvus failed.
    """
    given = listed(names)
    meant = [_meant(name) for name in given]
    doubtful = {uri for one in meant if len(one) > 1 for uri in one}
    there = store.fetch(collection, "uri", list(doubtful), []) if doubtful else {}
    return [
        next((uri for uri in one if uri in there), _absolute(name))
        for name, one in zip(given, meant, strict=True)
    ]


def _meant(name: str | os.PathLike[str]) -> list[str]:
    """Return the uris that a name may stand for, the likeliest first."""
    path = _absolute(name)
    found = [name, path] if isinstance(name, str) else [path]
    if not path.isascii():  # macOS writes names in another form than most
        found += [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    return list(dict.fromkeys(found))


def prefixes(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return what the uris of photos under a folder begin with."""
    name = _absolute(folder)
    names = [name]
    if Path(name).is_absolute():
        names.append(Path(name).as_uri())  # names that are no UTF-8 are stored as uris
    return tuple(name.rstrip("/") + "/" for name in names)


def _absolute(name: str | os.PathLike[str]) -> str:
    try:
        return uri_of(name)
    except ImageError:  # what no file can be called; a key of a mapping can
        return str(name)
