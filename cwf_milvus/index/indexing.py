"""Photos into a collection: read, decode, encode and upsert, overlapped and resumable."""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.views import Prepared
from cwf_milvus.errors import ImageError, SettingsError, quoted
from cwf_milvus.index.metadata import Metadata, MetadataSource
from cwf_milvus.index.moved import Standing
from cwf_milvus.index.pruning import gone_photos, without_deleted
from cwf_milvus.index.report import Journal, Report
from cwf_milvus.index.report_files import opened
from cwf_milvus.index.sharding import Shard
from cwf_milvus.photos.exif import exif_fields
from cwf_milvus.photos.images import Image, load_image
from cwf_milvus.photos.limits import READING
from cwf_milvus.photos.listing import named_photos
from cwf_milvus.photos.sources import read_bytes, size_of
from cwf_milvus.photos.survey import Met
from cwf_milvus.store.client import MESSAGE_BYTES
from cwf_milvus.store.layout import METADATA_BYTES, checked_uri
from cwf_milvus.store.moves import MovableRows
from cwf_milvus.store.told import Told

Elsewhere: TypeAlias = Callable[
    [Sequence[str]], Iterator[tuple[list[Encoding], list[tuple[str, str]]]]
]
"""What encodes photos by their names: some at a time, with (uri, reason) of those that failed."""

_LOOKUP = 256  # photos whose stored content is asked for in one call


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo on its way through a run."""

    uri: str
    metadata: Told | None
    prepared: Prepared | None = None
    known: bool = False
    moved: bool = False
    reason: str = ""


_Encoded: TypeAlias = Generator[tuple[list[_Photo], list[Encoding]], None, None]


def index_photos(
    collection: MovableRows,
    photos: object,
    *,
    metadata: MetadataSource = None,
    replace_metadata: bool = False,
    exif: bool = False,
    prune: bool = False,
    prune_anyway: bool = False,
    progress: bool = True,
    report_file: str | Path | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
    shard: str | None = None,
    elsewhere: Elsewhere | None = None,
) -> Report:
    """Add photos to a collection; see `InstanceCollection.add`, which takes the same.

    `elsewhere` encodes photos by their names, in place of this process.
    """
    started = time.monotonic()
    prune = prune or prune_anyway
    part = _checked_shard(shard, prune)
    items, folders, notes, passed = _plan(photos, metadata, prune, prune_anyway)
    if workers is not None and workers < 1:
        raise SettingsError(f"workers={workers}: give a whole number of at least 1")
    for notice in notes.match([uri for uri, _ in items]) if items else []:
        warnings.warn(notice, stacklevel=2)
    for uri, _ in items:
        collection.layout.checked_metadata(uri, notes.of(uri))
    if part is not None:
        items = [item for item in items if part.has(item[0])]
    report = Report()
    encoder = collection.encoder
    limit = encoder.max_pixels if max_pixels is None else max_pixels
    reader = _Reader(encoder, notes, limit, exif)
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
                journal.skipped(met)
            with _Writer(collection, journal, bar, replace_metadata) as writer:
                standing = Standing(collection, items, workers or worker_count(), part)
                if elsewhere is None:
                    encoded = _encoded_here(
                        collection, items, reader, workers or worker_count(), writer, standing, size
                    )
                else:
                    encoded = _encoded_elsewhere(elsewhere, items, notes, writer, standing)
                with closing(encoded):
                    for batch, encodings in encoded:
                        writer.put(batch, encodings)
            if prune:
                here = {uri for uri, _ in items}
                gone = gone_photos(collection, here, folders, anyway=prune_anyway)
                for start in range(0, len(gone), _LOOKUP):
                    uris = gone[start : start + _LOOKUP]
                    report.pruned += collection.remove(uris)
                    for uri in uris:
                        journal.line(uri, "pruned")
        finally:
            report.seconds = time.monotonic() - started
    return report


def check_inputs(
    photos: object,
    *,
    metadata: MetadataSource = None,
    prune: bool = False,
    prune_anyway: bool = False,
    report_file: str | Path | None = None,
    shard: str | None = None,
) -> None:
    """Raise what `index_photos` would for inputs that cannot be used, ahead of longer work."""
    _checked_shard(shard, prune or prune_anyway)
    _plan(photos, metadata, prune or prune_anyway, prune_anyway)
    if report_file is not None:
        opened(report_file).close()


def _checked_shard(shard: str | None, prune: bool) -> Shard | None:
    if shard is None:
        return None
    if prune:
        raise SettingsError(
            f"shard {shard} with prune: another worker may yet have to move the row of a photo "
            "that was renamed. Prune in a run without a shard, once all workers are done"
        )
    return Shard.of_text(shard)


def _plan(
    photos: object, metadata: MetadataSource, prune: bool, anyway: bool
) -> tuple[list[tuple[str, object]], list[str], Metadata, list[Met]]:
    deleted: list[str] = []
    if prune:
        photos, deleted = without_deleted(photos)
    if deleted and not anyway:
        raise SettingsError(
            f"{quoted(deleted[0])} does not exist: to remove the rows of a folder that was "
            "deleted, give --prune-anyway (prune_anyway=True)"
        )
    items, folders, passed = named_photos(photos)
    folders += deleted
    if prune and not folders:
        raise SettingsError("prune removes rows under a named local folder, and none was named")
    return items, folders, Metadata.read(metadata, folders), passed


def worker_count() -> int:
    """Return how many threads read and decode: one a core, at most 16."""
    return min(16, os.cpu_count() or 1)


def _grid(photo: _Photo) -> Hashable:
    return photo.prepared.grid if photo.prepared is not None else None


def _encoded_here(
    collection: MovableRows,
    items: Sequence[tuple[str, object]],
    reader: _Reader,
    workers: int,
    writer: _Writer,
    standing: Standing,
    size: int,
) -> _Encoded:
    """Yield photos with their encodings, a batch at a time."""
    with closing(_readable(collection, items, reader, workers, writer, standing)) as ready:
        for batch in batches(ready, size, _grid):
            prepared = [photo.prepared for photo in batch if photo.prepared is not None]
            yield batch, collection.encoder.encode_prepared(prepared)


def _encoded_elsewhere(
    elsewhere: Elsewhere,
    items: Sequence[tuple[str, object]],
    notes: Metadata,
    writer: _Writer,
    standing: Standing,
) -> _Encoded:
    """Yield photos with the encodings that others made of them."""
    todo = []
    for uri, source in items:
        try:
            checked_uri(uri)
            if isinstance(source, ImageError):
                raise source
            if not isinstance(source, str):
                raise ImageError(f"{quoted(uri)} has no name that another computer could read")
        except ImageError as error:
            writer.failed(_Photo(uri, None, reason=str(error)))
            continue
        if uri in standing.same:
            writer.same(_Photo(uri, notes.of(uri), known=True, moved=uri in standing.moved))
        else:
            todo.append(uri)
    for encodings, failed in elsewhere(todo):
        for uri, reason in failed:
            writer.failed(_Photo(uri, None, reason=reason))
        told = [_Photo(e.uri, notes.of(e.uri), known=e.uri in standing.known) for e in encodings]
        if encodings:
            yield told, encodings


def _readable(
    collection: MovableRows,
    items: Sequence[tuple[str, object]],
    reader: _Reader,
    workers: int,
    writer: _Writer,
    standing: Standing,
) -> Generator[_Photo, None, None]:
    """Yield the photos to encode, in order, decoded ahead of time by `workers` threads."""
    ahead = 2 * workers + 2 * collection.encoder.batch_size
    with ThreadPoolExecutor(workers, thread_name_prefix="cwf-read") as pool:
        waiting: deque[Future[_Photo]] = deque()
        try:
            for uri, source in items:
                waiting.append(pool.submit(reader.read, uri, source, standing))
                if len(waiting) > ahead:
                    yield from _sorted_out(waiting.popleft().result(), writer)
            while waiting:
                yield from _sorted_out(waiting.popleft().result(), writer)
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Reader:
    """Reads photos, and what is said of them; in several threads."""

    encoder: Encoder
    notes: Metadata
    max_pixels: int
    exif: bool

    def read(self, uri: str, source: object, standing: Standing) -> _Photo:
        """Return a photo prepared for the network, or why not."""
        told = self.notes.of(uri)
        known = uri in standing.known
        try:
            checked_uri(uri)
            if isinstance(source, ImageError):
                raise source
            if uri in standing.same:
                if self.exif and isinstance(source, str):
                    told = self._with_exif(told, read_bytes(source), uri)
                return _Photo(uri, told, known=True, moved=uri in standing.moved)
            if isinstance(source, str):
                with READING.held(size_of(source)):
                    data = read_bytes(source)
                    image = self._load(data, uri)
                    told = self._with_exif(told, data, uri)
                    del data
            else:
                image = self._load(source, uri)
                if image.content == standing.known.get(uri) and uri not in standing.damaged:
                    return _Photo(uri, told, known=True)
                if isinstance(source, bytes):
                    told = self._with_exif(told, source, uri)
            prepared = self.encoder.prepare(image)
        except ImageError as error:
            return _Photo(uri, told, reason=str(error))
        return _Photo(uri, told, prepared, known=known)

    def _load(self, source: object, uri: str) -> Image:
        at_least = self.encoder.at_least
        return load_image(source, uri=uri, at_least=at_least, max_pixels=self.max_pixels)

    def _with_exif(self, told: Told | None, data: bytes, uri: str) -> Told | None:
        fields = exif_fields(data, uri) if self.exif else {}
        return (told or Told({})).over(Told(fields, fields)) if fields else told


def _sorted_out(photo: _Photo, writer: _Writer) -> Iterator[_Photo]:
    if photo.prepared is not None:
        yield photo
    elif photo.reason:
        writer.failed(photo)
    else:
        writer.same(photo)


class _Writer:
    """Upserts finished batches in a thread of its own, in order, and counts them."""

    def __init__(
        self, collection: MovableRows, journal: Journal, bar: tqdm, replace_metadata: bool
    ) -> None:
        self._collection = collection
        self._journal = journal
        self._report = journal.report
        self._bar = bar
        self._replaces = replace_metadata
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
        changed = set(self._collection.set_metadata(self._with_stored(told)))
        counts = Counter[str]()
        for photo in self._same:
            status = "moved" if photo.moved else "updated" if photo.uri in changed else "same"
            counts[status] += 1
            self._journal.line(photo.uri, status)
        self._count(moved=counts["moved"], updated=counts["updated"], skipped=counts["same"])
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
        told |= self._with_stored({p.uri: p.metadata or Told({}) for p in photos if p.known})
        self._collection.upsert(encodings, list(told.values()))
        for photo in photos:
            self._journal.line(photo.uri, "updated" if photo.known else "added")
        known = sum(photo.known for photo in photos)
        self._count(added=len(photos) - known, updated=known)

    def _with_stored(self, told: Mapping[str, Told]) -> dict[str, Told]:
        """Return, for stored photos, what is told of them over what they have."""
        found = dict(told)
        for (uri, fields), row in zip(told.items(), self._collection.get(list(told)), strict=True):
            if row is not None and not (self._replaces and fields):
                found[uri] = fields.over(row.metadata)
        return found

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _count(
        self,
        added: int = 0,
        updated: int = 0,
        moved: int = 0,
        skipped: int = 0,
        failed: Sequence[tuple[str, str]] = (),
    ) -> None:
        report = self._report
        with self._counting:
            report.added += added
            report.updated += updated
            report.moved += moved
            report.skipped += skipped
            report.failed += failed
            self._bar.set_postfix_str(
                f"{report.added} added, {report.skipped} skipped, {report.updated} updated, "
                f"{len(report.failed)} failed",
                refresh=False,
            )
            self._bar.update(added + updated + moved + skipped + len(failed))
