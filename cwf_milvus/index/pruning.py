"""Rows of photos that are gone: which there are, and when removing them is safe."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cwf_milvus.errors import SettingsError, quoted
from cwf_milvus.photos.sources import is_gone, local_path, uri_of
from cwf_milvus.store.names import prefixes
from cwf_milvus.store.photo_rows import PhotoRows

MOST = 0.2
"""The share of a folder's rows that may be removed at once without a further word."""


@dataclass(frozen=True)
class _Loss:
    """What a named folder has lost."""

    folder: str
    rows: int
    gone: tuple[str, ...]
    is_empty: bool

    @property
    def is_safe(self) -> bool:
        """One photo may always go: a fifth of four photos is none."""
        return not self.is_empty and len(self.gone) <= max(1, MOST * self.rows)

    def __str__(self) -> str:
        of = f"{len(self.gone)} of the {self.rows} photos stored of {quoted(self.folder)} are gone"
        if self.is_empty:
            return f"{of}, and no photo is found there (is it a share that is not mounted?)"
        return f"{of}, which is more than a fifth"


def gone_photos(
    collection: PhotoRows, here: set[str], folders: Sequence[str], *, anyway: bool = False
) -> list[str]:
    """Return the uris of stored photos under `folders` whose files are no more.

    What cannot be told, in a folder without access, is not gone.

    Args:
        collection: whose rows are looked at.
        here: the uris that the run has met.
        folders: absolute paths.
        anyway: also where so many are gone that the folder itself may be out of reach.

    Raises:
        SettingsError: a folder is empty or missing, or has lost more than a fifth of its rows, and
            more than one.
    """
    stored = list(collection.uris())
    gone: dict[str, None] = {}
    for folder in folders:
        under = prefixes(folder)
        rows = [uri for uri in stored if uri.startswith(under)]
        lost = tuple(uri for uri in rows if uri not in here and is_gone(uri))
        loss = _Loss(folder, len(rows), lost, not any(uri.startswith(under) for uri in here))
        if lost and not anyway and not loss.is_safe:
            raise SettingsError(
                f"nothing was pruned: {loss}. If they were really deleted, give --prune-anyway "
                "(prune_anyway=True)"
            )
        gone.update(dict.fromkeys(lost))
    return list(gone)


def without_deleted(photos: object) -> tuple[object, list[str]]:
    """Return the sources that are there, and the absolute paths of the named that are not."""
    if isinstance(photos, str | os.PathLike):
        photos = [photos]
    if not isinstance(photos, list | tuple):
        return photos, []
    left = [source for source in photos if not _is_deleted(source)]
    return left, [uri_of(source) for source in photos if _is_deleted(source)]


def _is_deleted(source: object) -> bool:
    if not isinstance(source, str | os.PathLike):
        return False
    path = local_path(source)
    return path is not None and not glob.has_magic(path) and not os.path.lexists(path)
