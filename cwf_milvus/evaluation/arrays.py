"""A collection in memory: what `search` needs of Milvus, on plain arrays, as papers do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import ARRAYS, Encoding, Kind, Vectors
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.array_graph import ArrayGraph
from cwf_milvus.method.diffusion import NEIGHBOURS
from cwf_milvus.store.layout import Layout
from cwf_milvus.store.names import Names, listed
from cwf_milvus.store.refusals import checked_descriptors
from cwf_milvus.store.rows import Row
from cwf_milvus.store.told import Told


@dataclass(frozen=True, eq=False)
class ArrayRow(Row):
    """A photo with its vectors as they were encoded, in float32."""

    encoding: Encoding | None = field(default=None, repr=False)

    def unpack(self) -> Encoding:
        """Return the photo's vectors."""
        assert self.encoding is not None
        return self.encoding


class ArrayCollection:
    """Stands where `InstanceCollection` does, for searches without filters.

    Args:
        encoder: that made the encodings.
        encodings: of the photos to search, of different uris.
    """

    def __init__(self, encoder: Encoder, encodings: Sequence[Encoding]) -> None:
        self.encoder = encoder
        self.name = "arrays"
        self.layout = Layout(encoder.dim, encoder.n_classes, encoder.n_regions)
        self._encodings = list(encodings)
        self._places = {one.uri: place for place, one in enumerate(self._encodings)}
        self._descriptors = np.stack([one.descriptor for one in self._encodings])
        self._graph: ArrayGraph | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the encoder's classes, in the order of their ids."""
        return self.encoder.class_names

    def count(self) -> int:
        """Return the number of photos."""
        return len(self._encodings)

    def search_vectors(
        self,
        descriptors: np.ndarray,
        *,
        limit: int,
        filter: str | None = None,
        vectors: bool = False,
        params: Mapping[str, Any] | None = None,
    ) -> list[list[Row]]:
        """Return the photos whose descriptors are nearest, for every query; all rows have vectors.

        Raises:
            SettingsError: a filter, which only Milvus understands.
        """
        _refuse(filter)
        asked = checked_descriptors(descriptors, self.layout.dim, self.name)
        order = rank(asked, self._descriptors)
        scores = asked @ self._descriptors.T
        return [
            [self._row(place, float(scores[query, place])) for place in places[:limit]]
            for query, places in enumerate(order)
        ]

    def get(
        self, uris: Names, *, vectors: bool = False, filter: str | None = None
    ) -> list[Row | None]:
        """Return the rows of photos, in the order asked for; None for one that is not there.

        Raises:
            SettingsError: a filter, which only Milvus understands.
        """
        _refuse(filter)
        places = [self._places.get(str(uri)) for uri in listed(uris)]
        return [None if place is None else self._row(place) for place in places]

    def vectors(self, wanted: Mapping[str, Vectors], kinds: Collection[Kind]) -> dict[str, Vectors]:
        """Return, by uri, photos' vectors with those of some kinds beside what was there."""
        names = [name for kind in kinds for name in ARRAYS[kind]]
        found: dict[str, Vectors] = {}
        for uri, had in wanted.items():
            one = self._encodings[self._places[uri]]
            found[uri] = replace(
                had, **{n: getattr(one, n) for n in names if getattr(had, n) is None}
            )
        return found

    def has_keypoints(self) -> bool:
        """Tell whether the encodings have keypoints."""
        return any(one.keypoints is not None for one in self._encodings)

    def build_graph(self, *, neighbours: int = NEIGHBOURS, verify: bool = True) -> None:
        """Build the graph of the photos, in memory, for ``expand="graph"``."""
        self._graph = ArrayGraph(self._encodings, neighbours, verify)

    def has_graph(self) -> bool:
        """Tell whether it was built."""
        return self._graph is not None

    @property
    def graph(self) -> ArrayGraph:
        """The graph of the photos."""
        assert self._graph is not None
        return self._graph

    def _row(self, place: int, score: float | None = None) -> ArrayRow:
        one = self._encodings[place]
        return ArrayRow(
            uri=one.uri,
            content=one.content,
            width=one.width,
            height=one.height,
            class_ids=one.class_ids,
            class_scores=one.class_scores,
            metadata=Told({}),
            score=score,
            packed={},
            layout=self.layout,
            encoding=one,
        )


def _refuse(filter: str | None) -> None:
    if filter:
        raise SettingsError(f"filter {filter!r}: arrays have no filters, search Milvus instead")


def rank(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Rank images by inner product, ties in their own order.

    Args:
        queries: of shape (Q, d).
        images: of shape (N, d).

    Returns:
        Positions in `images`, best first, of shape (Q, N).
    """
    return np.argsort(-(queries @ images.T), axis=1, kind="stable")
