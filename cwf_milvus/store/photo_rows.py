"""`PhotoRows`: the photos of a collection as rows of Milvus, with the encoder that made them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cwf_milvus.encode.encoding import Encoding, Kind, Stored, Vectors
from cwf_milvus.encode.kept import LastUsed
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.store.calibration import model_of
from cwf_milvus.store.class_rows import ClassRows
from cwf_milvus.store.client import MESSAGE_BYTES, METRIC, Store, check_limit
from cwf_milvus.store.graph import Graph
from cwf_milvus.store.index_search import search_params
from cwf_milvus.store.layout import PLAIN_FIELDS, Layout
from cwf_milvus.store.ledger import Ledger
from cwf_milvus.store.names import Names, stored_names
from cwf_milvus.store.refusals import (
    check_encoder,
    check_exists,
    check_schema,
    checked_descriptors,
    checked_index,
)
from cwf_milvus.store.restored import WithEncoder
from cwf_milvus.store.rows import Row, as_row
from cwf_milvus.store.sidecar import Sidecar
from cwf_milvus.store.vectors import VectorReader

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    import torch

    from cwf_milvus.backbones.kept import Runtime
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.encode.saved import Saved

_SHOWN = (*PLAIN_FIELDS, "checksum", "$meta")


class PhotoRows(WithEncoder):
    """A collection's rows: written, read, searched and removed.

    Several threads may use one.

    Args:
        store: the connection.
        name: of the collection, or an alias of it.
        encoder: the encoder to use, in place of restoring it; must be the same.
        weights: the network's checkpoint, for an encoder to be restored.
        device: where the restored network runs.
        runtime: what runs it on a CPU, as in `Encoder`.

    Raises:
        CollectionError: there is no such collection, or it is damaged.
        MismatchError: the encoder is another than the collection's; names what differs.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        encoder: Encoder | None = None,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        runtime: Runtime = "auto",
    ) -> None:
        self.store = store
        self._restore: dict[str, Any] = {"weights": weights, "device": device, "runtime": runtime}
        self._lock = threading.RLock()
        self._absent: set[str] = set()  # photos asked for, not there, and not stored since
        self.seen_fields: set[str] = set()  # of the user's, that some photo has
        check_exists(store, name)
        self.name = name = store.name_of(name)
        self.sidecar = Sidecar(store, name)
        self.ledger = Ledger(store, name, self.sidecar.prefix)
        about = self.sidecar.manifest
        self.layout = Layout.of(about)
        store.ensure_index(name, "descriptor", about.get("index") or checked_index(None, True))
        check_schema(store, name, self.layout)
        if encoder is not None:
            check_encoder(encoder, self.sidecar.manifest, name)
            self.encoder = encoder
        store.load(name)
        self.class_rows = ClassRows(store, name, self.layout.dim) if about["class_rows"] else None
        if self.class_rows is not None:
            self.class_rows.create()
        self._vectors = VectorReader(store, name, self.layout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store.uri!r}, {self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and let go of a ``.db`` for other processes."""
        self.store.close()

    def upsert(
        self,
        encodings: Sequence[Encoding],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Store encoded photos, each in place of the row that its uri may have had.

        All of a batch up to 48 MiB is stored in one call, or none of it.

        Args:
            encodings: from the collection's encoder, of different uris.
            metadata: the user's own fields of each, or None.

        Raises:
            StoreError: Milvus failed; whole calls that were finished stay.
            MismatchError: vectors that are not this collection's encoder's.
            ImageError: a uri that Milvus cannot hold.
            SettingsError: a uri twice, or metadata that Milvus cannot hold.
        """
        told = [None] * len(encodings) if metadata is None else list(metadata)
        rows = [self.layout.pack(e, m) for e, m in zip(encodings, told, strict=True)]
        uris = [row["uri"] for row in rows]
        if len(set(uris)) < len(uris):
            twice = next(uri for uri in uris if uris.count(uri) > 1)
            raise SettingsError(f"{twice!r} comes twice in one batch: give each photo once")
        at_once = max(1, MESSAGE_BYTES // max(1, self._row_bytes(rows)))
        with self._lock:
            self.follow()
            present: Collection[str] = ()
            if self.class_rows is not None:
                # A question that sees every write takes a server 200 ms.
                present = self.known([uri for uri in uris if uri not in self._absent])
            for start in range(0, len(rows), at_once):
                part = slice(start, start + at_once)
                with self.ledger.storing(uris[part]):
                    if self.class_rows is not None:
                        self.class_rows.replace(encodings[part], present)
                    self.store.write(self.name, rows[part])
                self._absent.difference_update(uris[part])

    def follow(self) -> None:
        """Go on with a collection that was dropped and created anew since it was opened.

        Raises:
            CollectionError: it was created with another encoder.
        """
        mark = self.store.mark_of(self.name)
        if not mark or self.sidecar.prefix == f"{mark}/":
            return
        sidecar = Sidecar(self.store, self.name)
        if sidecar.manifest["fingerprint"] != self.sidecar.manifest["fingerprint"]:
            raise CollectionError(
                f"the collection {self.name!r} in {self.store.uri} was dropped, and created anew "
                "with another encoder, since it was opened: open it again"
            )
        self.sidecar, self.ledger = sidecar, Ledger(self.store, self.name, sidecar.prefix)

    def rewrite_encoder(self, encoder: Saved, **about: object) -> None:
        """Go on with another encoder of the same vectors; see `Sidecar.rewrite`."""
        with self._lock:
            self.sidecar.rewrite(encoder, **about)
            self.layout = Layout.of(self.sidecar.manifest)
            self._vectors = VectorReader(self.store, self.name, self.layout)
            self.__dict__.pop("encoder", None)  # restored when it is next needed

    def set_metadata(self, metadata: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Replace the user's fields of stored photos, and return the uris where they changed.

        Args:
            metadata: uri to fields; uris that are not stored are passed over.

        Raises:
            StoreError: Milvus failed.
            SettingsError: metadata that Milvus cannot hold.
        """
        told = dict(zip(self.named(metadata), metadata.values(), strict=True))
        plain = {uri: self.layout.checked_metadata(uri, one) for uri, one in told.items()}
        stored = self.get(list(told))
        changed = [row.uri for row in stored if row is not None and row.metadata != plain[row.uri]]
        with self._lock:
            at_once = max(1, MESSAGE_BYTES // self.layout.row_bytes)
            for start in range(0, len(changed), at_once):
                rows = self.raw_rows(changed[start : start + at_once])
                new = [self.layout.with_metadata(row, told[uri]) for uri, row in rows.items()]
                if new:
                    checksums = {row["uri"]: str(row["checksum"]) for row in new}
                    with self.ledger.updating(checksums, self.checksums):
                        self.store.write(self.name, new)
        return changed

    def checksums(self, uris: Sequence[str]) -> dict[str, str]:
        """Return uri to the checksum of the row, for those photos that are there."""
        found = self.store.fetch(self.name, "uri", uris, ["checksum"])
        return {uri: str(row["checksum"]) for uri, row in found.items()}

    def named(self, names: Names) -> list[str]:
        """Return the uris that names of photos stand for; see `stored_names`."""
        return stored_names(self.store, self.name, names)

    def remove(self, uris: Names) -> int:
        """Delete photos, and return how many of them there were.

        Args:
            uris: one, or several; see `stored_names`.

        Raises:
            StoreError: Milvus failed.
            SettingsError: something that is no name.
        """
        with self._lock:
            asked = self.named(uris)
            there = list(self.known(asked))
            with self.ledger.removing(there, asked):
                if self.class_rows is not None:
                    self.class_rows.delete(there)
                self.store.delete(self.name, "uri", there)
        return len(there)

    def get(
        self, uris: Names, *, vectors: bool = False, filter: str | None = None
    ) -> list[Row | None]:
        """Return the rows of photos, as asked for; None for one that is not there.

        Args:
            uris: of the photos, one or several; see `stored_names`.
            vectors: fetch the vectors too, for `Row.unpack`.
            filter: a Milvus filter expression; photos that it keeps out are not there.

        Raises:
            StoreError: Milvus failed.
            SettingsError: something that is no name.
        """
        asked = self.named(uris)
        fields = [*_SHOWN, *(self.layout.vector_fields if vectors else ())]
        row_bytes = self.layout.row_bytes if vectors else 4096
        found = self.store.fetch(
            self.name, "uri", asked, fields, row_bytes=row_bytes, filter=filter
        )
        return [as_row(self.layout, found[uri]) if uri in found else None for uri in asked]

    def contents(self, uris: Names) -> dict[str, str]:
        """Return uri to SHA-256 of the bytes, in hex, for those photos that are there.

        Args:
            uris: one, or several; see `stored_names`.
        """
        return self.known(self.named(uris))

    def known(self, asked: Sequence[str]) -> dict[str, str]:
        """Return what `contents` does, of uris taken as they are written."""
        found = self.store.fetch(self.name, "uri", asked, ["content"])
        self._absent.update(asked)
        self._absent.difference_update(found)
        return {uri: row["content"] for uri, row in found.items()}

    def uris(self) -> Iterator[str]:
        """Yield the uri of every photo, sorted."""
        for row in self.store.scan(self.name, "uri"):
            yield row["uri"]

    def count(self) -> int:
        """Return the number of photos."""
        return self.store.count(self.name)

    def search_vectors(
        self,
        descriptors: np.ndarray,
        *,
        limit: int,
        filter: str | None = None,
        vectors: bool = False,
        params: Mapping[str, Any] | None = None,
    ) -> list[list[Row]]:
        """Return the photos whose descriptors are nearest, for every query in one call to Milvus.

        Args:
            descriptors: of shape (Q, d), unit.
            limit: rows for each query, at most 16,384.
            filter: a Milvus filter expression on the user's fields or the collection's own.
            vectors: fetch the hits' vectors too, for `Row.unpack`; for several queries in a
                second call, each photo's once.
            params: of the index, such as ``{"ef": 800}``; None for those of `search_params`.

        Returns:
            For each query its rows, best first, with `score`.

        Raises:
            FilterError: Milvus refused the filter.
            StoreError: Milvus failed.
            SettingsError: a limit out of range, or descriptors that are not finite.
            MismatchError: descriptors of another dimension.
        """
        check_limit(limit)
        data = checked_descriptors(descriptors, self.layout.dim, self.name)
        if not len(data):
            return []
        if params is None:
            params = search_params(self._index_type, limit)
        fields = (*_SHOWN, *(self.layout.vector_fields if vectors else ()))
        row_bytes = 1024 + 12 * self.layout.n_classes
        if vectors or self.layout.beside:  # what is beside the metadata comes with it
            row_bytes = self.layout.row_bytes
        # Queries share hits: then each photo's vectors are fetched once. And a server's answer
        # is limited.
        apart = (vectors and len(data) > 1) or len(data) * limit * row_bytes > MESSAGE_BYTES
        answers = self.store.search(
            self.name,
            filter,
            data=list(data),
            anns_field="descriptor",
            limit=limit,
            output_fields=["uri", *(() if apart else fields)],
            search_params={"metric_type": METRIC, "params": dict(params)},
        )
        hits = [[(dict(h["entity"]), float(h["distance"])) for h in answer] for answer in answers]
        if not apart:
            return [[as_row(self.layout, raw, score) for raw, score in answer] for answer in hits]
        wanted = list(dict.fromkeys(raw["uri"] for answer in hits for raw, _ in answer))
        more = self.store.fetch(
            self.name, "uri", wanted, fields, row_bytes=row_bytes, consistency="Session"
        )
        return [
            [
                as_row(self.layout, more[raw["uri"]], score)
                for raw, score in answer
                if raw["uri"] in more  # deleted since, by someone else
            ]
            for answer in hits
        ]

    @cached_property
    def _index_type(self) -> str:
        if self.store.is_lite:
            return "FLAT"
        return str(self.store.index(self.name, "descriptor").get("index_type", "FLAT"))

    def raw_rows(self, uris: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return whole rows as Milvus has them, by uri."""
        fields = [*self.layout.fields, "$meta"]
        return self.store.fetch(self.name, "uri", uris, fields, row_bytes=self.layout.row_bytes)

    @property
    def vector_cache(self) -> LastUsed[Stored]:
        """The vectors of the last searches; see `VectorReader`."""
        return self._vectors.cache

    def vectors(self, wanted: Mapping[str, Vectors], kinds: Collection[Kind]) -> dict[str, Vectors]:
        """Return the stored vectors of photos; see `VectorReader.read`."""
        return self._vectors.read(wanted, kinds)

    def has_keypoints(self) -> bool:
        """Tell whether rows have room for keypoints."""
        return self.layout.n_keypoints > 0

    @cached_property
    def graph(self) -> Graph:
        """The graph of the photos, which `build_graph` makes."""
        return Graph(self.store, self.name)

    def has_graph(self) -> bool:
        """Tell whether there is a graph of the photos that can be searched."""
        return self.graph.ready()

    def _row_bytes(self, rows: Sequence[Mapping[str, Any]]) -> int:
        extra = max((len(str(self.layout.metadata_of(row))) for row in rows), default=0)
        return self.layout.row_bytes + 4 * extra

    def info(self) -> dict[str, Any]:
        """Return what the collection holds and how it was made, as plain JSON values."""
        about = self.sidecar.manifest
        index = self.store.index(self.name, "descriptor")
        model = model_of(self.sidecar)
        return {
            "uri": self.store.uri,
            "collection": self.name,
            "photos": self.count(),
            "photos_in_graph": self.graph.count() if self.has_graph() else 0,
            "milvus": self.store.call("get_server_version"),
            "index": index.get("index_type"),
            "metric": index.get("metric_type"),
            "dim": self.layout.dim,
            "n_classes": self.layout.n_classes,
            "n_regions": self.layout.n_regions,
            "n_keypoints": self.layout.n_keypoints,
            "precision": self.layout.precision,
            "class_rows": self.class_rows is not None,
            "bytes_per_photo": self.layout.row_bytes,
            "whitening": about["whitening"],
            "certainty": None if model is None else model.origin,
            "fingerprint": about["fingerprint"],
            "settings": about["settings"],
        }
