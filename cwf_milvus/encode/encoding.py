"""What is kept of a photo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.method.late_interaction import VectorSet

Kind = Literal["descriptor", "classes", "regions", "keypoints"]
"""A kind of a photo's vectors."""
KINDS: tuple[Kind, ...] = get_args(Kind)
ARRAYS: dict[Kind, tuple[str, ...]] = {
    "descriptor": ("descriptor",),
    "classes": ("class_vectors",),
    "regions": ("region_boxes", "region_vectors"),
    "keypoints": ("keypoints",),
}
"""The attributes of `Vectors` that each kind fills, the vectors themselves last."""
Stored = VectorSet | Keypoints
"""Vectors, boxes or keypoints, as they come from a row."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """What is kept of one photo, or asked of one query. All arrays are numpy, all vectors unit.

    Attributes:
        descriptor: of shape (d,).
        class_ids: of shape (N,), int64, the most likely class first.
        class_scores: of shape (N,), the softmax at the class view; for people, never a weight.
        class_vectors: of shape (N, d).
        region_boxes: of shape (R, 4), x1, y1, x2, y2 in pixels of the upright original.
        region_vectors: of shape (R, d).
        uri: where the photo is.
        content: SHA-256 of its bytes, in hex.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
        keypoints: the strongest of the whole photo; None where none were looked for.
    """

    descriptor: np.ndarray
    class_ids: np.ndarray
    class_scores: np.ndarray
    class_vectors: np.ndarray
    region_boxes: np.ndarray
    region_vectors: np.ndarray
    uri: str
    content: str
    width: int
    height: int
    keypoints: Keypoints | None = None


@dataclass(frozen=True, eq=False)
class Vectors:
    """A photo's stored vectors, or those of them that were asked for; all unit.

    Arrays are float32; vectors stored in int8 stay so, as `Int8Vectors`.

    Attributes:
        content: SHA-256 of the photo's bytes, in hex; "" where unknown.
        class_ids: of shape (N,), whether or not the class vectors are here.
        descriptor: of shape (d,), or None.
        class_vectors: of shape (N, d), or None.
        region_boxes: of shape (R, 4), pixels of the upright original, or None.
        region_vectors: of shape (R, d), or None.
        keypoints: the strongest of the photo, or None.
        checksum: of the row that they are from; "" keeps them out of the cache.
        damage: what is wrong with those that were to be fetched, and are not here.
    """

    content: str
    class_ids: np.ndarray
    descriptor: np.ndarray | None = None
    class_vectors: VectorSet | None = None
    region_boxes: np.ndarray | None = None
    region_vectors: VectorSet | None = None
    keypoints: Keypoints | None = None
    checksum: str = ""
    damage: str = ""

    def of_kind(self, kind: Kind) -> VectorSet | None:
        """Return the vectors of a kind, of shape (n, d); None where they were not fetched."""
        if kind == "descriptor":
            return None if self.descriptor is None else self.descriptor[None]
        return self.class_vectors if kind == "classes" else self.region_vectors

    def lacks(self, kinds: Iterable[Kind]) -> tuple[Kind, ...]:
        """Return those of some kinds that were not fetched."""
        return tuple(kind for kind in kinds if getattr(self, ARRAYS[kind][-1]) is None)

    def joined(self, found: Vectors) -> Vectors:
        """Return these, with the arrays of `found` in place of those that are not here."""
        new = {
            name: getattr(found, name)
            for names in ARRAYS.values()
            for name in names
            if getattr(self, name) is None
        }
        return replace(self, damage=self.damage or found.damage, **new)
