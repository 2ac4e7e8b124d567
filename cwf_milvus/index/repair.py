"""Bringing back what can be brought back of a collection: rows, index, encoder, receipts, graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cwf_milvus.encode.saved import Saved
from cwf_milvus.errors import CollectionError, CwfError, ImageError
from cwf_milvus.index.altogether import PhotosAltogether
from cwf_milvus.index.metadata import Metadata, MetadataSource
from cwf_milvus.photos.sources import read_bytes
from cwf_milvus.store.client import Store
from cwf_milvus.store.lite import checked_path
from cwf_milvus.store.lite_files import damaged_files, held
from cwf_milvus.store.making import remake_index
from cwf_milvus.store.refusals import check_name
from cwf_milvus.store.rows import as_row
from cwf_milvus.store.salvage import Salvage, is_saved_from, salvage
from cwf_milvus.store.verification import Verification, verify

_NAMED = 20  # photos of each kind that the text names
_AT_ONCE = 256
_REMAKING = "graph"


@dataclass
class Repair:
    """What `repair` did.

    Attributes:
        uri: the database that is whole now: the one that was given, or a new one beside it.
        after: what `verify` finds now.
        salvage: what was saved into the new one; None where the files were whole.
        written: uris of photos whose rows were written anew.
        proven: how many of these are, by their former checksums, bit for bit what they were.
        removed: uris of rows that had been removed and were back.
        updated: uris of rows that had lost an update of the user's fields, and have them again.
        unreadable: (uri, reason) of lost or damaged photos that could not be read again.
        made_again: other things that were made anew, a line each.
        left: what could not be mended, a line each.
    """

    uri: str
    after: Verification
    salvage: Salvage | None = None
    written: list[str] = field(default_factory=list)
    proven: int = 0
    removed: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    made_again: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all is as it was."""
        return self.after.ok and not (self.left or self.unreadable)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        saved = None if self.salvage is None else vars(self.salvage)
        plain = {**vars(self), "salvage": saved, "after": self.after.to_dict()}
        return {"ok": self.ok, **plain}

    def __str__(self) -> str:
        lines = []
        if self.salvage is not None:
            lines += [f"damaged: {line}" for line in self.salvage.damaged]
            saved = ", ".join(f"{n} rows of {name}" for name, n in self.salvage.saved.items())
            lines.append(
                f"saved into {self.uri}: {saved or 'by an earlier run'}; the old database is left "
                f"as it was. From now on use --uri {self.uri}, or give it the old one's name"
            )
            lines += [f"lost: {line}" for line in self.salvage.lost]
        lines += [f"made again: {line}" for line in self.made_again]
        lines += _named("written anew", self.written)
        if len(self.written) > self.proven:
            lines.append(
                f"the fields of {len(self.written) - self.proven} of these rows may be lost or "
                "damaged: give --metadata FILE to write them again"
            )
        lines += _named("removed again", self.removed)
        lines += _named("fields written again", self.updated)
        lines += _named("lost", [f"{uri!r}: {reason}" for uri, reason in self.unreadable])
        lines += [f"left: {line}" for line in self.left]
        return "\n".join([*lines, str(self.after)])


def repair(
    uri: str | Path,
    name: str,
    *,
    into: str | Path | None = None,
    token: str | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    metadata: MetadataSource = None,
    progress: bool = True,
) -> Repair:
    """Bring back all that can be of a collection; run again after a kill, it goes on.

    Rows that are damaged or lost are written anew from their photos, rows that were removed and
    came back are removed again, the vector index, the encoder, the class vectors' rows and the
    graph are made anew where they are damaged. A Milvus Lite database with damaged files is left
    as it is: what can be read of it is saved into a new one, which then is mended.

    Args:
        uri: as in `InstanceCollection.open`.
        name: of the collection.
        into: the new database, where one is needed; None for ``NAME.repaired.db`` beside it.
        token: for a server.
        weights: the network's checkpoint, for an encoder that is not the default's.
        device: where the network runs.
        metadata: fields of photos that are written anew, or lost an update of theirs, as in
            `InstanceCollection.add`.
        progress: show progress bars on standard error.

    Raises:
        StoreError: Milvus cannot be reached, failed, or the new database cannot be made.
        CollectionError: there is no such collection, or nothing of it can be saved.
    """
    check_name(name)
    place, saved = str(uri), None
    if not place.startswith(("http://", "https://")):
        place, saved = _whole_place(place, into)
    store = Store(place, token=token)
    try:
        collection = PhotosAltogether(store, name, weights=weights, device=device)
        outcome = _mend(collection, metadata, progress)
        outcome.salvage = saved
        return outcome
    finally:
        store.close()


def _whole_place(uri: str, into: str | Path | None) -> tuple[str, Salvage | None]:
    """Return a database whose files are whole: the given one, or what was saved of it."""
    path = checked_path(uri, make=False)
    with held(path):
        damaged = damaged_files(path, whole=True)
    if not damaged:
        return uri, None
    target = Path(into) if into is not None else Path(path).with_suffix(".repaired.db")
    if is_saved_from(target, path) and not damaged_files(target):
        return str(target), Salvage(str(target), damaged)  # by a run that was killed
    return str(target), salvage(path, target)


def _mend(collection: PhotosAltogether, metadata: MetadataSource, progress: bool) -> Repair:
    collection.end_moves()
    found = verify(collection)
    outcome = Repair(collection.store.uri, found)
    if found.encoder:
        _mend_encoder(collection, outcome)
    if found.index:
        remake_index(collection.store, collection.name, "descriptor")
        outcome.made_again.append("the vector index")
    if found.returned:
        collection.remove(found.returned)
        outcome.removed = found.returned
    todo = [*found.missing, *(uri for uri, _ in found.damaged)]
    for start in range(0, len(todo), _AT_ONCE):
        _write_anew(collection, todo[start : start + _AT_ONCE], metadata, outcome, progress)
    if found.outdated and metadata is not None:
        _tell_again(collection, found.outdated, Metadata.read(metadata), outcome)
    wrong = verify(collection) if todo or found.returned else found
    if collection.class_rows is not None and wrong.class_rows:
        _mend_class_rows(collection)
        outcome.made_again.append(
            "the rows of class vectors, from the vectors in the photos' rows (in 4 or 8 bits)"
        )
    graph = collection.graph
    begun = collection.sidecar.note_of(_REMAKING)  # and its graph was dropped, by a run cut short
    if begun or (graph.exists() and (found.graph or not graph.ready())):
        _mend_graph(collection, progress)
        outcome.made_again.append("the graph")
    after = verify(collection)
    if after.ledger and not (after.lost or after.damaged):
        after = verify(collection, accept=True)
        after = verify(collection)
        outcome.made_again.append("damaged receipts")
    outcome.after = after
    return outcome


def _write_anew(
    collection: PhotosAltogether,
    asked: Sequence[str],
    metadata: MetadataSource,
    outcome: Repair,
    progress: bool,
) -> None:
    """Write rows anew from their photos; where one field was damaged, the others stay."""
    from cwf_milvus.index.indexing import index_photos  # torch takes seconds

    old, photos = collection.raw_rows(asked), {}
    for uri in asked:
        try:
            if read_bytes(uri):
                photos[uri] = uri
        except ImageError as error:
            outcome.unreadable.append((uri, str(error)))
    if not photos:
        return
    with warnings.catch_warnings():  # a metadata file names the other photos too
        warnings.filterwarnings("ignore", "the metadata: rows that name none")
        report = index_photos(collection, photos, metadata=metadata, progress=progress)
    outcome.unreadable += report.failed
    failed = {uri for uri, _ in outcome.unreadable}
    written = [uri for uri in photos if uri not in failed]
    outcome.written += written
    new = collection.raw_rows(written)
    former = [
        one
        for uri in written
        if uri in old and uri in new and (one := _former(collection, old[uri], new))
    ]
    with collection.ledger.storing([row["uri"] for row in former]):
        collection.store.write(collection.name, former)
    outcome.proven += len(former)


def _tell_again(
    collection: PhotosAltogether, uris: Sequence[str], metadata: Metadata, outcome: Repair
) -> None:
    """Write fields again whose last update was lost; the metadata that is given is right."""
    there = {row.uri: row.metadata for row in collection.get(uris) if row is not None}
    told = {uri: new for uri in there if (new := metadata.of(uri)) is not None}
    changed = collection.set_metadata({uri: new.over(there[uri]) for uri, new in told.items()})
    collection.ledger.forget_updates([uri for uri in told if uri not in changed])
    outcome.updated += told


def _former(
    collection: PhotosAltogether, old: Mapping[str, Any], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return a row as its checksum says that it was, where one field alone was damaged."""
    layout = collection.layout
    for name in layout.fields:
        row = {**old, name: new[old["uri"]].get(name)}
        if name != "checksum" and layout.checksum(row) == old["checksum"]:
            return layout.with_metadata(row, layout.metadata_of(row))
    return None


def _mend_encoder(collection: PhotosAltogether, outcome: Repair) -> None:
    """Write the encoder's files again where it is one that ships."""
    from cwf_milvus.encode.encoder import Encoder  # torch takes seconds

    about = collection.sidecar.manifest
    for whitening in ("default", None):
        with suppress(CwfError, TypeError):
            encoder = Encoder(whitening=whitening, **about["settings"])
            if encoder.fingerprint == about["fingerprint"]:
                collection.rewrite_encoder(Saved.from_files(encoder.state()))
                outcome.made_again.append("the encoder, which is one that ships")
                return
    outcome.left.append(
        "the encoder is damaged, and is none that ships: restore a backup, or open the collection "
        "with encoder=, from a folder that Encoder.save wrote"
    )


def _mend_class_rows(collection: PhotosAltogether) -> None:
    assert collection.class_rows is not None
    uris = collection.uris()
    collection.class_rows.drop()
    collection.class_rows.create()
    while part := list(islice(uris, _AT_ONCE)):
        encodings = []
        for raw in collection.raw_rows(part).values():
            with suppress(CollectionError):  # a row that is damaged, and told
                encodings.append(as_row(collection.layout, raw).unpack())
        collection.class_rows.replace(encodings, [])


def _mend_graph(collection: PhotosAltogether, progress: bool) -> None:
    how = collection.sidecar.note_of(_REMAKING)
    if how is None:
        try:
            head = collection.graph.head()
            how = {"neighbours": head.neighbours, "verify": head.verified}
        except CollectionError:  # nothing says how it was made
            how = {"verify": True}
        collection.sidecar.write_note(_REMAKING, how)
    collection.drop_graph()
    collection.build_graph(**how, progress=progress)
    collection.sidecar.write_note(_REMAKING, None)


def _named(what: str, those: Sequence[str]) -> list[str]:
    lines = [f"{what}: {one}" for one in those[:_NAMED]]
    return lines + ([f"and {len(those) - _NAMED} more {what}"] if len(those) > _NAMED else [])
