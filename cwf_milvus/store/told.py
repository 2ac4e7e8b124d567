"""The user's fields of a photo, and which of them nobody gave by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Told(dict[str, Any]):
    """Fields of a photo: a dict that also knows which of them came from beside the photo.

    Those are of the folder's own metadata file, or of the photo's EXIF, and never take the place
    of what was given for the photo.

    Attributes:
        beside: the names of such fields.
    """

    def __init__(self, fields: Mapping[str, Any], beside: Iterable[str] = ()) -> None:
        super().__init__(fields)
        self.beside = frozenset(name for name in beside if name in fields)

    def over(self, old: Told) -> Told:
        """Return what a photo has once this is told of it, where it has `old`."""
        given = old.keys() - old.beside
        new = {name: value for name, value in self.items() if name not in self.beside & given}
        beside = (old.beside - new.keys()) | (self.beside & new.keys())
        return Told({**old, **new}, beside)
