"""The stored vectors of hits, each photo's fetched once for all queries."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cwf_milvus.answers.hits import Hit
from cwf_milvus.encode.encoding import Kind, Vectors
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.garbage import no_garbage_collection


def fetch_vectors(
    gallery: Gallery, answers: Sequence[Sequence[Hit]], kinds: Collection[Kind]
) -> list[list[Hit]]:
    """Return the hits of some queries with their vectors.

    Args:
        gallery: the photos that are searched.
        answers: the hits of each query.
        kinds: what is needed; kinds that a hit has already are not fetched.

    Returns:
        The same hits. One that was deleted since keeps what it had, and so does one whose vectors
        are damaged.

    Raises:
        StoreError: Milvus failed.
    """
    wanted: dict[str, Vectors] = {}
    for hits in answers:
        for hit in hits:
            if hit.vectors is not None and hit.vectors.lacks(kinds):
                wanted.setdefault(hit.uri, hit.vectors)
    if not wanted:
        return [list(hits) for hits in answers]
    with no_garbage_collection():
        found = gallery.vectors(wanted, kinds)
        return [
            [hit.but(vectors=_joined(hit, found)) if hit.uri in found else hit for hit in hits]
            for hits in answers
        ]


def _joined(hit: Hit, found: dict[str, Vectors]) -> Vectors:
    """Return a hit's own vectors, and those found for its photo where it has none."""
    return found[hit.uri] if hit.vectors is None else hit.vectors.joined(found[hit.uri])
