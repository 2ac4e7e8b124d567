"""The side collection ``<name>_ledger``: a receipt for every photo that must be there.

A receipt is written after its row, so that a missing row with a receipt was lost, whoever wrote it
and however often. A removal is noted before the row is deleted, closed after, and then kept without
the photo's name: a row that is there all the same has come back, or its removal was interrupted.
Receipts and removals are rows of different keys and have their times, so that neither of two
writers undoes what the other noted: one that stored a photo before it was removed owes no row.

An update of the user's fields is noted with the checksum that the row has from then on: a row that
is whole, and has another, has lost it. Whoever stores the photo again forgets that first, and who
noted it looks whether the row still has it, so that no loss is told where two updated at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pymilvus import CollectionSchema, DataType, MilvusClient

from cwf_milvus.store.client import Store
from cwf_milvus.store.layout import URI_BYTES
from cwf_milvus.store.packing import Text
from cwf_milvus.store.side import SideCollection

_AT_ONCE = 1000
_KINDS = _STORED, _REMOVED, _UPDATED = "stored/", "removed/", "updated/"
_NEVER = 2**63 - 1  # when a removal ended that has not


@dataclass
class Account:
    """What a ledger says, by photo (`photo_of`).

    Attributes:
        stored: to the time when the photo was about to be stored.
        removed: to the times when its last removal began and ended.
        updated: to the checksum that the row got when its fields were last replaced, and when.
    """

    stored: dict[bytes, int] = field(default_factory=dict)
    removed: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    updated: dict[bytes, tuple[str, int]] = field(default_factory=dict)

    def owes(self, photo: bytes) -> bool:
        """Tell whether there must be a row of a photo."""
        _, ended = self.removed.get(photo, (0, 0))
        return self.stored.get(photo, 0) > ended

    def removes(self, photo: bytes) -> bool:
        """Tell whether there must be no row of a photo."""
        began, _ = self.removed.get(photo, (0, 0))
        return began > self.stored.get(photo, 0)

    def outdates(self, photo: bytes, checksum: str) -> bool:
        """Tell whether a whole row is not the one that the last update of its fields left."""
        noted, began = self.updated.get(photo, ("", 0))
        return bool(noted) and noted != checksum and began >= self.stored.get(photo, 0)


class Ledger(SideCollection):
    """The receipts of a collection's photos.

    Args:
        store: the connection.
        collection: the main collection's name.
        prefix: of its keys, `Sidecar.prefix`: receipts of an earlier life of the name do not count.
    """

    suffix = "ledger"

    def __init__(self, store: Store, collection: str, prefix: str) -> None:
        super().__init__(store, collection)
        self._prefix = prefix
        self._is_open = False

    def schema(self) -> CollectionSchema:
        """Return its fields."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=128)
        schema.add_field("uri", DataType.VARCHAR, max_length=URI_BYTES)
        schema.add_field("began", DataType.INT64)
        schema.add_field("ended", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        return schema

    def create(self) -> None:
        """Load it, made where there is none; once, as every write asks for it."""
        if not self._is_open:
            super().create()
            self._is_open = True

    @contextmanager
    def storing(self, uris: Sequence[str]) -> Iterator[None]:
        """Forget removals and updates of photos, have them stored within, and give receipts."""
        self.create()
        self._forget(uris, (_REMOVED, _UPDATED))
        began = time.time_ns()
        yield
        self._give(uris, began)

    @contextmanager
    def updating(
        self, checksums: Mapping[str, str], look: Callable[[Sequence[str]], Mapping[str, str]]
    ) -> Iterator[None]:
        """Have rows stored within as `storing` does, and note what they are from then on.

        Args:
            checksums: uri to the new row's.
            look: returns the same of rows that are there, whoever wrote them last.
        """
        with self.storing(list(checksums)):
            yield
        now = time.time_ns()
        noted = [
            (self._key(_UPDATED, photo_of(u)), told, now, now) for u, told in checksums.items()
        ]
        self._write(noted)
        there = look(list(checksums))
        self._forget([uri for uri in checksums if there.get(uri) != checksums[uri]], (_UPDATED,))

    def forget_updates(self, uris: Sequence[str]) -> None:
        """Take the fields of photos as they are for right."""
        self.create()
        self._forget(uris, (_UPDATED,))

    @contextmanager
    def removing(self, there: Sequence[str], asked: Sequence[str]) -> Iterator[None]:
        """Note a removal, have the rows deleted within, and close it.

        Args:
            there: photos that have rows.
            asked: these, and photos without: their receipts are given back too.
        """
        self.create()
        others = {self._key(_STORED, photo_of(uri)): uri for uri in set(asked) - set(there)}
        lost = self.store.fetch(self.name, "key", list(others), [])
        photos = [photo_of(uri) for uri in (*there, *(others[key] for key in lost))]
        began = time.time_ns()
        self._note(photos, began, _NEVER)
        yield
        self._note(photos, began, time.time_ns())
        told = [self._key(kind, photo) for photo in photos for kind in (_STORED, _UPDATED)]
        self.store.delete(self.name, "key", told)

    def account(self, photos: Iterable[bytes] | None = None) -> Account:
        """Return what it says of some photos, or all; damaged receipts count for nothing."""
        self.create()
        if photos is None:
            rows: Iterable[Mapping[str, Any]] = self.store.scan(self.name, "key", _FIELDS)
        else:
            keys = [self._key(kind, photo) for photo in photos for kind in _KINDS]
            found = self.store.fetch(self.name, "key", keys, _FIELDS, row_bytes=2 * URI_BYTES)
            rows = found.values()
        account = Account()
        for row in rows:
            kind, photo = self._parsed(row)
            if kind == _STORED:
                account.stored[photo] = int(row["began"])
            elif kind == _REMOVED:
                account.removed[photo] = int(row["began"]), int(row["ended"])
            elif kind == _UPDATED:
                account.updated[photo] = str(row["uri"]), int(row["began"])
        return account

    def names(self, photos: Iterable[bytes]) -> dict[bytes, str]:
        """Return the uris of photos that have a receipt."""
        keys = [self._key(_STORED, photo) for photo in photos]
        rows = self.store.fetch(self.name, "key", keys, _FIELDS, row_bytes=2 * URI_BYTES)
        return {self._parsed(row)[1]: row["uri"] for row in rows.values()}

    def settle(
        self, there: Sequence[str], lost: Iterable[bytes] = (), back: Iterable[bytes] = ()
    ) -> None:
        """Take rows that are there, and those that are not, for right from now on.

        Damaged receipts go.

        Args:
            there: photos without a receipt, which get one.
            lost: photos without a row, whose receipts go.
            back: photos whose removal is forgotten.
        """
        self.create()
        gone = [self._key(_STORED, photo) for photo in lost]
        gone += [self._key(_REMOVED, photo) for photo in back]
        self.store.delete(self.name, "key", [*gone, *self._damaged()])
        self._give(there, time.time_ns())

    def is_update(self, key: str) -> bool:
        """Tell whether a key is that of an update's note."""
        return key.removeprefix(self._prefix).startswith(_UPDATED)

    def verify(self) -> list[str]:
        """Return what is wrong with it: receipts that are damaged."""
        self.create()
        n = len(self._damaged())
        return [f"{n} receipts in {self.name!r} are damaged: verify with accept"] if n else []

    def _damaged(self) -> list[str]:
        rows = self.store.scan(self.name, "key", _FIELDS)
        ours = (row for row in rows if row["key"].startswith(self._prefix))
        return [row["key"] for row in ours if not self._parsed(row)[0]]

    def _forget(self, uris: Sequence[str], kinds: Sequence[str]) -> None:
        keys = [self._key(kind, photo_of(uri)) for uri in uris for kind in kinds]
        past = self.store.fetch_vectors(self.name, "key", keys, [], row_bytes=256) if keys else {}
        if past:
            self.store.delete(self.name, "key", list(past))

    def _give(self, uris: Sequence[str], began: int) -> None:
        self._write([(self._key(_STORED, photo_of(uri)), uri, began, began) for uri in uris])

    def _note(self, photos: Sequence[bytes], began: int, ended: int) -> None:
        self._write([(self._key(_REMOVED, photo), "", began, ended) for photo in photos])

    def _write(self, entries: Sequence[tuple[str, str, int, int]]) -> None:
        rows = [
            {"key": key, "uri": Text(uri), "began": began, "ended": ended, "vector": [0.0, 0.0]}
            for key, uri, began, ended in {entry[0]: entry for entry in entries}.values()
        ]
        for start in range(0, len(rows), _AT_ONCE):
            self.store.write(self.name, rows[start : start + _AT_ONCE])

    def _key(self, kind: str, photo: bytes) -> str:
        return f"{self._prefix}{kind}{photo.hex()}"

    def _parsed(self, row: Mapping[str, Any]) -> tuple[str, bytes]:
        """Return kind and photo of a row; ("", b"") for one that is not ours, or damaged."""
        key = str(row["key"]).removeprefix(self._prefix)
        kind = next((kind for kind in _KINDS if key.startswith(kind)), "")
        try:
            photo = bytes.fromhex(key.removeprefix(kind))
        except ValueError:
            return "", b""
        is_whole = kind in (_REMOVED, _UPDATED) or (
            kind == _STORED and photo == photo_of(str(row["uri"]))
        )
        return (kind, photo) if is_whole and str(row["key"]).startswith(self._prefix) else ("", b"")


_FIELDS = ("uri", "began", "ended")


def photo_of(uri: str) -> bytes:
    """Return what a ledger knows a photo by: SHA-256 of its uri."""
    return hashlib.sha256(uri.encode(errors="surrogatepass")).digest()
