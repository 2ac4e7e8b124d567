"""Photos into a collection: read, decode, encode and upsert, overlapped and resumable."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
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
from cwf_milvus.index.writing import LOOKUP, Photo, Writer
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


_Encoded: TypeAlias = Generator[tuple[list[Photo], list[Encoding]], None, None]


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
            with Writer(collection, journal, bar, replace_metadata) as writer:
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
                for start in range(0, len(gone), LOOKUP):
                    uris = gone[start : start + LOOKUP]
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


def _grid(photo: Photo) -> Hashable:
    return photo.prepared.grid if photo.prepared is not None else None


def _encoded_here(
    collection: MovableRows,
    items: Sequence[tuple[str, object]],
    reader: _Reader,
    workers: int,
    writer: Writer,
    standing: Standing,
    size: int,
) -> _Encoded:
    """Yield photos with their encodings, a batch at a time."""
    taken: deque[list[Photo]] = deque()

    def prepared() -> Iterator[list[Prepared]]:
        for batch in batches(ready, size, _grid):
            taken.append(batch)
            yield [photo.prepared for photo in batch if photo.prepared is not None]

    with closing(_readable(collection, items, reader, workers, writer, standing)) as ready:
        for encodings in collection.encoder.encode_batches(prepared()):
            yield taken.popleft(), encodings


def _encoded_elsewhere(
    elsewhere: Elsewhere,
    items: Sequence[tuple[str, object]],
    notes: Metadata,
    writer: Writer,
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
            writer.failed(Photo(uri, None, reason=str(error)))
            continue
        if uri in standing.same:
            writer.same(Photo(uri, notes.of(uri), known=True, moved=uri in standing.moved))
        else:
            todo.append(uri)
    for encodings, failed in elsewhere(todo):
        for uri, reason in failed:
            writer.failed(Photo(uri, None, reason=reason))
        told = [Photo(e.uri, notes.of(e.uri), known=e.uri in standing.known) for e in encodings]
        if encodings:
            yield told, encodings


def _readable(
    collection: MovableRows,
    items: Sequence[tuple[str, object]],
    reader: _Reader,
    workers: int,
    writer: Writer,
    standing: Standing,
) -> Generator[Photo, None, None]:
    """Yield the photos to encode, in order, decoded ahead of time by `workers` threads."""
    ahead = 2 * workers + 2 * collection.encoder.batch_size
    with ThreadPoolExecutor(workers, thread_name_prefix="cwf-read") as pool:
        waiting: deque[Future[Photo]] = deque()
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

    def read(self, uri: str, source: object, standing: Standing) -> Photo:
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
                return Photo(uri, told, known=True, moved=uri in standing.moved)
            if isinstance(source, str):
                with READING.held(size_of(source)):
                    data = read_bytes(source)
                    image = self._load(data, uri)
                    told = self._with_exif(told, data, uri)
                    del data
            else:
                image = self._load(source, uri)
                if image.content == standing.known.get(uri) and uri not in standing.damaged:
                    return Photo(uri, told, known=True)
                if isinstance(source, bytes):
                    told = self._with_exif(told, source, uri)
            prepared = self.encoder.prepare(image)
        except ImageError as error:
            return Photo(uri, told, reason=str(error))
        return Photo(uri, told, prepared, known=known)

    def _load(self, source: object, uri: str) -> Image:
        at_least = self.encoder.at_least
        return load_image(source, uri=uri, at_least=at_least, max_pixels=self.max_pixels)

    def _with_exif(self, told: Told | None, data: bytes, uri: str) -> Told | None:
        fields = exif_fields(data, uri) if self.exif else {}
        return (told or Told({})).over(Told(fields, fields)) if fields else told


def _sorted_out(photo: Photo, writer: Writer) -> Iterator[Photo]:
    if photo.prepared is not None:
        yield photo
    elif photo.reason:
        writer.failed(photo)
    else:
        writer.same(photo)
