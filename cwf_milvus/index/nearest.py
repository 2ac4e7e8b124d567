"""Photos held against those that are nearest to them: what edges of the graph are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwf_milvus.encode.encoding import Kind, Vectors
from cwf_milvus.index.comparing import CANDIDATES, VERIFIED, agreement, similarities
from cwf_milvus.index.pairs import NONE, joined, pairs_of
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.store.client import METRIC
from cwf_milvus.store.photo_rows import PhotoRows


@dataclass(frozen=True, eq=False)
class Own:
    """What of a photo is compared."""

    vectors: Vectors
    digest: str


def own_vectors(collection: PhotoRows, uris: Sequence[str]) -> dict[str, Own]:
    """Fetch photos whose neighbours are to be found."""
    kinds: tuple[Kind, ...] = ("descriptor", "regions", "keypoints")
    layout = collection.layout
    fields = layout.fields_of(kinds)
    rows = collection.store.fetch_vectors(
        collection.name, "uri", uris, ["content", *fields], row_bytes=layout.bytes_of(kinds)
    )
    found = {}
    for uri, row in rows.items():
        digest = hashlib.sha256(np.asarray(row["descriptor"], "<f4").tobytes())
        for name in fields:
            if name != "descriptor":
                digest.update(f"{row[name]}\n".encode())
        arrays = layout.read(row, kinds)
        vectors = Vectors(row["content"], np.zeros(0, np.int64), **arrays)  # type: ignore[arg-type]
        found[uri] = Own(vectors, digest.hexdigest())
    return found


def pairs_with_nearest(
    collection: PhotoRows, photos: dict[str, Own], place_of: dict[str, int], verified: bool
) -> np.ndarray:
    """Return photos' pairs with their nearest."""
    near = _nearest(collection, photos, place_of)
    every = {uri: vectors for others in near.values() for uri, vectors in others.items()}
    there = collection.vectors(every, ["regions"])
    alike = {
        uri: similarities(
            photos[uri].vectors.region_vectors, [there[other].region_vectors for other in others]
        )
        for uri, others in near.items()
    }
    surest = {
        uri: [list(others)[i] for i in np.argsort(-alike[uri], kind="stable")[:VERIFIED]]
        for uri, others in near.items()
    }
    looked_at = {other: every[other] for others in surest.values() for other in others}
    seen = collection.vectors(looked_at, ["keypoints"]) if verified else {}
    found = [NONE]
    for uri, others in near.items():
        inliers, cover = np.zeros(len(others), np.int64), np.zeros(len(others))
        if verified:
            places = {other: i for i, other in enumerate(others)}
            chosen = [places[other] for other in surest[uri]]
            hits: list[Keypoints | None] = [seen[other].keypoints for other in surest[uri]]
            inliers[chosen], cover[chosen] = agreement(photos[uri].vectors.keypoints, hits)
        one = np.full(len(others), place_of[uri])
        other = np.array([place_of[name] for name in others], np.int64)
        found.append(pairs_of(one, other, alike[uri], inliers, np.rint(255 * cover)))
    return joined(*found)


def _nearest(
    collection: PhotoRows, photos: dict[str, Own], place_of: dict[str, int]
) -> dict[str, dict[str, Vectors]]:
    """Return, of each photo, those in the graph whose descriptors are nearest, by uri.

    A photo whose descriptor is zero, as one of a bare wall has, or damaged, has none.
    """
    asked = {
        uri: descriptor
        for uri, photo in photos.items()
        if (descriptor := photo.vectors.descriptor) is not None
        and descriptor.any()
        and np.isfinite(descriptor).all()
    }
    if not asked:
        return {}
    answers = collection.store.search(
        collection.name,
        None,
        data=list(asked.values()),
        anns_field="descriptor",
        limit=CANDIDATES + 1,
        output_fields=["uri", "content", "checksum"],
        search_params={"metric_type": METRIC, "params": {}},
    )
    near = {}
    for uri, answer in zip(asked, answers, strict=True):
        rows = [hit["entity"] for hit in answer]
        others = [row for row in rows if row["uri"] != uri and row["uri"] in place_of]
        near[uri] = {
            row["uri"]: Vectors(row["content"], np.zeros(0, np.int64), checksum=row["checksum"])
            for row in others[:CANDIDATES]
        }
    return near
