"""What a search needs of a collection: `PhotoRows` in Milvus, or arrays in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Kind, Vectors
from cwf_milvus.store.names import Names
from cwf_milvus.store.rows import Row


class Gallery(Protocol):
    """The photos that are searched."""

    name: str

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors."""

    def search_vectors(
        self, descriptors: np.ndarray, *, limit: int, filter: str | None = None
    ) -> list[list[Row]]:
        """Return, for each of the descriptors (Q, d), the nearest rows, best first."""

    def get(self, uris: Names, *, vectors: bool = False) -> list[Row | None]:
        """Return the rows of photos, in the order asked for; None for one that is not there."""

    def vectors(self, wanted: Mapping[str, Vectors], kinds: Collection[Kind]) -> dict[str, Vectors]:
        """Return, by uri, photos' vectors with those of some kinds beside what was there."""
