"""What photos are called on the wire: by their uri, or where paths are hidden by a number."""

from __future__ import annotations

import hashlib
import threading

from fastapi import HTTPException

from cwf_milvus.errors import FilterError, SettingsError
from cwf_milvus.store.fields import named_in
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import Row

_KEY = "photo:"


class Names:
    """The photos' names, as they go out and come back.

    A number is the photo's own for as long as its collection lives, so that an address with it can
    be kept. Which uri it stands for is looked up among all that are stored, once for each change.

    Args:
        hidden: whether paths are.
    """

    def __init__(self, hidden: bool) -> None:
        self.hidden = hidden
        self._uris: dict[str, str] = {}
        self._listed: dict[int, int] = {}  # how many photos a collection had when it was read
        self._lock = threading.Lock()

    def shown(self, photos: PhotoRows, uri: str) -> str:
        """Return what a photo is called."""
        if not self.hidden:
            return uri
        secret = photos.sidecar.prefix  # made with the collection, and told to nobody
        digest = hashlib.blake2b(uri.encode(), key=secret.encode()[:64], digest_size=16)
        shown = _KEY + digest.hexdigest()
        self._uris[shown] = uri
        return shown

    def row(self, photos: PhotoRows, shown: str) -> Row:
        """Return the photo that is called so. Raises HTTPException where there is none."""
        uri = self.uri(photos, shown)
        row = photos.get([uri])[0]
        if row is None or row.uri != uri:  # a path as from the folder that the service runs in
            raise _unknown(photos, shown)
        return row

    def uri(self, photos: PhotoRows, shown: str) -> str:
        """Return the uri of the photo that is called so. Raises HTTPException."""
        if not self.hidden:
            return shown
        if not shown.startswith(_KEY):
            raise _unknown(photos, shown)
        with self._lock:
            if shown not in self._uris and self._listed.get(id(photos)) != photos.count():
                self._listed[id(photos)] = sum(bool(self.shown(photos, u)) for u in photos.uris())
        if shown not in self._uris:
            raise _unknown(photos, shown)
        return self._uris[shown]

    def check_filter(self, filter: str | None) -> str | None:
        """Return a filter; raises `FilterError` where it would ask for hidden paths."""
        if self.hidden and filter and "uri" in named_in(filter):
            raise FilterError("paths are hidden here: filter by other fields than uri")
        return filter or None

    def check_grouping(self, by: str) -> str:
        """Return what photos are grouped by; raises `SettingsError` for hidden folders."""
        if self.hidden and by == "folder":
            raise SettingsError("paths are hidden here: group by date or a field")
        return by


def _unknown(photos: PhotoRows, shown: str) -> HTTPException:
    return HTTPException(404, f"{shown[:200]!r} is not in the collection {photos.name!r}")
