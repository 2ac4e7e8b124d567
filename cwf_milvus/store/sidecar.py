"""The side collection ``<name>_encoder``: the encoder that a collection comes with.

Every creation writes under its own mark, which the main collection then bears as a property: of two
programs that create one name at once neither touches what the other wrote, and an interrupted
creation leaves rows that nobody reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from pymilvus import CollectionSchema, DataType, MilvusClient

from cwf_milvus.errors import CollectionError
from cwf_milvus.store.client import Store, new_mark
from cwf_milvus.store.packing import FIELD_BYTES, Text
from cwf_milvus.store.side import SideCollection

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.encode.saved import Saved

FORMAT = 3
# In 1 vectors are float16, and the manifest does not say so; in 1 and 2 there is no mark.
_READ = (1, 2, FORMAT)
_CHUNK_BYTES = 45_000  # 60,000 characters of base64
_FILE_BYTES = 2**31  # of an encoder's file, each chunk of which is asked for by name
MANIFEST = "manifest"
_COUNTS = "ledger/"
_NOTE = "note/"
_VECTOR = {"vector": [0.0, 0.0]}  # Milvus has no collection without a vector


class Sidecar(SideCollection):
    """What a collection keeps beside its rows.

    Args:
        store: the connection.
        collection: the main collection's name.

    Attributes:
        prefix: what the keys of this collection's rows begin with.
        manifest: how the collection was made, plain JSON values.

    Raises:
        CollectionError: there is none, it is damaged, or of a newer version.
    """

    suffix = "encoder"

    def __init__(self, store: Store, collection: str) -> None:
        super().__init__(store, collection)
        if not self.exists():
            raise CollectionError(
                f"the collection {collection!r} in {store.uri} was not made by cwf-milvus, or has "
                f"lost its encoder: there is no {self.name!r} beside it"
            )
        store.load(self.name)
        self._notes: dict[str, dict[str, Any] | None] = {}
        self.prefix = self._found_prefix(store.mark_of(collection))
        self.manifest = self._read_manifest()

    @classmethod
    def create(  # type: ignore[override]  # ahead of the collection that it is for
        cls, store: Store, collection: str, encoder: Encoder, **about: object
    ) -> str:
        """Write what a collection that is about to be made keeps; the manifest last.

        Args:
            store: the connection.
            collection: the main collection's name.
            encoder: what to keep.
            about: more to keep in the manifest, plain JSON values.

        Returns:
            The mark to create the main collection with.

        Raises:
            StoreError: Milvus failed.
            WhiteningError: the encoder has not been fitted.
        """
        state = encoder.state()
        name = f"{collection}_{cls.suffix}"
        mark = new_mark()
        store.ensure(name, sidecar_schema(), "vector", {"index_type": "FLAT"})
        manifest = {
            "format": FORMAT,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            "n_classes": encoder.n_classes,
            "n_regions": encoder.n_regions,
            "n_keypoints": encoder.n_keypoints,
            "whitening": encoder.whitening_origin,
            "settings": encoder.settings.to_dict(),
            "files": {
                file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for file, data in state.items()
            },
            **about,
        }
        for file, data in state.items():
            cls._write_file(store, name, f"{mark}/{file}", data)
        store.write(name, [_entry(f"{mark}/{MANIFEST}", manifest)])
        return mark

    @classmethod
    def discard(cls, store: Store, collection: str, prefix: str) -> None:
        """Delete what a creation wrote; the side collection too, where that was all.

        Args:
            store: the connection.
            collection: the main collection's name.
            prefix: of its keys; "" for all.

        Raises:
            StoreError: Milvus failed.
        """
        name = f"{collection}_{cls.suffix}"
        keys = [row["key"] for row in store.scan(name, "key")]
        ours = [key for key in keys if key.startswith(prefix)]
        store.delete(name, "key", ours)
        if len(ours) == len(keys):
            store.call("drop_collection", name)

    def schema(self) -> CollectionSchema:
        """Return its fields: texts by key."""
        return sidecar_schema()

    def drop(self) -> bool:
        """Delete what this collection keeps; the side collection too, where that was all."""
        self.discard(self.store, self.collection, self.prefix)
        return True

    def state(self) -> dict[str, bytes]:
        """Return the encoder's state, checked against its checksums.

        Raises:
            CollectionError: a part is missing or damaged; names it.
        """
        return {file: self._read_file(file, known) for file, known in self._files().items()}

    def note_of(self, name: str) -> dict[str, Any] | None:
        """Return what was noted under a name, read once; None where nothing was.

        Raises:
            CollectionError: it is damaged.
        """
        if name not in self._notes:
            key = f"{self.prefix}{_NOTE}{name}"
            found = self.store.fetch(self.name, "key", [key], ["value"])
            self._notes[name] = self._parsed(key, found) if found else None
        return self._notes[name]

    def write_note(self, name: str, value: dict[str, Any] | None) -> None:
        """Note plain JSON values under a name, in place of what was there; None for nothing.

        Raises:
            StoreError: Milvus failed.
        """
        key = f"{self.prefix}{_NOTE}{name}"
        if value is None:
            self.store.delete(self.name, "key", [key])
        else:
            self.store.write(self.name, [_entry(key, value)])
        self._notes[name] = value

    def rewrite(self, encoder: Saved, **about: object) -> None:
        """Keep another encoder in place of this one, the manifest last and at once.

        Args:
            encoder: of the same vectors, since those are stored.
            about: what changes in the manifest beside, plain JSON values.

        Raises:
            StoreError: Milvus failed; what was there before is still there.
        """
        files, state = self._files(), encoder.to_files()
        for file, data in state.items():
            digest = hashlib.sha256(data).hexdigest()
            known = files.get(file)
            if known is None or known["sha256"] != digest or not self._is_whole(file, known):
                place = f"{file}@{digest[:16]}"  # the one before stays until the manifest changes
                files[file] = {"bytes": len(data), "sha256": digest, "place": place}
                self._write_file(self.store, self.name, f"{self.prefix}{place}", data)
        manifest = {
            **self.manifest,
            "fingerprint": encoder.fingerprint,
            "settings": encoder.settings.to_dict(),
            "files": files,
            **about,
        }
        self.store.write(self.name, [_entry(f"{self.prefix}{MANIFEST}", manifest)])
        self.manifest = manifest

    @staticmethod
    def _write_file(store: Store, name: str, key: str, data: bytes) -> None:
        for i, start in enumerate(range(0, len(data), _CHUNK_BYTES)):
            chunk = base64.b64encode(data[start : start + _CHUNK_BYTES]).decode()
            store.write(name, [{"key": f"{key}/{i}", "value": Text(chunk), **_VECTOR}])

    def verify(self) -> list[str]:
        """Return what is wrong with each damaged part of the encoder."""
        wrong = []
        for file, known in self._files().items():
            try:
                self._read_file(file, known)
            except CollectionError as error:
                wrong.append(str(error))
        return wrong

    def _is_whole(self, file: str, known: dict[str, Any]) -> bool:
        try:
            self._read_file(file, known)
        except CollectionError:
            return False
        return True

    def counted(self) -> int:
        """Return how many rows writers of version 0.1 counted; 0 where there were none.

        Each had an entry of its own, so the sum may be wrong either way: `Ledger` has receipts.
        """
        entries = self._counts()
        found = self.store.fetch(self.name, "key", entries, ["value"])
        return sum(self._parsed(key, found)["rows"] for key in entries)

    def forget_counts(self) -> None:
        """Delete the entries of `counted`, once every row has its receipt."""
        self.store.delete(self.name, "key", self._counts())

    def _counts(self) -> list[str]:
        keys = [row["key"] for row in self.store.scan(self.name, "key")]
        return [key for key in keys if key.startswith(f"{self.prefix}{_COUNTS}")]

    def _found_prefix(self, mark: str) -> str:
        """Return what the keys begin with: the main collection's mark, if that is told.

        Collections of formats 1 and 2 have none; one that was copied by another program may have
        lost it, and then there must be one manifest alone.
        """
        if mark:
            return f"{mark}/"
        keys = [row["key"] for row in self.store.scan(self.name, "key")]
        prefixes = [key.removesuffix(MANIFEST) for key in keys if key.endswith(MANIFEST)]
        if len(prefixes) > 1 and "" not in prefixes:
            raise CollectionError(
                f"{self.name!r} in {self.store.uri} holds {len(prefixes)} encoders, and the "
                f"collection {self.collection!r} does not say which is its own: {_AGAIN}"
            )
        return prefixes[0] if len(prefixes) == 1 else ""

    def _files(self) -> dict[str, dict[str, Any]]:
        return dict(self.manifest["files"])

    def _read_manifest(self) -> dict[str, Any]:
        key = f"{self.prefix}{MANIFEST}"
        manifest = self._parsed(key, self.store.fetch(self.name, "key", [key], ["value"]))
        if manifest.get("format") not in _READ:
            raise CollectionError(
                f"{self.name!r} in {self.store.uri} is of format {manifest.get('format')!r}, this "
                f"version reads up to {FORMAT}: update cwf-milvus"
            )
        try:
            for known in manifest["files"].values():
                if not 0 <= known["bytes"] <= _FILE_BYTES or not isinstance(known["sha256"], str):
                    raise ValueError(f"a file of {known['bytes']!r:.50} bytes")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CollectionError(
                f"the encoder in {self.name!r} of {self.store.uri} is damaged ({error!r:.200}): "
                f"{_AGAIN}"
            ) from error
        return manifest

    def _read_file(self, file: str, known: dict[str, Any]) -> bytes:
        n_chunks = -(-int(known["bytes"]) // _CHUNK_BYTES)
        place = known.get("place", file)
        keys = [f"{self.prefix}{place}/{i}" for i in range(n_chunks)]
        rows = self.store.fetch(self.name, "key", keys, ["value"], row_bytes=FIELD_BYTES)
        try:
            data = b"".join(base64.b64decode(rows[key]["value"], validate=True) for key in keys)
        except (KeyError, ValueError) as error:
            raise CollectionError(
                f"{file!r} of the encoder in {self.name!r} is damaged ({error}): {_AGAIN}"
            ) from error
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            raise CollectionError(
                f"{file!r} of the encoder in {self.name!r} is damaged (its checksum is another): "
                f"{_AGAIN}"
            )
        return data

    def _parsed(self, key: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
        try:
            return dict(json.loads(rows[key]["value"]))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise CollectionError(
                f"the {key.removeprefix(self.prefix)} in {self.name!r} of {self.store.uri} is "
                f"missing or damaged ({error!r}): {_AGAIN}"
            ) from error


def sidecar_schema() -> CollectionSchema:
    """Return the fields of a `Sidecar`, which is made ahead of its collection."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("value", DataType.VARCHAR, max_length=FIELD_BYTES)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    return schema


def _entry(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"key": key, "value": Text(json.dumps(value)), **_VECTOR}


_AGAIN = "create the collection again, and add the photos"
