"""The fields of a row, an `Encoding` into them, and their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pymilvus import CollectionSchema, DataType, MilvusClient

from cwf_milvus.encode.encoding import Encoding, Kind, Stored
from cwf_milvus.errors import ImageError, MismatchError, SettingsError
from cwf_milvus.store.filters import is_storable
from cwf_milvus.store.kinds import STORED, Room
from cwf_milvus.store.packing import FIELD_BYTES, PRECISIONS, Precision, Text
from cwf_milvus.store.told import Told

URI_BYTES = 4096
METADATA_BYTES = 65_536
PLAIN_FIELDS = ("content", "width", "height", "class_ids", "class_scores")
_BESIDE = "_beside"  # keeps `Told.beside`
_RESERVED = {"$meta", "_seq", "_partition", _BESIDE}
_ARRAY_ITEMS = 4096
_SCHEMA_FIELDS = 64
_MOST = 10**6  # of what a row has room for; its fields are counted one by one


@dataclass(frozen=True)
class Layout:
    """Which fields hold the vectors of a photo.

    Attributes:
        dim: d, of every vector.
        n_classes: the most class vectors that a photo can have.
        n_regions: the most region vectors that a photo can have.
        precision: how class and region vectors are kept.
        n_keypoints: the most keypoints that a photo can have.
        keypoints_beside: they came later (`index.upgrade`) and are kept beside the user's metadata,
            since a schema does not grow; a row may lack them.
    """

    dim: int
    n_classes: int
    n_regions: int
    precision: Precision = "int8"
    n_keypoints: int = 0
    keypoints_beside: bool = False

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Layout:
        """Return the layout that a collection's manifest tells."""
        precision = manifest.get("precision", "float16")  # format 1 did not say
        return cls(
            manifest["dim"],
            manifest["n_classes"],
            manifest["n_regions"],
            precision,
            manifest.get("n_keypoints", 0),
            manifest.get("keypoints_beside", False),
        )

    def __post_init__(self) -> None:
        """Raise `SettingsError` for more than a Milvus server takes, and for no numbers."""
        for name in ("dim", "n_classes", "n_regions", "n_keypoints"):
            value = getattr(self, name)
            if type(value) is not int or not (name == "dim") <= value <= _MOST:
                raise SettingsError(f"{name}={value!r:.50}: it is no number of at most {_MOST:,}")
        if self.precision not in PRECISIONS:
            raise SettingsError(
                f"precision={self.precision!r:.50}: give one of {', '.join(PRECISIONS)}"
            )
        if self.n_classes > _ARRAY_ITEMS:
            raise SettingsError(f"n_classes={self.n_classes}: Milvus stores at most {_ARRAY_ITEMS}")
        if len(self.fields) > _SCHEMA_FIELDS:
            raise SettingsError(
                f"{self.n_classes} class and {self.n_regions} region vectors of {self.dim} numbers "
                f"need {len(self.fields)} fields, and Milvus has {_SCHEMA_FIELDS}: store fewer "
                "classes, or a smaller dim"
            )

    @cached_property
    def room(self) -> Room:
        """What a row has room for, as `STORED` takes it."""
        most: dict[Kind, int] = {
            "descriptor": 1,
            "classes": self.n_classes,
            "regions": self.n_regions,
            "keypoints": self.n_keypoints,
        }
        return Room(self.dim, self.precision, most)

    def fields_of(self, kinds: Iterable[Kind]) -> tuple[str, ...]:
        """Return the fields of some kinds of vectors."""
        return tuple(field for kind in kinds for field in STORED[kind].fields(self.room))

    @cached_property
    def vector_fields(self) -> tuple[str, ...]:
        """All that `Row.unpack` needs beside the plain fields."""
        return self.fields_of(STORED)

    @cached_property
    def beside(self) -> frozenset[str]:
        """The fields that the schema does not have, and a row need not."""
        return frozenset(self.fields_of(["keypoints"]) if self.keypoints_beside else ())

    @property
    def metadata_bytes(self) -> int:
        """How large a row's metadata may be."""
        beside = self.bytes_of(["keypoints"]) + 1024 if self.beside else 0
        return METADATA_BYTES - beside

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """All fields of a row."""
        return ("uri", *PLAIN_FIELDS, "checksum", *self.vector_fields)

    @property
    def row_bytes(self) -> int:
        """About how large a row is on its way, without the user's metadata."""
        return self.bytes_of(STORED) + 36 * self.n_classes + 4096

    def bytes_of(self, kinds: Iterable[Kind]) -> int:
        """Return about how large some kinds of vectors are at most on their way."""
        return sum(
            STORED[kind].bytes_of(field, self.room)
            for kind in kinds
            for field in self.fields_of([kind])
        )

    @property
    def _texts(self) -> tuple[str, ...]:
        return tuple(field for field in self.vector_fields if field != "descriptor")

    def schema(self) -> CollectionSchema:
        """Return the schema of the main collection."""
        schema = self.schema_without_vectors()
        for name in self._texts:
            schema.add_field(name, DataType.VARCHAR, max_length=FIELD_BYTES)
        return schema

    def schema_without_vectors(self) -> CollectionSchema:
        """Return the schema of what every row has, without the packed vectors."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("uri", DataType.VARCHAR, is_primary=True, max_length=URI_BYTES)
        schema.add_field("descriptor", DataType.FLOAT_VECTOR, dim=self.dim)
        schema.add_field("content", DataType.VARCHAR, max_length=64)
        schema.add_field("checksum", DataType.VARCHAR, max_length=64)
        schema.add_field("width", DataType.INT64)
        schema.add_field("height", DataType.INT64)
        items = {"datatype": DataType.ARRAY, "max_capacity": max(1, self.n_classes)}
        schema.add_field("class_ids", element_type=DataType.INT64, **items)
        schema.add_field("class_scores", element_type=DataType.FLOAT, **items)
        return schema

    def pack(self, encoding: Encoding, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a photo's row as Milvus takes it, with its checksum.

        Raises:
            ImageError: a uri that Milvus cannot hold.
            SettingsError: metadata that Milvus cannot hold, or vectors that are not finite.
            MismatchError: vectors of another dimension, or more of them than the fields hold.
        """
        self._check_shapes(encoding)
        descriptor = np.asarray(encoding.descriptor, np.float32)
        if not np.isfinite(descriptor).all():
            raise SettingsError(
                f"the descriptor of {encoding.uri!r} has numbers that are not finite"
            )
        row: dict[str, Any] = {
            "uri": checked_uri(encoding.uri),
            "content": encoding.content,
            "width": int(encoding.width),
            "height": int(encoding.height),
            "class_ids": np.asarray(encoding.class_ids).tolist(),
            "class_scores": np.asarray(encoding.class_scores, np.float32).tolist(),
        }
        for kind in STORED.values():
            row.update(kind.pack(encoding, self.room))
        return self.with_metadata(row, metadata)

    def read(self, row: Mapping[str, Any], kinds: Iterable[Kind]) -> dict[str, Stored]:
        """Return the arrays of `Vectors` that some kinds are, as they are kept.

        Raises:
            CollectionError: they are damaged.
        """
        found: dict[str, Stored] = {}
        for kind in kinds:
            found |= STORED[kind].read(row, self.room)
        return found

    def with_metadata(
        self, row: Mapping[str, Any], metadata: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return a row with other metadata, and the checksum that then belongs to it.

        Raises:
            SettingsError: metadata that Milvus cannot hold.
        """
        kept = {
            name: Text(value) if isinstance(value := row[name], str) else value
            for name in self.fields
            if name in row
        }
        told = self.checked_metadata(str(row["uri"]), metadata)
        row = {**kept, **told, "checksum": self.checksum({**kept, **told})}
        beside = sorted(metadata.beside) if isinstance(metadata, Told) else []
        return {**row, _BESIDE: beside} if beside else row

    def renamed(self, row: Mapping[str, Any], uri: str) -> dict[str, Any]:
        """Return a fetched row under another uri, and the checksum that then belongs to it."""
        return self.with_metadata({**row, "uri": uri}, self.metadata_of(row))

    def checked_metadata(self, uri: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return metadata as Milvus gives it back, as plain JSON values.

        Raises:
            SettingsError: a reserved name, a value that JSON does not hold, or too much.
        """
        told = dict(metadata or {})
        taken = sorted(str(n) for n in told if n in self.fields or n in _RESERVED or n == "")
        if taken:
            raise SettingsError(
                f"the metadata of {uri!r} has the reserved name {taken[0]!r}: rename it"
            )
        try:
            text = json.dumps(told, allow_nan=False, ensure_ascii=False)
            size = len(text.encode())
            plain: dict[str, Any] = json.loads(text, parse_int=_int64)
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingsError(
                f"the metadata of {uri!r} is nothing that JSON and Milvus hold ({error}): use "
                "text, finite numbers, true, false, null, and lists and objects of them"
            ) from error
        if size > self.metadata_bytes:
            raise SettingsError(
                f"the metadata of {uri!r} takes {size} bytes, and there is room for "
                f"{self.metadata_bytes}: "
                "keep less of it"
            )
        return plain

    def metadata_of(self, row: Mapping[str, Any]) -> Told:
        """Return the user's own fields of a fetched row."""
        fields = {n: v for n, v in row.items() if n not in self.fields and n != _BESIDE}
        return Told(fields, row.get(_BESIDE, ()))

    def checksum(self, row: Mapping[str, Any]) -> str:
        """Return SHA-256, in hex, of all that a row holds."""
        plain = [row["uri"], row["content"], int(row["width"]), int(row["height"])]
        digest = hashlib.sha256(
            json.dumps([*plain, self.metadata_of(row)], sort_keys=True).encode()
        )
        digest.update(np.asarray(row["class_ids"], "<i8").tobytes())
        digest.update(np.asarray(row["class_scores"], "<f4").tobytes())
        digest.update(np.asarray(row["descriptor"], "<f4").tobytes())
        for name in self._texts:
            if name in self.beside and name not in row:
                continue
            digest.update(row[name].encode() + b"\n")
        return digest.hexdigest()

    def _check_shapes(self, encoding: Encoding) -> None:
        n_ids, n_regions = len(encoding.class_ids), len(encoding.region_boxes)
        for what, array, n, most in (
            ("class", encoding.class_vectors, n_ids, self.n_classes),
            ("region", encoding.region_vectors, n_regions, self.n_regions),
        ):
            if np.shape(array) != (n, self.dim) or n > most:
                raise MismatchError(
                    f"{what} vectors of shape {np.shape(array)} for {encoding.uri!r}: the "
                    f"collection holds ({n if n <= most else f'up to {most}'}, {self.dim})"
                )
        if np.shape(encoding.descriptor) != (self.dim,):
            raise MismatchError(
                f"a descriptor of shape {np.shape(encoding.descriptor)} for {encoding.uri!r}: the "
                f"collection holds ({self.dim},)"
            )


def checked_uri(uri: str) -> str:
    """Return a uri that Milvus can hold.

    Raises:
        ImageError: no valid Unicode, as file names need not be, empty, or too long.
    """
    if not is_storable(uri):
        raise ImageError(f"{uri!r}: a name that is not valid Unicode cannot be stored: rename it")
    n_bytes = len(uri.encode())
    if not 1 <= n_bytes <= URI_BYTES:
        raise ImageError(
            f"{uri[:80]!r}: a uri of {n_bytes} bytes cannot be stored, only of 1 to {URI_BYTES}"
        )
    return uri


def _int64(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{digits[:40]} is no 64-bit number")
    return value
