"""Finished batches into a collection, in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.views import Prepared
from cwf_milvus.index.report import Journal
from cwf_milvus.store.moves import MovableRows
from cwf_milvus.store.told import Told

LOOKUP = 256
"""Photos whose stored content is asked for in one call."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo on its way through a run."""

    uri: str
    metadata: Told | None
    prepared: Prepared | None = None
    known: bool = False
    moved: bool = False
    reason: str = ""


class Writer:
    """Upserts finished batches in a thread of its own, in order, and counts them."""

    def __init__(
        self, collection: MovableRows, journal: Journal, bar: tqdm, replace_metadata: bool
    ) -> None:
        self._collection = collection
        self._journal = journal
        self._report = journal.report
        self._bar = bar
        self._replaces = replace_metadata
        self._batches: queue.Queue[tuple[list[Photo], list[Encoding]] | None] = queue.Queue(2)
        self._same: list[Photo] = []
        self._error: BaseException | None = None
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="cwf-write", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._batches.put(None)
        self._thread.join()
        if kind is None:
            self._flush_same(0)
            self._check()

    def put(self, photos: list[Photo], encodings: list[Encoding]) -> None:
        """Hand over a batch; waits while two are in hand."""
        self._check()
        self._batches.put((photos, encodings))

    def same(self, photo: Photo) -> None:
        """Note a photo that is stored with the same bytes; its metadata may have changed."""
        self._same.append(photo)
        self._flush_same(LOOKUP - 1)

    def failed(self, photo: Photo) -> None:
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

    def _store(self, photos: list[Photo], encodings: list[Encoding]) -> None:
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
