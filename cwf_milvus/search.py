"""From query photos to ranked hits: encode, search the descriptors, run the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cwf_milvus.errors import BoxError, SettingsError
from cwf_milvus.hits import Hit, Hits, Query, StageScore, shared_classes
from cwf_milvus.images import Box, BoxLike, load_image

if TYPE_CHECKING:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.encoder import Encoder
    from cwf_milvus.rows import Row

_DESCRIPTOR = "descriptor"


def search(
    collection: InstanceCollection,
    images: object,
    *,
    box: Any = None,
    limit: int = 20,
    filter: str | None = None,
) -> Any:
    """Find photos of the thing in a query photo; `InstanceCollection.search`.

    Args:
        collection: an open collection.
        images: a path, url, bytes, array, PIL image, tensor or `Image`; or a list or tuple of
            them, which takes one call to Milvus for all.
        box: x1, y1, x2, y2 of the thing, in pixels of the upright original, half open; None for
            the whole photo. For several queries a list with one box, or None, for each.
        limit: hits for each query, from 1 to 16,384.
        filter: a Milvus filter expression on the collection's or the user's fields, such as
            ``"year > 2015 and array_contains(class_ids, 698)"``.

    Returns:
        `Hits`, best first; a list of `Hits` for a list of queries.

    Raises:
        ImageError: a query that cannot be decoded.
        BoxError: a box that is malformed, empty or outside its photo.
        FilterError: Milvus refused the filter.
        SettingsError: a limit out of range, or boxes that do not go with the queries.
        StoreError: Milvus failed.
    """
    several = isinstance(images, list | tuple)
    queries = ask(
        collection.encoder,
        images if isinstance(images, list | tuple) else [images],
        box if several else [box],
    )
    answers = search_queries(collection, queries, limit=limit, filter=filter)
    return answers if several else answers[0]


def search_queries(
    collection: InstanceCollection,
    queries: Sequence[Query],
    *,
    limit: int,
    filter: str | None,
) -> list[Hits]:
    """Answer queries that are encoded already, in one call to Milvus."""
    if not queries:
        return []
    descriptors = np.stack([query.encoding.descriptor for query in queries])
    answers = collection.search_vectors(descriptors, limit=limit, filter=filter)
    names = collection.encoder.class_names
    return [
        Hits(query, [as_hit(query, row, rank, names) for rank, row in enumerate(rows, start=1)])
        for query, rows in zip(queries, answers, strict=True)
    ]


def ask(encoder: Encoder, images: Sequence[object], boxes: Any = None) -> list[Query]:
    """Encode query photos; box and photo as in `search`.

    Raises:
        SettingsError: another number of boxes than of photos.
    """
    given = [None] * len(images) if boxes is None else list(boxes)
    if len(given) != len(images):
        raise SettingsError(
            f"{len(given)} boxes for {len(images)} queries: give a list with a box, or None for "
            "the whole photo, for each query"
        )
    checked = [_checked_box(one) for one in given]
    photos = [load_image(image) for image in images]
    encodings = encoder.encode_queries(list(zip(photos, checked, strict=True)))
    return [
        Query(encoding, photo.uri, photo, one and one.checked(photo.width, photo.height))
        for encoding, photo, one in zip(encodings, photos, checked, strict=True)
    ]


def as_hit(query: Query, row: Row, rank: int, class_names: Sequence[str]) -> Hit:
    """Return a row of Milvus's answer as a hit."""
    score = row.score or 0.0
    return Hit(
        uri=row.uri,
        score=score,
        classes=shared_classes(query.encoding.class_ids, row.class_ids, class_names),
        metadata=row.metadata,
        width=row.width,
        height=row.height,
        stages=(StageScore(_DESCRIPTOR, score, rank),),
    )


def _checked_box(box: BoxLike | None) -> Box | None:
    if isinstance(box, list | tuple) and box and isinstance(box[0], list | tuple):
        raise BoxError(
            f"box {box!r} is a list of boxes for one query: give a list of queries too, or one box"
        )
    return Box.of(box)
