"""Photos into a collection: read, decode, encode and upsert, overlapped and resumable."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from tqdm import tqdm

from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.views import Prepared
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.index.metadata import Metadata, MetadataSource
from cwf_milvus.index.report import Journal, Report, opened
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.limits import READING
from cwf_milvus.photos.listing import named_photos
from cwf_milvus.photos.sources import read_bytes, size_of, uri_of
from cwf_milvus.photos.survey import Met
from cwf_milvus.store.client import MESSAGE_BYTES
from cwf_milvus.store.layout import METADATA_BYTES, checked_uri
from cwf_milvus.store.photo_rows import PhotoRows

_LOOKUP = 256  # photos whose stored content is asked for in one call


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo on its way through a run."""

    uri: str
    metadata: dict[str, Any] | None
    prepared: Prepared | None = None
    known: bool = False
    reason: str = ""


def index_photos(
    collection: PhotoRows,
    photos: object,
    *,
    metadata: MetadataSource = None,
    prune: bool = False,
    progress: bool = True,
    report_file: str | Path | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
) -> Report:
    """Add photos to a collection; see `InstanceCollection.add`, which takes the same."""
    started = time.monotonic()
    items, folders, notes, passed = _plan(photos, metadata, prune)
    if workers is not None and workers < 1:
        raise SettingsError(f"workers={workers}: give a whole number of at least 1")
    told = {uri: fields for uri, _ in items if (fields := notes.of(uri)) is not None}
    for uri, fields in told.items():
        collection.layout.checked_metadata(uri, fields)
    if notes and items and not told:
        warnings.warn(
            f"the metadata names none of these {len(items)} photos, such as {items[0][0]!r}",
            stacklevel=2,
        )
    report = Report()
    encoder = collection.encoder
    # A batch is one message, so that it is stored whole or not at all, and forms again alike.
    row_bytes = collection.layout.row_bytes + 4 * METADATA_BYTES
    size = max(1, min(encoder.batch_size, MESSAGE_BYTES // row_bytes))
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(report, report_file))
        bar = stack.enter_context(
            tqdm(total=len(items), unit="photo", disable=not progress, dynamic_ncols=True)
        )
        try:
            for met in passed:
                journal.passed_over(met)
            with (
                _Writer(collection, journal, bar) as writer,
                closing(
                    _readable(
                        collection, items, notes, workers or worker_count(), writer, max_pixels
                    )
                ) as ready,
            ):
                for batch in batches(ready, size, _grid):
                    prepared = [photo.prepared for photo in batch if photo.prepared is not None]
                    writer.put(batch, encoder.encode_prepared(prepared))
            if prune:
                gone = _gone(collection, {uri for uri, _ in items}, folders)
                for start in range(0, len(gone), _LOOKUP):
                    part = gone[start : start + _LOOKUP]
                    report.pruned += collection.remove(part)
                    for uri in part:
                        journal.line(uri, "pruned")
        finally:
            report.seconds = time.monotonic() - started
    return report


def check_inputs(
    photos: object,
    *,
    metadata: MetadataSource = None,
    prune: bool = False,
    report_file: str | Path | None = None,
) -> None:
    """Raise what `index_photos` would for inputs that cannot be used, ahead of longer work."""
    _plan(photos, metadata, prune)
    if report_file is not None:
        opened(report_file).close()


def _plan(
    photos: object, metadata: MetadataSource, prune: bool
) -> tuple[list[tuple[str, object]], list[str], Metadata, list[Met]]:
    items, folders, passed = named_photos(photos)
    if prune and not folders:
        raise SettingsError("prune removes rows under a named local folder, and none was named")
    return items, folders, Metadata.read(metadata, folders), passed


def worker_count() -> int:
    """Return how many threads read and decode: one a core, at most 16."""
    return min(16, os.cpu_count() or 1)


def _grid(photo: _Photo) -> Hashable:
    return photo.prepared.grid if photo.prepared is not None else None


def _readable(
    collection: PhotoRows,
    items: Sequence[tuple[str, object]],
    notes: Metadata,
    workers: int,
    writer: _Writer,
    max_pixels: int | None,
) -> Generator[_Photo, None, None]:
    """Yield the photos to encode, in order, decoded ahead of time by `workers` threads."""
    ahead = 2 * workers + 2 * collection.encoder.batch_size
    with ThreadPoolExecutor(workers, thread_name_prefix="cwf-read") as pool:
        waiting: deque[Future[_Photo]] = deque()
        try:
            for start in range(0, len(items), _LOOKUP):
                chunk = items[start : start + _LOOKUP]
                known = collection.contents([uri for uri, _ in chunk])
                for uri, source in chunk:
                    asked = (uri, source, notes.of(uri), known.get(uri), max_pixels)
                    waiting.append(pool.submit(_read, collection.encoder, *asked))
                    if len(waiting) > ahead:
                        yield from _sorted_out(waiting.popleft().result(), writer)
            while waiting:
                yield from _sorted_out(waiting.popleft().result(), writer)
        finally:
            pool.shutdown(cancel_futures=True)


def _read(
    encoder: Encoder,
    uri: str,
    source: object,
    metadata: dict[str, Any] | None,
    known: str | None,
    max_pixels: int | None,
) -> _Photo:
    limit = encoder.max_pixels if max_pixels is None else max_pixels
    try:
        checked_uri(uri)
        if isinstance(source, ImageError):
            raise source
        if isinstance(source, str):
            with READING.held(size_of(source)):
                data = read_bytes(source)
                if hashlib.sha256(data).hexdigest() == known:
                    return _Photo(uri, metadata, known=True)
                image = load_image(data, uri=uri, at_least=encoder.at_least, max_pixels=limit)
                del data
        else:
            image = load_image(source, uri=uri, at_least=encoder.at_least, max_pixels=limit)
            if image.content == known:
                return _Photo(uri, metadata, known=True)
        prepared = encoder.prepare(image)
    except ImageError as error:
        return _Photo(uri, metadata, reason=str(error))
    return _Photo(uri, metadata, prepared, known is not None)


def _sorted_out(photo: _Photo, writer: _Writer) -> Iterator[_Photo]:
    if photo.prepared is not None:
        yield photo
    elif photo.reason:
        writer.failed(photo)
    else:
        writer.same(photo)


def _gone(collection: PhotoRows, here: set[str], folders: Sequence[str]) -> list[str]:
    """Return the uris of stored photos under `folders` whose files are no more.

    What cannot be told, in a folder without access, is not gone.
    """
    under = tuple(
        name.rstrip("/") + "/"
        for folder in folders
        for name in (uri_of(Path(folder)), Path(folder).as_uri())  # some names are stored as uris
    )
    uris = (uri for uri in collection.uris() if uri.startswith(under) and uri not in here)
    return [uri for uri in uris if _is_gone(uri)]


def _is_gone(uri: str) -> bool:
    encoded = uri.startswith("file://")
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if encoded else uri
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


class _Writer:
    """Upserts finished batches in a thread of its own, in order, and counts them."""

    def __init__(self, collection: PhotoRows, journal: Journal, bar: tqdm) -> None:
        self._collection = collection
        self._journal = journal
        self._report = journal.report
        self._bar = bar
        self._batches: queue.Queue[tuple[list[_Photo], list[Encoding]] | None] = queue.Queue(2)
        self._same: list[_Photo] = []
        self._error: BaseException | None = None
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="cwf-write", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._batches.put(None)
        self._thread.join()
        if kind is None:
            self._flush_same(0)
            self._check()

    def put(self, photos: list[_Photo], encodings: list[Encoding]) -> None:
        """Hand over a batch; waits while two are in hand."""
        self._check()
        self._batches.put((photos, encodings))

    def same(self, photo: _Photo) -> None:
        """Note a photo that is stored with the same bytes; its metadata may have changed."""
        self._same.append(photo)
        self._flush_same(_LOOKUP - 1)

    def failed(self, photo: _Photo) -> None:
        """Note a photo that cannot be read; a row that it has from before stays."""
        self._journal.line(photo.uri, "failed", photo.reason)
        self._count(failed=[(photo.uri, photo.reason)])

    def _flush_same(self, most: int) -> None:
        if len(self._same) <= most:
            return
        told = {p.uri: p.metadata for p in self._same if p.metadata is not None}
        changed = self._collection.set_metadata(told)
        for uri in changed:
            self._journal.line(uri, "updated")
        self._count(updated=len(changed), skipped=len(self._same) - len(changed))
        self._same.clear()

    def _run(self) -> None:
        while (work := self._batches.get()) is not None:
            if self._error is not None:
                continue  # to the end of the queue, lest the thread that encodes wait on it
            try:
                self._store(*work)
            except BaseException as error:  # handed to the thread that encodes
                self._error = error

    def _store(self, photos: list[_Photo], encodings: list[Encoding]) -> None:
        told = {photo.uri: photo.metadata for photo in photos}
        silent = [photo.uri for photo in photos if photo.known and photo.metadata is None]
        for uri, row in zip(silent, self._collection.get(silent), strict=True):
            told[uri] = row.metadata if row is not None else None
        self._collection.upsert(encodings, list(told.values()))
        for photo in photos:
            self._journal.line(photo.uri, "updated" if photo.known else "added")
        known = sum(photo.known for photo in photos)
        self._count(added=len(photos) - known, updated=known)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _count(
        self,
        added: int = 0,
        updated: int = 0,
        skipped: int = 0,
        failed: Sequence[tuple[str, str]] = (),
    ) -> None:
        report = self._report
        with self._counting:
            report.added += added
            report.updated += updated
            report.skipped += skipped
            report.failed += failed
            self._bar.set_postfix_str(
                f"{report.added} added, {report.skipped} skipped, {report.updated} updated, "
                f"{len(report.failed)} failed",
                refresh=False,
            )
            self._bar.update(added + updated + skipped + len(failed))
