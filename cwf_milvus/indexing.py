"""Photos into a collection: read, decode, encode and upsert, overlapped and resumable."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from cwf_milvus.batching import batches
from cwf_milvus.encoder import Encoder
from cwf_milvus.encoding import Encoding
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.images import load_image
from cwf_milvus.metadata import Metadata
from cwf_milvus.sources import list_photos, read_bytes, uri_of
from cwf_milvus.views import Prepared

if TYPE_CHECKING:
    from cwf_milvus.collection import InstanceCollection

_LOOKUP = 256  # photos whose stored content is asked for in one call


@dataclass
class Report:
    """What became of every photo of a run.

    Attributes:
        added: photos that were not in the collection.
        updated: photos whose bytes or metadata changed.
        skipped: photos that were there already, with the same bytes and metadata.
        failed: (uri, reason) of each photo that could not be read.
        pruned: rows removed because their file is gone.
        seconds: wall-clock time.
    """

    added: int = 0
    updated: int = 0
    skipped: int = 0
    pruned: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = (self.added + self.updated) / self.seconds if self.seconds else 0.0
        pruned = f", {self.pruned} pruned" if self.pruned else ""
        return (
            f"{self.added} added, {self.updated} updated, {self.skipped} skipped, "
            f"{len(self.failed)} failed{pruned} in {self.seconds:.1f} s ({rate:.1f} photos/s)"
        )


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo on its way through a run."""

    uri: str
    metadata: dict[str, Any] | None
    prepared: Prepared | None = None
    known: bool = False
    reason: str = ""


def index_photos(
    collection: InstanceCollection,
    photos: object,
    *,
    metadata: object = None,
    prune: bool = False,
    progress: bool = True,
    report_file: str | Path | None = None,
    workers: int | None = None,
) -> Report:
    """Add photos to a collection; `InstanceCollection.add`.

    Photos with the bytes that the collection holds are skipped, so that a run that was killed
    goes on where it stopped, and ends in the collection that an undisturbed run gives.

    Args:
        collection: an open collection.
        photos: a file, folder, glob or fsspec url, several of them, a sequence of images (bytes,
            arrays, PIL), or a mapping of uri to image.
        metadata: a mapping of uri, path or file name to a dict, or a CSV or JSONL file with a
            column ``file_name``; None to use ``metadata.jsonl`` or ``metadata.csv`` in a folder
            named by `photos`, where there is one.
        prune: remove the rows under the named folders whose files are gone.
        progress: show a progress bar on standard error.
        report_file: a JSONL file to write, a line for each photo that was not skipped and one
            with the counts.
        workers: threads that read and decode; None for one a core, at most 16.

    Returns:
        The counts, and each failed photo with its reason: one bad photo never ends a run.

    Raises:
        ImageError: a named source that does not exist.
        SettingsError: a metadata or report file that cannot be used.
        StoreError: Milvus went away; what was finished stays, and a new run goes on from there.
    """
    started = time.monotonic()
    items, folders = _items(photos)
    notes = Metadata.read(metadata, folders)
    report = Report()
    with ExitStack() as stack:
        journal = stack.enter_context(_Journal(report, report_file))
        bar = stack.enter_context(
            tqdm(total=len(items), unit="photo", disable=not progress, dynamic_ncols=True)
        )
        try:
            with _Writer(collection, journal, bar) as writer:
                encoder = collection.encoder
                ready = _readable(collection, items, notes, workers or _workers(), writer)
                for batch in batches(ready, encoder.batch_size, _grid):
                    prepared = [photo.prepared for photo in batch if photo.prepared is not None]
                    writer.put(batch, encoder.encode_prepared(prepared))
            if prune:
                for uri in _gone(collection, {uri for uri, _ in items}, folders):
                    report.pruned += collection.remove([uri])
                    journal.line(uri, "pruned")
        finally:
            report.seconds = time.monotonic() - started
    return report


def _items(photos: object) -> tuple[list[tuple[str, object]], list[str]]:
    """Return (uri, source) of every photo, once each, and the local folders among `photos`."""
    if isinstance(photos, Mapping):
        return [(str(uri), image) for uri, image in photos.items()], []
    sources = [photos] if isinstance(photos, str | Path | bytes) else photos
    if not isinstance(sources, Iterable) or hasattr(sources, "__array__"):
        sources = [sources]
    listed = list(sources)
    named = [source for source in listed if isinstance(source, str | Path)]
    items: dict[str, object] = {uri: uri for uri in (list_photos(named) if named else ())}
    for source in listed:
        if not isinstance(source, str | Path):
            image = load_image(source)
            items.setdefault(image.uri, image)
    folders = [os.path.abspath(source) for source in named if Path(source).is_dir()]  # noqa: PTH100
    return list(items.items()), folders


def _workers() -> int:
    return min(16, os.cpu_count() or 1)


def _grid(photo: _Photo) -> Hashable:
    return photo.prepared.grid if photo.prepared is not None else None


def _readable(
    collection: InstanceCollection,
    items: Sequence[tuple[str, object]],
    notes: Metadata,
    workers: int,
    writer: _Writer,
) -> Iterator[_Photo]:
    """Yield the photos to encode, in order, decoded ahead of time by `workers` threads."""
    ahead = 2 * workers + 2 * collection.encoder.batch_size
    with ThreadPoolExecutor(workers, thread_name_prefix="cwf-read") as pool:
        waiting: deque[Future[_Photo]] = deque()
        try:
            for start in range(0, len(items), _LOOKUP):
                chunk = items[start : start + _LOOKUP]
                known = collection.contents([uri for uri, _ in chunk])
                for uri, source in chunk:
                    waiting.append(
                        pool.submit(
                            _read, collection.encoder, uri, source, notes.of(uri), known.get(uri)
                        )
                    )
                    if len(waiting) > ahead:
                        yield from _sorted_out(waiting.popleft().result(), writer)
            while waiting:
                yield from _sorted_out(waiting.popleft().result(), writer)
        finally:
            pool.shutdown(cancel_futures=True)


def _read(
    encoder: Encoder, uri: str, source: object, metadata: dict[str, Any] | None, known: str | None
) -> _Photo:
    try:
        if isinstance(source, str):
            data = read_bytes(source)
            if hashlib.sha256(data).hexdigest() == known:
                return _Photo(uri, metadata, known=True)
            image = load_image(data, uri=uri, at_least=encoder.at_least)
        else:
            image = load_image(source, uri=uri, at_least=encoder.at_least)
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


def _gone(collection: InstanceCollection, here: set[str], folders: Sequence[str]) -> list[str]:
    under = tuple(uri_of(Path(folder)).rstrip("/") + "/" for folder in folders)
    return [uri for uri in collection.uris() if uri.startswith(under) and uri not in here]


class _Journal:
    """Counts what became of each photo, and writes it to the report file."""

    def __init__(self, report: Report, file: str | Path | None) -> None:
        self.report = report
        self._lines: TextIO | None = None
        if file is not None:
            try:
                self._lines = Path(file).open("w", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise SettingsError(
                    f"cannot write the report {str(file)!r} ({error.strerror}): name a file in a "
                    "folder that exists and can be written"
                ) from error

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            counts = {**vars(self.report), "failed": len(self.report.failed)}
            self._lines.write(json.dumps({"summary": counts}) + "\n")
            self._lines.close()

    def line(self, uri: str, status: str, reason: str = "") -> None:
        """Write what became of one photo."""
        if self._lines is not None:
            entry = {"uri": uri, "status": status} | ({"reason": reason} if reason else {})
            self._lines.write(json.dumps(entry) + "\n")
            self._lines.flush()


class _Writer:
    """Upserts finished batches in a thread of its own, in order, and counts them."""

    def __init__(self, collection: InstanceCollection, journal: _Journal, bar: tqdm) -> None:
        self._collection = collection
        self._journal = journal
        self._report = journal.report
        self._bar = bar
        self._batches: queue.Queue[tuple[list[_Photo], list[Encoding]] | None] = queue.Queue(2)
        self._same: list[_Photo] = []
        self._error: BaseException | None = None
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
        self._report.failed.append((photo.uri, photo.reason))
        self._journal.line(photo.uri, "failed", photo.reason)
        self._step(1)

    def _flush_same(self, most: int) -> None:
        if len(self._same) <= most:
            return
        told = [photo for photo in self._same if photo.metadata is not None]
        changed = self._collection.set_metadata({p.uri: p.metadata or {} for p in told})
        for uri in changed:
            self._journal.line(uri, "updated")
        self._report.updated += len(changed)
        self._report.skipped += len(self._same) - len(changed)
        self._step(len(self._same))
        self._same.clear()

    def _run(self) -> None:
        while (work := self._batches.get()) is not None:
            if self._error is not None:
                continue
            photos, encodings = work
            try:
                self._collection.upsert(encodings, [photo.metadata or {} for photo in photos])
            except BaseException as error:  # handed to the thread that encodes
                self._error = error
                continue
            for photo in photos:
                self._report.updated += photo.known
                self._report.added += not photo.known
                self._journal.line(photo.uri, "updated" if photo.known else "added")
            self._step(len(photos))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _step(self, n: int) -> None:
        report = self._report
        self._bar.set_postfix_str(
            f"{report.added} added, {report.skipped} skipped, {report.updated} updated, "
            f"{len(report.failed)} failed",
            refresh=False,
        )
        self._bar.update(n)
