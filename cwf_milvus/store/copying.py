"""A whole collection copied row by row, without its photos: to another Milvus, or another name.

The copy bears a mark that follows from the one it is made of, so that the same call knows its own
unfinished work and goes on with it: rows that are there and alike are not written again. Receipts
come ahead of the rows that they are for; until the copy is finished, `verify` calls the rest lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pymilvus import DataType

from cwf_milvus.errors import CollectionError, SettingsError, StoreError
from cwf_milvus.store.augmentation import Augmented
from cwf_milvus.store.client import MESSAGE_BYTES, Store
from cwf_milvus.store.layout import METADATA_BYTES
from cwf_milvus.store.packing import FIELD_BYTES, Text
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.refusals import check_name, checked_index
from cwf_milvus.store.sidecar import MANIFEST, Sidecar

_NOTE = "copy"
_AT_ONCE = 1000  # keys that are compared in one call


@dataclass
class Copied:
    """What `copy_collection` did.

    Attributes:
        rows: photos that were written now.
        there: photos that an earlier run had copied.
        damaged: uris of rows that are not whole, and were copied as they are.
        left_out: what the other Milvus cannot hold, a line each.
    """

    rows: int = 0
    there: int = 0
    damaged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.rows} photos copied, {self.there} were there"]
        lines += [f"damaged, copied as it is: {uri!r}" for uri in self.damaged[:20]]
        return "\n".join([*lines, *(f"left out: {one}" for one in self.left_out)])


def copy_collection(
    source: str | Path,
    name: str,
    target: str | Path,
    new_name: str | None = None,
    *,
    token: str | None = None,
    target_token: str | None = None,
    index: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy a collection: rows, fields, encoder, calibration, receipts, graph and all.

    A call that was killed is made again and goes on. Nobody should write to the collection
    meanwhile. The original stays; drop it once the copy has been verified.

    Args:
        source: a ``.db`` path, or a server's address.
        name: of the collection there.
        target: where to; may be the same Milvus.
        new_name: what it is called there; None for the same name.
        token: for the source, where it is a server.
        target_token: for the target; None for the same.
        index: of the descriptor, for a server; None for the one it has, and on Lite for FLAT.
        progress: called with (photos done, photos in all).

    Raises:
        CollectionError: there is no such collection, or another one has the new name.
        SettingsError: a name or index that cannot be used, or a copy onto itself.
        StoreError: Milvus failed; call again to go on.
    """
    new_name = name if new_name is None else new_name
    check_name(name)
    check_name(new_name)
    here = Store(source, token=token)
    try:
        rows = PhotoRows(here, name)
        there = Store(target, token=target_token or token, make=True)
        try:
            is_there = there.call("has_collection", new_name)
            if there.place == here.place and is_there and there.name_of(new_name) == rows.name:
                raise SettingsError(
                    f"{new_name!r} in {there.uri} is the collection itself: give the copy another "
                    "name, or another Milvus"
                )
            kind = rows.sidecar.manifest.get("index") if index is None else index
            kind = checked_index(None if index is None and there.is_lite else kind, there.is_lite)
            return _Copy(rows, there, new_name, kind).run(progress)
        finally:
            there.close()
    finally:
        here.close()


class _Copy:
    """One copy on its way."""

    def __init__(self, rows: PhotoRows, target: Store, name: str, index: Mapping[str, Any]) -> None:
        self._rows, self._target, self._name, self._index = rows, target, name, dict(index)
        told = f"{rows.sidecar.prefix}{rows.sidecar.manifest['fingerprint']}/{rows.name}/{name}"
        self._mark = hashlib.sha256(told.encode()).hexdigest()[:32]
        self._done = Copied()

    def run(self, progress: Callable[[int, int], None] | None) -> Copied:
        target, name = self._target, self._name
        if target.call("has_collection", name):
            name = self._name = target.name_of(name)
            if target.mark_of(name) != self._mark:
                raise CollectionError(
                    f"the collection {name!r} is in {target.uri} already, and is no copy of "
                    f"{self._rows.name!r}: give the copy another name, or drop that one first"
                )
            if _is_finished(Sidecar(target, name)):
                return self._nothing_to_do()
        self._copy_encoder()
        if not target.call("has_collection", name):
            layout = self._rows.layout
            target.create(name, layout.schema(), "descriptor", self._index, mark=self._mark)
        made = PhotoRows(target, name)
        self._copy_ledger(made)
        self._copy_rows(made, progress)
        self._copy_class_rows(made)
        self._copy_augmented(made)
        self._copy_graph(made)
        made.sidecar.write_note(_NOTE, {"finished": True})
        return self._done

    def _nothing_to_do(self) -> Copied:
        """Return what is said of a finished copy: that all is there, if it is."""
        made = PhotoRows(self._target, self._name)
        for batch in self._pair(made.store, self._rows.name, made.name, "uri", "checksum").unlike():
            raise CollectionError(
                f"the copy {made.name!r} in {made.store.uri} was finished, and has since become "
                f"another than {self._rows.name!r} (of {batch[0]!r}, for one): drop it to copy "
                "anew, or give the copy another name"
            )
        return Copied(there=made.count())

    def _copy_encoder(self) -> None:
        """Write what lies beside the rows, the manifest last, as `Sidecar.create` does."""
        sidecar, name = self._rows.sidecar, f"{self._name}_{Sidecar.suffix}"
        self._target.ensure(name, sidecar.schema(), "vector", {"index_type": "FLAT"})
        keys = [row["key"] for row in sidecar.store.scan(sidecar.name, "key")]
        ours = [key for key in keys if key.startswith(sidecar.prefix)]
        ours.sort(key=lambda key: key == f"{sidecar.prefix}{MANIFEST}")
        for key in ours:
            rest = key.removeprefix(sidecar.prefix)
            if rest == f"note/{_NOTE}":  # of an earlier copy, that this one is made of
                continue
            found = sidecar.store.fetch(
                sidecar.name, "key", [key], ["value"], row_bytes=FIELD_BYTES
            )
            value = found[key]["value"]
            if rest == MANIFEST:
                value = json.dumps({**json.loads(value), "index": self._index})
            row = {"key": f"{self._mark}/{rest}", "value": Text(value), "vector": [0.0, 0.0]}
            self._target.write(name, [row])

    def _copy_ledger(self, made: PhotoRows) -> None:
        """Give the copy's photos the receipts that the originals have, and no others."""
        here, there, mark = self._rows.ledger, made.ledger, f"{self._mark}/"
        here.create()
        there.create()
        receipts: dict[str, str] = {}  # new key to old; those of an earlier life of the name stay
        for row in here.store.scan(here.name, "key"):
            ours = row["key"].startswith(self._rows.sidecar.prefix)
            if ours and not here.is_update(row["key"]):  # which may be later than the row's copy
                receipts[mark + row["key"].removeprefix(self._rows.sidecar.prefix)] = row["key"]
        stale = [row["key"] for row in there.store.scan(there.name, "key")]
        there.store.delete(there.name, "key", [key for key in stale if key not in receipts])
        new, fields = iter(receipts), ["uri", "began", "ended", "vector"]
        while part := list(islice(new, _AT_ONCE)):
            old = [receipts[key] for key in part]
            found = here.store.fetch(here.name, "key", old, fields, row_bytes=8192)
            rows = [
                {**found[receipts[key]], "key": key, "uri": Text(found[receipts[key]]["uri"])}
                for key in part
                if receipts[key] in found
            ]
            there.store.write(there.name, rows)

    def _copy_rows(self, made: PhotoRows, progress: Callable[[int, int], None] | None) -> None:
        rows, layout, total = self._rows, self._rows.layout, self._rows.count()
        at_once = max(1, MESSAGE_BYTES // (layout.row_bytes + 4 * METADATA_BYTES))
        pair = self._pair(made.store, rows.name, made.name, "uri", "checksum")
        before = made.count()
        for batch in pair.unlike():
            for start in range(0, len(batch), at_once):
                raw = rows.raw_rows(batch[start : start + at_once])
                fresh = [layout.with_metadata(one, layout.metadata_of(one)) for one in raw.values()]
                for one in fresh:
                    told = raw[one["uri"]]["checksum"]
                    if one["checksum"] != told:
                        self._done.damaged.append(one["uri"])
                        one["checksum"] = Text(told)
                made.store.write(made.name, fresh)
                self._done.rows += len(fresh)
                if progress is not None:
                    progress(min(total, before + self._done.rows), total)
        pair.drop_others()
        self._done.there = max(0, made.count() - self._done.rows)
        if progress is not None:
            progress(total, total)

    def _copy_class_rows(self, made: PhotoRows) -> None:
        here, there = self._rows.class_rows, made.class_rows
        if here is not None and there is not None:
            told = ("uri", "class_id", "rank", "vector")
            self._pair(made.store, here.name, there.name, "key", *told).copy()

    def _copy_augmented(self, made: PhotoRows) -> None:
        here, there = Augmented(self._rows), Augmented(made)
        if here.exists():
            here.store.load(here.name)
            there.create()
            told = ("checksum", "_augmented_by", "_reach")
            self._pair(made.store, here.name, there.name, "uri", *told).copy()

    def _copy_graph(self, made: PhotoRows) -> None:
        here, there = self._rows.graph, made.graph
        if not here.exists():
            return
        try:
            there.create()
        except StoreError as error:
            if made.store.call("has_collection", there.name):
                raise
            self._done.left_out.append(f"the graph: {error}")  # an old server, which lacks vectors
            return
        here.store.load(here.name)
        self._pair(made.store, here.name, there.name, "uri", "checksum").copy()

    def _pair(self, target: Store, name: str, new_name: str, key: str, *told: str) -> _Pair:
        row_bytes = 4 * METADATA_BYTES + 16 * self._rows.layout.dim
        return _Pair(self._rows.store, name, target, new_name, key, told, row_bytes)


@dataclass(frozen=True)
class _Pair:
    """A collection of Milvus, and the one that it is copied into.

    Attributes:
        source: where it is.
        name: what it is called there.
        target: where it goes.
        new_name: what it is called there.
        key: the primary key's field.
        told: the fields by which two rows of one key are told apart.
        row_bytes: about how large a row is.
    """

    source: Store
    name: str
    target: Store
    new_name: str
    key: str
    told: tuple[str, ...]
    row_bytes: int = 8192

    def copy(self) -> None:
        """Copy the rows that lack or are others there, and drop those that are gone."""
        about = self.source.call("describe_collection", self.name)
        texts = [one["name"] for one in about["fields"] if one["type"] == DataType.VARCHAR]
        fields = [one["name"] for one in about["fields"] if one["name"] != self.key]
        fields += ["$meta"] if about.get("enable_dynamic_field") else []
        at_once = max(1, MESSAGE_BYTES // self.row_bytes)
        for batch in self.unlike():
            for start in range(0, len(batch), at_once):
                part = batch[start : start + at_once]
                found = self.source.fetch(
                    self.name, self.key, part, fields, row_bytes=self.row_bytes
                )
                rows = [
                    {**row, **{name: Text(row[name]) for name in texts}} for row in found.values()
                ]
                self.target.write(self.new_name, rows)
        self.drop_others()

    def unlike(self) -> Iterator[list[str]]:
        """Yield the keys, some at a time, whose rows lack in the target, or are others there."""
        is_empty = not self.target.count(self.new_name)
        keys = (row[self.key] for row in self.source.scan(self.name, self.key))
        while part := list(islice(keys, _AT_ONCE)):
            if is_empty:
                yield part
                continue
            here, there = (
                store.fetch(name, self.key, part, self.told, row_bytes=self.row_bytes)
                for store, name in ((self.source, self.name), (self.target, self.new_name))
            )
            unlike = [one for one in part if one in here and here[one] != there.get(one)]
            if unlike:
                yield unlike

    def drop_others(self) -> None:
        """Delete rows that the source has lost since an earlier run copied them."""
        if self.target.count(self.new_name) <= self.source.count(self.name):
            return
        keys = (row[self.key] for row in self.target.scan(self.new_name, self.key))
        while part := list(islice(keys, _AT_ONCE)):
            gone = set(part) - self.source.fetch(self.name, self.key, part, []).keys()
            self.target.delete(self.new_name, self.key, list(gone))


def _is_finished(sidecar: Sidecar) -> bool:
    return bool((sidecar.note_of(_NOTE) or {}).get("finished"))
