"""The kinds of vectors that a row holds: which fields each has, and how it goes in and out.

A further kind is named in three places, one a room: in `encode.encoding.KINDS` with its arrays in
`Encoding` and `Vectors`; here, in `STORED`; and in the stage of `search` that asks for it by
`Stage.needs`. What lies between (schema, checksum, fetching, caching) goes by these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64

from cwf_milvus.encode.encoding import Encoding, Kind, Stored
from cwf_milvus.method.keypoint_codes import (
    PACKED_HEADER,
    PACKED_KEYPOINT,
    Keypoints,
    pack_keypoints,
    unpack_keypoints,
)
from cwf_milvus.store.packing import (
    FIELD_BYTES,
    Precision,
    Text,
    decoded,
    fields_needed,
    pack_boxes,
    pack_vectors,
    read_vectors,
    unpack_boxes,
    vector_bytes,
    vectors_per_field,
)


@dataclass(frozen=True)
class Room:
    """What a row has room for.

    Attributes:
        dim: d, of every vector.
        precision: how class and region vectors are kept.
        most: the most vectors of each kind that a photo can have.
    """

    dim: int
    precision: Precision
    most: Mapping[Kind, int]


class StoredKind:
    """A kind of vectors in a row; to be subclassed.

    Attributes:
        kind: its name.
    """

    kind: Kind

    def fields(self, room: Room) -> tuple[str, ...]:
        """Return the names of its fields."""
        raise NotImplementedError

    def bytes_of(self, field: str, room: Room) -> int:
        """Return about how large one of its fields is at most on its way."""
        raise NotImplementedError

    def pack(self, encoding: Encoding, room: Room) -> dict[str, Any]:
        """Return the values of its fields for a photo.

        Raises:
            SettingsError: numbers that cannot be kept.
        """
        raise NotImplementedError

    def read(self, row: Mapping[str, Any], room: Room) -> dict[str, Stored]:
        """Return its arrays from the fields of a row.

        Raises:
            CollectionError: they are damaged.
        """
        raise NotImplementedError


class StoredDescriptor(StoredKind):
    """The descriptor: the one vector that Milvus itself searches, kept as it is."""

    kind = "descriptor"

    def fields(self, room: Room) -> tuple[str, ...]:
        """Return ("descriptor",)."""
        return ("descriptor",)

    def bytes_of(self, field: str, room: Room) -> int:
        """Return 4 bytes a number."""
        return 4 * room.dim

    def pack(self, encoding: Encoding, room: Room) -> dict[str, Any]:
        """Return it in float32."""
        return {"descriptor": np.asarray(encoding.descriptor, np.float32)}

    def read(self, row: Mapping[str, Any], room: Room) -> dict[str, Stored]:
        """Return it in float32, of shape (d,)."""
        return {"descriptor": np.array(row["descriptor"], np.float32)}


@dataclass(frozen=True)
class StoredVectors(StoredKind):
    """Vectors in text fields, whole ones in each; with their boxes, where they have some.

    Attributes:
        kind: its name.
        vectors: the attribute of `Encoding` and of `Vectors` that holds them, and what the names
            of the fields begin with.
        boxes: the attribute that holds their boxes, and the name of its field; None for none.
    """

    kind: Kind
    vectors: str
    boxes: str | None = None

    def fields(self, room: Room) -> tuple[str, ...]:
        """Return the field of the boxes, and those of the vectors."""
        boxes = () if self.boxes is None else (self.boxes,)
        return (*boxes, *self.vector_fields(room))

    def vector_fields(self, room: Room) -> tuple[str, ...]:
        """Return the fields of the vectors alone."""
        n = fields_needed(room.most[self.kind], room.dim, room.precision)
        return tuple(f"{self.vectors}_{i}" for i in range(n))

    def bytes_of(self, field: str, room: Room) -> int:
        """Return the characters of a field in base64."""
        most = room.most[self.kind]
        if field == self.boxes:
            return 22 * most
        each = vectors_per_field(room.dim, room.precision)
        left = most - each * self.vector_fields(room).index(field)
        return 4 * -(-min(each, left) * vector_bytes(room.dim, room.precision) // 3)

    def pack(self, encoding: Encoding, room: Room) -> dict[str, Any]:
        """Return texts; those that are not needed are empty."""
        names = self.vector_fields(room)
        texts = pack_vectors(getattr(encoding, self.vectors), len(names), room.precision)
        packed = dict(zip(names, texts, strict=True))
        if self.boxes is not None:
            packed[self.boxes] = pack_boxes(getattr(encoding, self.boxes))
        return packed

    def read(self, row: Mapping[str, Any], room: Room) -> dict[str, Stored]:
        """Return the vectors as they are kept, where that is quicker, and boxes in float32."""
        texts = [row[name] for name in self.vector_fields(room)]
        arrays: dict[str, Stored] = {self.vectors: read_vectors(texts, room.dim, room.precision)}
        if self.boxes is not None:
            arrays[self.boxes] = unpack_boxes(row[self.boxes])
        return arrays


class StoredKeypoints(StoredKind):
    """Keypoints in text fields, compact (`method.keypoint_codes`); no field where none are kept."""

    kind = "keypoints"

    def fields(self, room: Room) -> tuple[str, ...]:
        """Return the fields: one for up to some 2,000 keypoints."""
        return tuple(f"keypoints_{i}" for i in range(-(-self._characters(room) // FIELD_BYTES)))

    def bytes_of(self, field: str, room: Room) -> int:
        """Return the characters of a field in base64."""
        before = FIELD_BYTES * self.fields(room).index(field)
        return min(FIELD_BYTES, self._characters(room) - before)

    def pack(self, encoding: Encoding, room: Room) -> dict[str, Any]:
        """Return texts; all empty for a photo whose keypoints were not looked for."""
        names = self.fields(room)
        if not names:
            return {}
        kept = encoding.keypoints
        return keypoint_texts(None if kept is None else kept[: room.most["keypoints"]], names)

    def read(self, row: Mapping[str, Any], room: Room) -> dict[str, Stored]:
        """Return them; nothing for a photo whose keypoints were not looked for."""
        text = "".join(row.get(name) or "" for name in self.fields(room))
        return {"keypoints": unpack_keypoints(decoded(text))} if text else {}

    def _characters(self, room: Room) -> int:
        most = room.most["keypoints"]
        return 4 * -(-(PACKED_HEADER + PACKED_KEYPOINT * most) // 3) if most else 0


def keypoint_texts(keypoints: Keypoints | None, names: Sequence[str]) -> dict[str, str]:
    """Return the values of the fields of a photo's keypoints; all empty for None.

    Raises:
        CollectionError: numbers that are not finite.
    """
    text = "" if keypoints is None else pybase64.b64encode_as_string(pack_keypoints(keypoints))
    return {
        name: Text(text[i * FIELD_BYTES : (i + 1) * FIELD_BYTES]) for i, name in enumerate(names)
    }


STORED: dict[Kind, StoredKind] = {
    "descriptor": StoredDescriptor(),
    "classes": StoredVectors("classes", "class_vectors"),
    "regions": StoredVectors("regions", "region_vectors", "region_boxes"),
    "keypoints": StoredKeypoints(),
}
"""Every kind, in the order in which a row's checksum goes over its fields."""
