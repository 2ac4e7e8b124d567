"""What a search needs of a collection: `PhotoRows` in Milvus, or arrays in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cwf_milvus.encode.encoding import Kind, Vectors
from cwf_milvus.store.names import Names
from cwf_milvus.store.rows import Row

if TYPE_CHECKING:  # torch takes seconds, and a search like stored photos needs none of it
    from cwf_milvus.encode.encoder import Encoder


class Diffusion(Protocol):
    """The graph of the photos; `store.graph.Graph` in Milvus."""

    def places(self, contents: Mapping[str, str]) -> dict[str, int]:
        """Return the numbers of photos, given uri to SHA-256 of the bytes; others are left out."""

    def diffused(
        self, seeds: Sequence[Mapping[int, float]], limit: int
    ) -> list[dict[str, tuple[float, str]]]:
        """Return ``f = L y`` for each y: uri to amount and SHA-256 of the bytes."""


class Gallery(Protocol):
    """The photos that are searched."""

    name: str

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the encoder's classes, in the order of their ids."""

    def search_vectors(
        self, descriptors: np.ndarray, *, limit: int, filter: str | None = None
    ) -> list[list[Row]]:
        """Return, for each of the descriptors (Q, d), the nearest rows, best first."""

    def get(
        self, uris: Names, *, vectors: bool = False, filter: str | None = None
    ) -> list[Row | None]:
        """Return the rows of photos, in the order asked for; None for one that is not there."""

    def vectors(self, wanted: Mapping[str, Vectors], kinds: Collection[Kind]) -> dict[str, Vectors]:
        """Return, by uri, photos' vectors with those of some kinds beside what was there."""

    def has_keypoints(self) -> bool:
        """Tell whether keypoints are stored with the photos."""

    def has_graph(self) -> bool:
        """Tell whether there is a graph of the photos."""

    @property
    def graph(self) -> Diffusion:
        """The graph of the photos."""
