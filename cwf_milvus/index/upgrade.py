"""Keypoints for a collection that was made without: from the photos, without the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.encode.saved import Saved
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.errors import CwfError, ImageError
from cwf_milvus.index.indexing import worker_count
from cwf_milvus.index.report import Report
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.photos.images import load_image
from cwf_milvus.store.client import MESSAGE_BYTES
from cwf_milvus.store.kinds import keypoint_texts
from cwf_milvus.store.photo_rows import PhotoRows

_AT_ONCE = 64


def add_keypoints(
    collection: PhotoRows, limit: int = EncoderSettings.keypoints, *, progress: bool = True
) -> Report:
    """Add keypoints to the stored rows of a collection; run again, it does those that are left.

    The schema of a collection does not grow, so that they are kept beside the user's metadata,
    which then has about 24 kB less room. First the collection says that it has keypoints, then
    row after row gets them: after any interruption rows have them or not, and both are whole.

    Args:
        collection: an open collection.
        limit: keypoints of a photo, where the collection does not say.
        progress: show a progress bar on standard error.

    Returns:
        Photos updated, those skipped since they had keypoints, and each that failed with its
        reason: it cannot be read, is another than the one that was stored, or has too much
        metadata. A search reads those again.

    Raises:
        SettingsError: a limit out of range.
        StoreError: Milvus failed; run again to go on.
    """
    started = time.monotonic()
    saved = Saved.from_files(collection.sidecar.state(), collection.name)
    if not collection.has_keypoints():
        wanted = saved.with_keypoints(limit)
        collection.rewrite_encoder(wanted, n_keypoints=limit, keypoints_beside=True)
        saved = wanted
    report = Report()
    at_once = min(_AT_ONCE, max(1, MESSAGE_BYTES // (2 * collection.layout.row_bytes)))
    uris = list(collection.uris())
    with (
        ThreadPoolExecutor(worker_count()) as readers,
        tqdm(total=len(uris), unit="photo", disable=not progress, dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(uris), at_once):
            rows = collection.raw_rows(uris[start : start + at_once])
            _complete(collection, list(rows.values()), saved, readers, report)
            bar.update(min(at_once, len(uris) - start))
    report.seconds = time.monotonic() - started
    return report


def _complete(
    collection: PhotoRows,
    rows: Sequence[dict[str, Any]],
    saved: Saved,
    readers: ThreadPoolExecutor,
    report: Report,
) -> None:
    """Add keypoints to those of some rows that lack them."""
    layout = collection.layout
    fields = layout.fields_of(["keypoints"])
    lacking = [row for row in rows if not any(row.get(name) for name in fields)]
    report.skipped += len(rows) - len(lacking)
    done = []
    for row, found in zip(
        lacking, readers.map(lambda row: _read(row, saved), lacking), strict=True
    ):
        told = layout.metadata_of(row)
        try:
            if isinstance(found, str):
                raise ImageError(found)
            texts = keypoint_texts(found, fields)
            done.append(layout.with_metadata({**row, **texts}, told))
        except CwfError as error:
            report.failed.append((str(row["uri"]), str(error)))
    if done:
        with collection.ledger.storing([row["uri"] for row in done]):
            collection.store.write(collection.name, done)
    report.updated += len(done)


def _read(row: dict[str, Any], saved: Saved) -> Keypoints | str:
    """Return a stored photo's keypoints, or why there are none."""
    try:
        photo = load_image(row["uri"], at_least=saved.settings.at_least)
    except ImageError as error:
        return str(error)
    if photo.content != row["content"]:
        return f"{row['uri']!r} is another photo than the one that was stored: add it again"
    limit = saved.settings.keypoints
    return extract_keypoints(photo.pixels, photo.width, photo.height, limit)
