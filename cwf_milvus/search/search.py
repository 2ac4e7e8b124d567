"""From query photos to ranked hits: encode, search the descriptors, run the stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Hit, Query, StageScore, shared_classes
from cwf_milvus.checks import checked_count
from cwf_milvus.encode.encoding import Vectors
from cwf_milvus.errors import BoxError, CollectionError, SettingsError
from cwf_milvus.method.expansion import steer
from cwf_milvus.photos.box import Box, BoxLike
from cwf_milvus.search.certainty import Judge
from cwf_milvus.search.choose import Expand, Rerank, chosen_stages, run_stages
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.garbage import no_garbage_collection
from cwf_milvus.search.registry import AUTO, CANDIDATES, NONE
from cwf_milvus.search.stage import Context, Stage
from cwf_milvus.store.augmentation import augmented_search
from cwf_milvus.store.client import TOP_K, check_limit
from cwf_milvus.store.fields import check_filter
from cwf_milvus.store.names import Names, listed
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import Row

if TYPE_CHECKING:  # torch takes seconds, and a search like stored photos needs none of it
    from cwf_milvus.encode.encoder import Encoder

_DESCRIPTOR = "descriptor"


def search(
    gallery: Gallery,
    images: object = None,
    *,
    box: BoxLike | Sequence[BoxLike | None] | None = None,
    limit: int = 20,
    filter: str | None = None,
    candidates: int = CANDIDATES,
    rerank: Rerank = AUTO,
    expand: Expand = AUTO,
    stages: Sequence[Stage] | None = None,
    like: Names = (),
    unlike: Names = (),
    augmented: bool = False,
    min_certainty: float | None = None,
    max_pixels: int | None = None,
) -> Hits | list[Hits]:
    """Find photos of the thing in a query photo; see `InstanceCollection.search`."""
    if unlike and rerank == AUTO:
        rerank = NONE  # only descriptors can look away from something
    chosen = chosen_stages(rerank, expand, stages, gallery)
    options: dict[str, Any] = {
        "limit": limit,
        "filter": filter,
        "stages": chosen,
        "candidates": candidates,
        "augmented": augmented,
        "min_certainty": min_certainty,
    }
    near, far = listed(like), listed(unlike)
    if near or far:
        if images is not None or box is not None:
            raise SettingsError("give either images, with boxes or not, or like and unlike")
        query, named = steered_query(gallery, near, far)
        return search_queries(gallery, [query], without=named, **options)[0]
    if images is None:
        raise SettingsError("nothing to search with: give images, or uris in like")
    several = isinstance(images, list | tuple)
    queries = ask(
        gallery.encoder,
        images if isinstance(images, list | tuple) else [images],
        box if several else [box],  # type: ignore[arg-type]  # a list of boxes, or one
        max_pixels,
    )
    answers = search_queries(gallery, queries, **options)
    return answers if several else answers[0]


def search_queries(
    gallery: Gallery,
    queries: Sequence[Query],
    *,
    limit: int,
    filter: str | None,
    stages: Sequence[Stage] = (),
    candidates: int = CANDIDATES,
    augmented: bool = False,
    min_certainty: float | None = None,
    without: Collection[str] = (),
) -> list[Hits]:
    """Answer queries that are encoded already; see `search_steps`, of which this is the last."""
    *_, answers = search_steps(
        gallery,
        queries,
        limit=limit,
        filter=filter,
        stages=stages,
        candidates=candidates,
        augmented=augmented,
        min_certainty=min_certainty,
        without=without,
    )
    return answers


def search_steps(
    gallery: Gallery,
    queries: Sequence[Query],
    *,
    limit: int,
    filter: str | None,
    stages: Sequence[Stage] = (),
    candidates: int = CANDIDATES,
    augmented: bool = False,
    min_certainty: float | None = None,
    without: Collection[str] = (),
) -> Iterator[list[Hits]]:
    """Yield the answers to queries as they get better: by descriptors, then after the stages.

    The first search of all queries is one call to Milvus. Without stages there is one step. The
    first of two tells no certainty, and `min_certainty` leaves nothing out of it.

    Args:
        gallery: the photos that are searched.
        queries: what is asked.
        limit: hits for each query.
        filter: as in `search`.
        stages: what is done with the hits of the first search.
        candidates: as in `search`.
        augmented: as in `search`.
        min_certainty: as in `search`.
        without: uris that are not to be among the hits.

    Raises:
        FilterError: Milvus refused the filter, or it names a field that no photo has.
        SettingsError: a limit or `min_certainty` that cannot be.
        StoreError: Milvus failed.
    """
    check_limit(limit)
    if checked_count("candidates", candidates) > TOP_K:
        raise SettingsError(f"candidates={candidates}: Milvus gives at most {TOP_K} at once")
    if not queries:
        yield []
        return
    depth = max(limit, candidates) if stages else limit
    judge = Judge(gallery, stages, min_certainty)

    def find(asked: Sequence[Query], descriptors: np.ndarray, n: int) -> list[list[Hit]]:
        n = min(n + len(without), TOP_K)
        names = gallery.class_names
        with no_garbage_collection():
            answers = _nearest(gallery, descriptors, n, filter, augmented)
            return [
                [
                    as_hit(query, row, rank, names)
                    for rank, row in enumerate((r for r in rows if r.uri not in without), start=1)
                ]
                for query, rows in zip(asked, answers, strict=True)
            ]

    def look_up(query: Query, uris: Sequence[str]) -> list[Hit]:
        wanted = [uri for uri in uris if uri not in without]
        rows = gallery.get(wanted, filter=filter) if wanted else []
        names = gallery.class_names
        return [as_hit(query, row, 0, names).but(stages=()) for row in rows if row is not None]

    descriptors = np.stack([query.encoding.descriptor for query in queries])
    answers = find(queries, descriptors, depth)
    if filter and isinstance(gallery, PhotoRows):
        check_filter(gallery, filter, (hit.metadata for answer in answers for hit in answer))
    if stages:
        yield [
            Hits(query, [hit.but(vectors=None) for hit in hits[:limit]])
            for query, hits in zip(queries, answers, strict=True)
        ]
    context = Context(gallery, find, depth, look_up=look_up)
    answers = run_stages(stages, queries, answers, context, candidates)
    judged = map(judge, queries, answers)
    yield [
        Hits(query, hits[:limit], found)
        for query, (hits, found) in zip(queries, judged, strict=True)
    ]


def steered_query(gallery: Gallery, like: Names, unlike: Names) -> tuple[Query, set[str]]:
    """Return a query made of stored photos, and the uris that are not to be found by it.

    Its descriptor is that of `steer`; its local vectors are those of the photos in `like`, one
    for each class.

    Args:
        gallery: the photos that are searched.
        like: uris of photos to look for more of.
        unlike: uris of photos to look away from.

    Raises:
        CollectionError: a uri that is not stored.
        SettingsError: nothing in `like`, or photos that cancel each other out.
    """
    near, far = listed(like), listed(unlike)
    if not near:
        raise SettingsError("unlike alone has no direction: give like too")
    rows: list[Row] = []
    for name, row in zip([*near, *far], gallery.get([*near, *far], vectors=True), strict=True):
        if row is None:
            raise CollectionError(f"{str(name)!r} is not in the collection: add it first")
        rows.append(row)
    encodings = {row.uri: row.unpack() for row in rows}
    wanted = list(dict.fromkeys(row.uri for row in rows[: len(near)]))
    unwanted = [row.uri for row in rows[len(near) :]]
    liked = [encodings[uri] for uri in wanted]
    descriptor = steer(
        np.stack([one.descriptor for one in liked]),
        np.stack([encodings[uri].descriptor for uri in unwanted]) if unwanted else None,
    )
    first = liked[0]
    by_class: dict[int, np.ndarray] = {}
    for one in liked:
        for class_id, vector in zip(one.class_ids.tolist(), one.class_vectors, strict=True):
            by_class[class_id] = by_class.get(class_id, 0) + vector
    class_vectors = np.array(list(by_class.values()), np.float32).reshape(-1, len(descriptor))
    lengths = np.linalg.norm(class_vectors, axis=1, keepdims=True)
    encoding = replace(
        first,
        descriptor=descriptor,
        class_ids=np.array(list(by_class), np.int64),
        class_scores=np.zeros(len(by_class), np.float32),
        class_vectors=class_vectors / np.where(lengths > 0, lengths, 1),
        region_boxes=np.concatenate([one.region_boxes for one in liked]),
        region_vectors=np.concatenate([one.region_vectors for one in liked]),
        content="",
    )
    name = f"like {', '.join(wanted)}"
    if unwanted:
        name += f", unlike {', '.join(unwanted)}"
    return Query(encoding, name), set(encodings)


def ask(
    encoder: Encoder,
    images: Sequence[object],
    boxes: Sequence[BoxLike | None] | None = None,
    max_pixels: int | None = None,
) -> list[Query]:
    """Encode query photos; box, photo and limit as in `search`.

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
    photos = [
        encoder.read(image, one, max_pixels=max_pixels)
        for image, one in zip(images, checked, strict=True)
    ]
    encodings = encoder.encode_queries(list(zip(photos, checked, strict=True)))
    return [
        Query(encoding, photo.uri, photo, one and one.checked(photo.width, photo.height))
        for encoding, photo, one in zip(encodings, photos, checked, strict=True)
    ]


def _nearest(
    gallery: Gallery, descriptors: np.ndarray, limit: int, filter: str | None, augmented: bool
) -> list[list[Row]]:
    if not augmented:
        return gallery.search_vectors(descriptors, limit=limit, filter=filter)
    if not isinstance(gallery, PhotoRows):
        raise SettingsError(f"{gallery.name} has no augmented descriptors: search those of Milvus")
    return augmented_search(gallery, descriptors, limit=limit, filter=filter)


def as_hit(query: Query, row: Row, rank: int, class_names: Sequence[str]) -> Hit:
    """Return a row of Milvus's answer as a hit."""
    score = row.score or 0.0
    same = query.encoding.content and row.content == query.encoding.content
    return Hit(
        uri=row.uri,
        score=score,
        classes=shared_classes(query.encoding.class_ids, row.class_ids, class_names),
        metadata=row.metadata,
        width=row.width,
        height=row.height,
        certainty=1.0 if same else None,
        stages=(StageScore(_DESCRIPTOR, score, rank),),
        vectors=Vectors(row.content, row.class_ids, checksum=row.checksum),
    )


def _checked_box(box: BoxLike | None) -> Box | None:
    if isinstance(box, list | tuple) and box and isinstance(box[0], list | tuple):
        raise BoxError(
            f"box {box!r} is a list of boxes for one query: give a list of queries too, or one box"
        )
    return Box.of(box)
