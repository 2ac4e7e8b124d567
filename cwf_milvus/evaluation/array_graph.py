"""The graph of photos in memory, for `ArrayCollection`: what `build_graph` keeps in Milvus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.index.comparing import CANDIDATES, VERIFIED, agreement, similarities
from cwf_milvus.index.pairs import NONE, grown, joined, matrix, pairs_of
from cwf_milvus.method import diffusion


class ArrayGraph:
    """Stands where `store.graph.Graph` does; its rows are those of a graph built at once.

    Args:
        encodings: of the photos, of different uris.
        neighbours: k.
        verify: compare the keypoints of those that have some.
    """

    def __init__(
        self,
        encodings: Sequence[Encoding],
        neighbours: int = diffusion.NEIGHBOURS,
        verify: bool = True,
    ) -> None:
        self._encodings = encodings
        self._places = {one.uri: place for place, one in enumerate(encodings)}
        with_keypoints = verify and any(one.keypoints is not None for one in encodings)
        n = len(encodings)
        edges = grown(NONE, _compared(encodings, with_keypoints), n, neighbours)
        gamma = diffusion.VERIFIED_GAMMA if with_keypoints else diffusion.GAMMA
        a = diffusion.affinities(matrix(edges, n), neighbours, gamma)
        self._rows = diffusion.diffusion_rows(diffusion.normalised(a), np.arange(n))

    def places(self, contents: Mapping[str, str]) -> dict[str, int]:
        """Return the places of photos; see `Graph.places`."""
        return {
            uri: place
            for uri, content in contents.items()
            if (place := self._places.get(uri)) is not None
            and self._encodings[place].content == content
        }

    def diffused(
        self, seeds: Sequence[Mapping[int, float]], limit: int
    ) -> list[dict[str, tuple[float, str]]]:
        """Return ``f = L y`` where it is largest, for several y; see `Graph.diffused`."""
        answers = []
        for one in seeds:
            y = np.zeros(len(self._encodings))
            y[list(one)] = list(one.values())
            f = self._rows @ y
            best = np.argsort(-f, kind="stable")[:limit]
            reached = [self._encodings[place] for place in best[f[best] > 0].tolist()]
            amounts = f[best][: len(reached)].tolist()
            answers.append(
                {
                    photo.uri: (amount, photo.content)
                    for photo, amount in zip(reached, amounts, strict=True)
                }
            )
        return answers


def _compared(encodings: Sequence[Encoding], verified: bool) -> np.ndarray:
    """Return the pairs of all photos with their nearest."""
    descriptors = np.stack([one.descriptor for one in encodings])
    found = [NONE]
    for place, photo in enumerate(encodings):
        cosines = descriptors @ photo.descriptor
        cosines[place] = -np.inf
        near = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        alike = similarities(
            photo.region_vectors, [encodings[other].region_vectors for other in near]
        )
        inliers, cover = np.zeros(len(near), np.int64), np.zeros(len(near))
        if verified:
            surest = np.argsort(-alike, kind="stable")[:VERIFIED]
            inliers[surest], cover[surest] = agreement(
                photo.keypoints, [encodings[other].keypoints for other in near[surest]]
            )
        one = np.full(len(near), place)
        found.append(pairs_of(one, near, alike, inliers, np.rint(255 * cover)))
    return joined(*found)
