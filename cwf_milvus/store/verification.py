"""Is every row of a collection there, and whole, and does a search answer as the rows say?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.augmentation import Augmented
from cwf_milvus.store.client import MESSAGE_BYTES
from cwf_milvus.store.ledger import Account, photo_of
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import as_row

_NAMED = 20  # rows of each kind that the text names
_SEARCHED = 1000  # rows whose descriptors are searched for, spread over all
_UNEQUAL = 1e-3  # a cosine that is another
_NOT_FOUND = "found by a scan, not by its key"


@dataclass
class Originals:
    """What became of the files behind the rows.

    Attributes:
        gone: uris of the rows whose file is no more.
        changed: uris of the rows whose file holds other bytes now.
        unreadable: uris of the rows whose file is there, and cannot be read.
        not_local: how many rows are of no local file, and were not looked at.
    """

    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    not_local: int = 0

    @property
    def ok(self) -> bool:
        """Whether every local file is there, and as it was."""
        return not (self.gone or self.changed or self.unreadable)

    def lines(self) -> list[str]:
        """Return what is to be told, and done."""
        told = [
            f"photos: {len(self.gone)} gone, {len(self.changed)} changed, {len(self.unreadable)} "
            f"unreadable; {self.not_local} are no local files"
        ]
        for what in ("gone", "changed", "unreadable"):
            told += _named(what, [repr(uri) for uri in getattr(self, what)])
        if self.gone or self.changed:
            told.append(
                "index the folders where they are now: moved photos keep their rows, changed ones "
                "are encoded again, and --prune removes rows of deleted ones"
            )
        return told


@dataclass
class Verification:
    """What `InstanceCollection.verify` found.

    Attributes:
        rows: photos that are there.
        expected: photos that must be there, as far as it was noted.
        lost: how many rows are missing that were stored, and not removed.
        missing: the uris of those whose names are known: all, but for collections of version 0.1.
        returned: uris of rows that were removed and are there.
        unnoted: how many rows are there of which nothing was noted.
        outdated: uris of rows that lost the last update of their fields: the former ones are back.
        damaged: (uri, reason) of each row that is not whole.
        read: rows that were read whole, and held against their checksums.
        searched: stored descriptors that were searched for.
        index: what is wrong with the vector index.
        encoder: what is wrong with the stored encoder.
        ledger: what is wrong with the receipts.
        class_rows: what is wrong with the rows of class vectors.
        graph: what is wrong with the graph.
        augmented: what is wrong with the augmented descriptors.
        originals: what became of the photos' files; None where they were not looked at.
    """

    rows: int
    expected: int
    lost: int = 0
    missing: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    unnoted: int = 0
    outdated: list[str] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    read: int = 0
    searched: int = 0
    index: list[str] = field(default_factory=list)
    encoder: list[str] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    class_rows: list[str] = field(default_factory=list)
    graph: list[str] = field(default_factory=list)
    augmented: list[str] = field(default_factory=list)
    originals: Originals | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is lost, damaged, or back, and no file that was looked at is another."""
        files_ok = self.originals is None or self.originals.ok
        wrong = (self.lost, self.returned, self.outdated, self.damaged, self._parts)
        return files_ok and not any(wrong)

    @property
    def _parts(self) -> list[str]:
        sides = (*self.ledger, *self.class_rows, *self.graph, *self.augmented)
        return [*self.index, *self.encoder, *sides]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        sample = f", {self.read} of them read whole" if self.read < self.rows else ""
        lines = [f"{self.rows} rows{sample}, {len(self.damaged)} damaged"]
        if self.lost:
            lines.append(
                f"{self.lost} rows are lost: {self.expected} were stored. `cwf-milvus repair`, or "
                "adding the photos again, brings them back; or give them up: remove them, or "
                "verify with accept"
            )
            lines += _named("lost", [repr(uri) for uri in self.missing])
        if self.returned:
            lines.append(
                f"{len(self.returned)} rows are there that were removed: the removal was "
                "interrupted, or the rows came back. Remove them again, or verify with accept to "
                "keep them"
            )
            lines += _named("removed", [repr(uri) for uri in self.returned])
        if self.unnoted:
            lines.append(
                f"{self.unnoted} more rows than were noted: a run was interrupted just after it "
                "stored them" + ("; they are noted now" if self.ok else "")
            )
        if self.outdated:
            lines.append(
                f"{len(self.outdated)} rows have the user's fields of before an update that was "
                "lost. Give it again (repair or index, --metadata), or verify with accept to "
                "keep what is there"
            )
            lines += _named("update lost", [repr(uri) for uri in self.outdated])
        lines += _named("damaged", [f"{uri!r}: {reason}" for uri, reason in self.damaged])
        if self.damaged:
            lines.append("`cwf-milvus repair`, or adding their photos again, writes them anew")
        lines += self._parts
        lines += self.originals.lines() if self.originals is not None else []
        return "\n".join([*lines, "ok" if self.ok else "not ok"])


def verify(collection: PhotoRows, *, accept: bool = False, quick: bool = False) -> Verification:
    """Read every row, and compare it with its checksum, all with the receipts, and some by search.

    Args:
        collection: an open collection.
        accept: take what is there as right from now on.
        quick: hold every photo against its receipt, but read about 1,000 rows alone, spread over
            all, and neither class vectors' rows, graph nor augmented descriptors.

    Raises:
        StoreError: Milvus failed.
    """
    ledger, counted = collection.ledger, collection.sidecar.counted()
    account = ledger.account()  # ahead of the rows, as a receipt follows its row
    owed = {photo for photo in account.stored if account.owes(photo)}
    at_least = counted - len(account.removed)
    outcome = Verification(0, max(len(owed), at_least))
    unnoted: list[str] = []
    n_classes = n_misfound = n_unlike = 0
    is_flat = collection.store.index(collection.name, "descriptor").get("index_type") == "FLAT"
    every = max(1, collection.count() // _SEARCHED)
    uris, at_once = collection.uris(), max(1, MESSAGE_BYTES // collection.layout.row_bytes)
    while part := list(islice(uris, at_once)):
        chosen = [uri for i, uri in enumerate(part, outcome.rows) if not quick or not i % every]
        rows = collection.raw_rows(chosen)
        reasons = {uri: _damage(collection, rows.get(uri)) for uri in chosen}
        outcome.read += len(chosen)
        outcome.damaged += [(uri, reason) for uri, reason in reasons.items() if reason]
        sample = [u for i, u in enumerate(part, outcome.rows) if not i % every]
        sample = [uri for uri in sample if not reasons[uri]]
        if is_flat:  # other indexes are not exact
            outcome.searched += len(sample)
            n_misfound += len(_misfound(collection, [rows[uri] for uri in sample]))
        outcome.rows += len(part)
        n_classes += sum(len(raw["class_ids"]) for raw in rows.values())
        if collection.class_rows is not None and not quick:
            whole = [as_row(collection.layout, rows[u]) for u in chosen if not reasons[u]]
            n_unlike += collection.class_rows.unlike([row.unpack() for row in whole])
        outcome.outdated += [
            uri
            for uri in chosen
            if not reasons[uri] and account.outdates(photo_of(uri), rows[uri]["checksum"])
        ]
        for uri in part:
            photo = photo_of(uri)
            owed.discard(photo)
            if account.removes(photo):
                outcome.returned.append(uri)
            elif photo not in account.stored:
                unnoted.append(uri)
    _look_again(collection, outcome, account, owed, unnoted)
    outcome.lost = max(len(outcome.missing), at_least - outcome.rows)
    outcome.unnoted = max(0, len(unnoted) - max(0, counted))
    outcome.encoder, outcome.ledger = collection.sidecar.verify(), ledger.verify()
    if n_misfound:
        outcome.index.append(
            f"{n_misfound} of {outcome.searched} stored descriptors that were searched for are not "
            "found as the rows say: the vector index is damaged, and `cwf-milvus repair` makes it "
            "anew"
        )
    if not quick:
        if collection.class_rows is not None:
            outcome.class_rows += collection.class_rows.verify(n_classes, n_unlike)
        outcome.graph = collection.graph.verify()
        augmented = Augmented(collection)
        outcome.augmented = augmented.verify() if augmented.exists() else []
    if accept:
        lost, back = map(photo_of, outcome.missing), map(photo_of, outcome.returned)
        ledger.settle([*unnoted, *outcome.returned], lost, back)
        ledger.forget_updates(outcome.outdated)
        collection.sidecar.forget_counts()
    elif outcome.ok:
        with suppress(StoreError):  # a disk may be full, and all is well without
            ledger.settle(unnoted)
            collection.sidecar.forget_counts()
    return outcome


def damaged_rows(collection: PhotoRows, uris: Iterable[str]) -> set[str]:
    """Return those of some stored photos whose rows are not whole.

    Raises:
        StoreError: Milvus failed.
    """
    damaged, asked = set(), iter(uris)
    at_once = max(1, MESSAGE_BYTES // collection.layout.row_bytes)
    while part := list(islice(asked, at_once)):
        rows = collection.raw_rows(part)
        damaged |= {uri for uri, raw in rows.items() if _damage(collection, raw)}
    return damaged


def _look_again(
    collection: PhotoRows,
    outcome: Verification,
    before: Account,
    owed: set[bytes],
    unnoted: list[str],
) -> None:
    """Name the lost, and leave out what others stored or removed while the rows were read."""
    ledger = collection.ledger
    names = ledger.names(owed)
    asked = [*names.values(), *outcome.returned, *unnoted, *(uri for uri, _ in outcome.damaged)]
    asked += outcome.outdated
    account = ledger.account(map(photo_of, asked))
    there = collection.contents([*names.values(), *outcome.returned])
    outcome.missing = sorted(
        uri for photo, uri in names.items() if account.owes(photo) and uri not in there
    )
    outcome.returned = [
        uri for uri in outcome.returned if account.removes(photo_of(uri)) and uri in there
    ]
    outcome.outdated = [  # of a note that stood while the row was read
        uri
        for uri in outcome.outdated
        if before.updated[photo_of(uri)] == account.updated.get(photo_of(uri))
        and account.outdates(photo_of(uri), "")
    ]
    unnoted[:] = [
        uri for uri in unnoted if not {photo_of(uri)} & {*account.stored, *account.removed}
    ]
    outcome.damaged = [
        (uri, reason)
        for uri, reason in outcome.damaged
        if reason != _NOT_FOUND or not account.removes(photo_of(uri))
    ]


def _misfound(collection: PhotoRows, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the uris of rows whose descriptors a search does not find as they are.

    A descriptor is its own nearest one, or as near as it; and a hit's score is the product with
    the descriptor in the hit's row.
    """
    asked = {raw["uri"]: np.asarray(raw["descriptor"], np.float32) for raw in rows}
    asked = {uri: descriptor for uri, descriptor in asked.items() if descriptor.any()}
    for _ in range(2):  # others may write meanwhile
        if not asked:
            break
        answers = collection.search_vectors(np.stack(list(asked.values())), limit=1)
        hits = {uri: hit for uri, answer in zip(asked, answers, strict=True) for hit in answer}
        found = collection.raw_rows([*asked, *(hit.uri for hit in hits.values())])
        wrong = {}
        for uri, descriptor in asked.items():
            hit = hits.get(uri)
            scores = [
                float(descriptor @ np.asarray(found[one]["descriptor"], np.float32))
                for one in (uri, hit.uri if hit else uri)
                if one in found
            ]
            is_right = (
                hit is not None
                and hit.score is not None
                and all(abs(hit.score - score) < _UNEQUAL for score in scores)
            )
            if uri in found and not is_right:
                wrong[uri] = np.asarray(found[uri]["descriptor"], np.float32)
        asked = wrong
    return list(asked)


def _named(what: str, those: Sequence[str]) -> list[str]:
    lines = [f"{what}: {one}" for one in those[:_NAMED]]
    return lines + ([f"and {len(those) - _NAMED} more {what} rows"] if len(those) > _NAMED else [])


def _damage(collection: PhotoRows, raw: Mapping[str, Any] | None) -> str:
    if raw is None:
        return _NOT_FOUND
    if collection.layout.checksum(raw) != raw["checksum"]:
        return "its checksum is another"
    try:
        encoding = as_row(collection.layout, raw).unpack()
    except CollectionError as error:
        return str(error)
    norm = float(np.linalg.norm(encoding.descriptor))
    if not (abs(norm - 1) < 1e-3 or norm == 0):  # a photo without any feature has a zero vector
        return f"its descriptor has length {norm:.4f}"
    if len(encoding.class_vectors) != len(encoding.class_ids):
        return f"{len(encoding.class_vectors)} class vectors for {len(encoding.class_ids)} classes"
    if len(encoding.region_vectors) != len(encoding.region_boxes):
        return (
            f"{len(encoding.region_vectors)} region vectors for {len(encoding.region_boxes)} boxes"
        )
    return ""
