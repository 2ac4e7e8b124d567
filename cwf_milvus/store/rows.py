"""A row of a collection, for use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import CollectionError
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.store.kinds import STORED
from cwf_milvus.store.layout import Layout
from cwf_milvus.store.told import Told


@dataclass(frozen=True, eq=False)
class Row:
    """A photo as the collection has it.

    Attributes:
        uri: where the photo is.
        content: SHA-256 of its bytes, in hex.
        width: of the upright photo, in pixels.
        height: of the upright photo, in pixels.
        class_ids: of shape (N,), int64, the most likely class first.
        class_scores: of shape (N,), float32.
        metadata: the user's own fields, a dict.
        score: inner product with the query's descriptor, in a search's answer.
        packed: the vectors as they are stored; None where they were not asked for.
        layout: how to read them.
        checksum: SHA-256 of all that the row holds, in hex.
    """

    uri: str
    content: str
    width: int
    height: int
    class_ids: np.ndarray
    class_scores: np.ndarray
    metadata: Told
    score: float | None
    packed: Mapping[str, Any] | None = field(repr=False)
    layout: Layout = field(repr=False)
    checksum: str = ""

    def unpack(self) -> Encoding:
        """Return the photo's vectors, decoded anew at each call.

        Class and region vectors went through the layout's precision, the descriptor did not.

        Raises:
            CollectionError: fetched without its vectors, or damaged.
        """
        if self.packed is None:
            raise CollectionError(f"{self.uri!r} was fetched without its vectors: ask for them")
        found = self.layout.read(self.packed, STORED)
        keypoints = found.pop("keypoints", None)
        return Encoding(
            class_ids=self.class_ids,
            class_scores=self.class_scores,
            uri=self.uri,
            content=self.content,
            width=self.width,
            height=self.height,
            keypoints=keypoints if isinstance(keypoints, Keypoints) else None,
            **{name: np.asarray(array, np.float32) for name, array in found.items()},
        )


def as_row(layout: Layout, raw: Mapping[str, Any], score: float | None = None) -> Row:
    """Return a fetched row for use."""
    there = [name for name in layout.vector_fields if name in raw or name not in layout.beside]
    has_vectors = all(name in raw for name in there)
    return Row(
        uri=raw["uri"],
        content=raw["content"],
        width=int(raw["width"]),
        height=int(raw["height"]),
        class_ids=np.array(raw["class_ids"], np.int64),
        class_scores=np.array(raw["class_scores"], np.float32),
        metadata=layout.metadata_of(raw),
        score=score,
        packed={name: raw[name] for name in there} if has_vectors else None,
        layout=layout,
        checksum=raw.get("checksum", ""),
    )
