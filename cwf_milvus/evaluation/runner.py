"""One evaluation: a dataset's photos and queries, encoded, searched and scored."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.arrays import ArrayCollection, rank
from cwf_milvus.evaluation.datasets.truth import Dataset
from cwf_milvus.evaluation.features import (
    FeatureStore,
    Photo,
    Progress,
    encodings,
)
from cwf_milvus.evaluation.metrics import Result, evaluate_rankings
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.search.choose import Expand, Rerank, chosen_stages
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.registry import CANDIDATES
from cwf_milvus.search.search import search_queries
from cwf_milvus.search.stage import Stage
from cwf_milvus.store.client import MESSAGE_BYTES, TOP_K, Store

_ROWS_AT_ONCE = 256
_QUERIES_AT_ONCE = 32


@dataclass(frozen=True)
class Inputs:
    """A dataset as one network sees it: files of features, in the dataset's order.

    Attributes:
        dataset: what is searched, asked and right.
        images: a file for each of `dataset.images`.
        queries: a file for each of `dataset.queries`, within its box where it has one.
        fit: of the photos that whitenings are fitted on; empty where none were given.
        store: what keeps them.
    """

    dataset: Dataset
    images: list[Path]
    queries: list[Path]
    fit: list[Path]
    store: FeatureStore


@dataclass(frozen=True)
class Evaluation:
    """What one setting gave.

    Attributes:
        result: the scores.
        seconds_per_query: of the search, the query's own encoding not counted.
        bytes_per_photo: that a photo takes in the collection; of arrays, its vectors in float32.
        where: "Milvus Lite", "Milvus" or "arrays".
    """

    result: Result
    seconds_per_query: float
    bytes_per_photo: int
    where: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return {**vars(self), "result": self.result.to_dict()}


@dataclass(frozen=True)
class BoxedQuery:
    """A box on the photo of a query; the group says which, where several share the photo."""

    image: str
    box: Box
    group: str | None = None


def gather(
    dataset: Dataset,
    store: FeatureStore,
    fit_photos: str | Path | Iterable[str | Path] | None = None,
    *,
    progress: Progress | None = None,
) -> Inputs:
    """Have every photo of a dataset, and those to fit whitenings on, seen by the network once.

    Args:
        dataset: the dataset.
        store: where features are kept; what it has is not made again.
        fit_photos: files, folders, globs or urls; None for none.
        progress: called with (photos done, photos in all).

    Raises:
        ImageError: a photo that cannot be read.
    """
    listed = [] if fit_photos is None else list_photos(fit_photos)
    photos = [
        *(Photo(dataset.path(name)) for name in dataset.images),
        *(Photo(dataset.path(query.image), query.box) for query in dataset.queries),
        *(Photo(Path(uri)) for uri in listed),
    ]
    places = store.collect(photos, progress)
    ends = np.cumsum([len(dataset.images), len(dataset.queries)])
    return Inputs(dataset, places[: ends[0]], places[ends[0] : ends[1]], places[ends[1] :], store)


def evaluate(
    inputs: Inputs,
    encoder: Encoder,
    *,
    exact: bool = False,
    uri: str | None = None,
    token: str | None = None,
    rerank: Rerank = None,
    expand: Expand = None,
    candidates: int = CANDIDATES,
    graph: bool = False,
) -> Evaluation:
    """Search with every query of a dataset, and score the answers.

    Args:
        inputs: from `gather`, with a store of this encoder's network and size; one that keeps
            keypoints where the stages look at them.
        encoder: whitens and describes.
        exact: search plain arrays in place of Milvus.
        uri: of the Milvus to use; None for a Milvus Lite that is made for this, and removed.
        token: for a server.
        rerank: as in `InstanceCollection.search`.
        expand: as in `InstanceCollection.search`.
        candidates: as in `InstanceCollection.search`.
        graph: build the graph of the photos first, for ``expand="graph"``.

    Raises:
        StoreError: Milvus failed.
        SettingsError: a stage that there is not.

    Example:
        >>> dataset = load_dataset("data/mine")                     # doctest: +SKIP
        >>> inputs = gather(dataset, FeatureStore(encoder, "cache"))  # doctest: +SKIP
        >>> evaluate(inputs, encoder).result.mean_ap                # doctest: +SKIP
    """
    dataset = inputs.dataset
    chosen_stages(rerank, expand)  # refused ahead of the work
    stored_points, asked_points = inputs.store.n_keypoints(encoder)
    # Files, not names: the stages that read candidates again find them by uri.
    stored_as = [str(dataset.path(name)) for name in dataset.images]
    asked_as = [str(dataset.path(query.image)) for query in dataset.queries]
    asked = [
        Query(encoding, query.image, box=query.box)
        for encoding, query in zip(
            encodings(encoder, asked_as, inputs.queries, keypoints=asked_points),
            dataset.queries,
            strict=True,
        )
    ]
    if exact:
        stored = encodings(encoder, stored_as, inputs.images, keypoints=stored_points)
        arrays = ArrayCollection(encoder, stored)
        if graph:
            arrays.build_graph()
        stages = chosen_stages(rerank, expand, gallery=arrays)
        vectors = encoder.dim * (1 + encoder.n_classes + encoder.n_regions)
        return _answered(inputs, arrays, asked, stages, candidates, 4 * vectors, "arrays")
    with tempfile.TemporaryDirectory(prefix="cwf-milvus-") as folder:
        name = f"evaluate_{uuid.uuid4().hex[:12]}"
        place = uri or str(Path(folder) / "evaluate.db")
        collection = InstanceCollection.create(place, name, encoder, token=token)
        try:
            for start in range(0, len(stored_as), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                photos = stored_as[part], inputs.images[part]
                collection.upsert(encodings(encoder, *photos, keypoints=stored_points))
            if graph:
                collection.build_graph(progress=False)
            stages = chosen_stages(rerank, expand, gallery=collection)
            where = "Milvus Lite" if collection.store.is_lite else "Milvus"
            row_bytes = collection.layout.row_bytes
            return _answered(inputs, collection, asked, stages, candidates, row_bytes, where)
        finally:
            collection.drop()


def _answered(
    inputs: Inputs,
    collection: Gallery,
    asked: Sequence[Query],
    stages: Sequence[Stage],
    candidates: int,
    n_bytes: int,
    where: str,
) -> Evaluation:
    limit = min(len(inputs.images), TOP_K)
    names = {str(inputs.dataset.path(name)): name for name in inputs.dataset.images}
    rankings = []
    started = time.monotonic()
    for start in range(0, len(asked), _QUERIES_AT_ONCE):
        answers = search_queries(
            collection,
            asked[start : start + _QUERIES_AT_ONCE],
            limit=limit,
            filter=None,
            stages=stages,
            candidates=candidates,
        )
        rankings += [[names[hit.uri] for hit in hits] for hits in answers]
    seconds = (time.monotonic() - started) / max(1, len(asked))
    return Evaluation(evaluate_rankings(inputs.dataset, rankings), seconds, n_bytes, where)


def score_vectors(
    dataset: Dataset,
    queries: np.ndarray,
    images: np.ndarray,
    *,
    exact: bool = False,
    uri: str | None = None,
    token: str | None = None,
) -> Result:
    """Score one vector a photo, of any method, compared by inner product.

    Args:
        dataset: the dataset.
        queries: of shape (Q, d), in the order of `dataset.queries`.
        images: of shape (N, d), in the order of `dataset.images`.
        exact: rank by plain arrays in place of Milvus.
        uri: as in `evaluate`.
        token: as in `evaluate`.
    """
    if exact:
        return evaluate_rankings(dataset, list(rank(queries, images)))
    with tempfile.TemporaryDirectory(prefix="cwf-milvus-") as folder:
        store = Store(uri or str(Path(folder) / "evaluate.db"), token=token, make=True)
        try:
            return evaluate_rankings(dataset, _rank_in_milvus(store, queries, images))
        finally:
            store.close()


def _rank_in_milvus(store: Store, queries: np.ndarray, images: np.ndarray) -> list[list[int]]:
    name = f"evaluate_{uuid.uuid4().hex[:12]}"
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("place", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=images.shape[1])
    store.create(name, schema, "vector", {"index_type": "FLAT"})
    try:
        at_once = max(1, MESSAGE_BYTES // (4 * images.shape[1] + 64))
        for start in range(0, len(images), at_once):
            part = np.asarray(images[start : start + at_once], np.float32)
            store.write(name, [{"place": start + i, "vector": v} for i, v in enumerate(part)])
        rankings = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            answers = store.search(
                name,
                None,
                data=list(np.asarray(queries[start : start + _QUERIES_AT_ONCE], np.float32)),
                anns_field="vector",
                limit=min(len(images), TOP_K),
                output_fields=["place"],
                search_params={"metric_type": "IP"},
            )
            rankings += [[int(hit["entity"]["place"]) for hit in answer] for answer in answers]
        return rankings
    finally:
        store.call("drop_collection", name)


def ask_whole(dataset: Dataset) -> Dataset:
    """Return the dataset with its queries' boxes left out."""
    return replace(dataset, queries=tuple(replace(q, box=None) for q in dataset.queries))


def ask_boxes(dataset: Dataset, boxes: Sequence[BoxedQuery], *, one_thing: bool = False) -> Dataset:
    """Return the dataset asked by other boxes, each with the truth of the query of its photo.

    The photo itself becomes junk, as in Holidays: it is found by any method.

    Args:
        dataset: the dataset.
        boxes: on photos of its queries.
        one_thing: a box asks for what is in it alone: the query's other junk, photos of what its
            photo shows beside it, is wrong.

    Raises:
        SettingsError: a photo that is no query, or not of that group.
    """
    queries = []
    for boxed in boxes:
        known = [
            query
            for query in dataset.queries
            if query.image == boxed.image and boxed.group in (None, query.group)
        ]
        if not known:
            raise SettingsError(
                f"{boxed.image!r} of group {boxed.group!r} is no query of {dataset.name}: a box "
                "takes its right answers from a query"
            )
        others = frozenset[str]() if one_thing else known[0].junk
        junk = others | {boxed.image} & set(dataset.images)
        queries.append(replace(known[0], box=boxed.box, junk=junk))
    return replace(dataset, queries=tuple(queries))
