"""Which photos a person means: files, folders, globs, urls, or images as such."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

from cwf_milvus.errors import ImageError, SettingsError, quoted
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.survey import Met, survey


def list_photos(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> list[str]:
    """List the uris of photos in files, folders, globs and ``fsspec`` urls: sorted, each once.

    Named files are kept whatever their ending. Of folders and globs, the photos that
    `survey` tells by ending or first bytes are taken, hidden names are not. What cannot be
    read (a folder without access, a dangling link, a photo that no decoder is here for) is listed,
    so that load_image reports it.

    Raises:
        ImageError: a named source does not exist, or a glob matches nothing.
    """
    return sorted(met.uri for met in survey(sources, recursive=recursive) if met.is_photo)


def named_photos(photos: object) -> tuple[list[tuple[str, object]], list[str], list[Met]]:
    """Return (uri, source) of every photo, once each, the local folders, and what is no photo."""
    if isinstance(photos, Mapping):
        names = [str(uri) for uri in photos]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SettingsError(f"two photos are called {quoted(twice)}: give each its own name")
        return list(zip(names, photos.values(), strict=True)), [], []
    listed = _listed(photos)
    named = [source for source in listed if isinstance(source, str | os.PathLike)]
    met = sorted(survey(named), key=lambda one: one.uri) if named else []
    items: dict[str, object] = {
        one.uri: ImageError(one.reason) if one.verdict == "unreadable" else one.uri
        for one in met
        if one.is_photo
    }
    for number, source in enumerate(listed, start=1):
        if not isinstance(source, str | os.PathLike):
            items.setdefault(*_unnamed(source, number))
    folders = [os.path.abspath(source) for source in named if os.path.isdir(source)]  # noqa: PTH100, PTH112
    return list(items.items()), folders, [one for one in met if not one.is_photo]


def is_one_photo(photos: object) -> bool:
    """Whether this is one name or one photo, where several may be given."""
    return (
        isinstance(photos, str | os.PathLike | bytes | bytearray | memoryview)
        or not isinstance(photos, Iterable)
        or hasattr(photos, "read")
        or (hasattr(photos, "__array__") and getattr(photos, "ndim", 3) < 4)
    )


def _unnamed(source: object, number: int) -> tuple[str, object]:
    """Return the uri of a photo that has no name, and what to read it from."""
    if isinstance(source, bytes | bytearray | memoryview):  # decoded when its turn comes
        return f"sha256:{hashlib.sha256(source).hexdigest()}", bytes(source)
    try:
        image = load_image(source)
    except ImageError as error:
        return f"photo {number} of those given", error
    return image.uri, image


def photo_items(photos: object) -> list[object]:
    """Return the photos that `photos` names: files, folders, globs, urls, or images as such."""
    items = _listed(photos)
    named = [item for item in items if isinstance(item, str | os.PathLike)]
    return list(list_photos(named)) if named and len(named) == len(items) else items


def _listed(photos: object) -> list[object]:
    """Return one photo, or the name of some, as a list; several as they are."""
    return [photos] if is_one_photo(photos) else list(photos)  # type: ignore[call-overload]
