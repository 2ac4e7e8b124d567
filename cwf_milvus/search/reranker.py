"""`Reranker`: the stages on the hits of any Milvus collection, whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Hit, Query, StageScore
from cwf_milvus.encode.encoding import Encoding, Vectors
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.keypoint_codes import Keypoints, unpack_keypoints
from cwf_milvus.search.stage import Context, Stage
from cwf_milvus.store.packing import Precision, decoded, unpack_vectors, vector_bytes

Source = str | Sequence[str] | Callable[[Mapping[str, Any]], Any]
"""Where a hit has its vectors: a field, several fields, or a function of the hit's entity."""


class Reranker:
    """Runs stages on what `MilvusClient.search` answered, without a collection of ours.

    A field of vectors may hold a list of vectors, a flat list of numbers, or the base64 text of
    `packing.pack_vectors`, which is little-endian float16 unless `precision` says int8, as our own
    collections do; several fields are put together. A function
    is given the hit's entity and returns an array of shape (n, d), so that an `Encoder` can
    look at the photos of a collection that stores no local vectors.

    Args:
        stages: such as ``[Regions(), LocalExpansion()]``; a stage that searches Milvus anew or
            sees the photos again (`qe`, `aqe`, `cam`) cannot run here.
        regions: where a hit has its region vectors.
        classes: where a hit has its class vectors.
        class_ids: where a hit has the classes of these; needed by `Online` and `ClassMatched`.
        boxes: where a hit has the boxes of its regions, x1, y1, x2, y2 in its pixels.
        keypoints: where a hit has its keypoints, for `Spatial`: `Keypoints`, or the base64 text of
            `keypoint_codes.pack_keypoints`.
        precision: of vectors in base64, "float16", "int8" or "int4".

    Raises:
        SettingsError: an unknown precision, or stages that need vectors of which it is not said
            where they are.

    Example:
        >>> rerank = Reranker([Regions()], regions="patch_vectors")
        >>> answer = client.search("theirs", [vector], limit=100, output_fields=["patch_vectors"])
        >>> hits = rerank(answer[0], regions=query_patches)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        regions: Source | None = None,
        classes: Source | None = None,
        class_ids: Source | None = None,
        boxes: Source | None = None,
        keypoints: Source | None = None,
        precision: Precision = "float16",
    ) -> None:
        self.stages = list(stages)
        vector_bytes(1, precision)  # refuses an unknown one
        self._precision: Precision = precision
        self._sources: dict[str, Source | None] = {
            "regions": regions,
            "classes": classes,
            "class_ids": class_ids,
            "boxes": boxes,
            "keypoints": keypoints,
        }
        for stage in self.stages:
            for kind in stage.needed:
                if self._sources.get(kind) is None:
                    raise SettingsError(
                        f"the stage {stage.name!r} needs the {kind} of each hit: say where "
                        f"they are with {kind}=FIELD, or leave the stage out"
                    )

    def __call__(
        self,
        answer: Sequence[Mapping[str, Any]],
        query: Encoding | None = None,
        *,
        regions: np.ndarray | None = None,
        classes: np.ndarray | None = None,
        class_ids: np.ndarray | None = None,
        name: str = "query",
    ) -> Hits:
        """Return the hits of one query as the stages leave them.

        Args:
            answer: one query's part of what `MilvusClient.search` gave, with the fields in it.
            query: from `Encoder.encode_query`; or, in its place, arrays:
            regions: the query's region vectors, of shape (Q, d).
            classes: the query's class vectors, of shape (N, d).
            class_ids: the classes of these, of shape (N,).
            name: of the query, where it is shown.

        Returns:
            `Hits`, whose `uri` is the primary key as text, and whose `metadata` are the entity's
            fields but for those that hold vectors.

        Raises:
            SettingsError: a field that is missing or holds no vectors of the query's dimension, or
                keypoints without those of a query.
        """
        asked = query or _encoding(regions, classes, class_ids)
        dim = max(asked.region_vectors.shape[1], asked.class_vectors.shape[1])
        hits = [self._hit(row, rank, dim) for rank, row in enumerate(answer, start=1)]
        question = Query(asked, name)
        for stage in self.stages:
            hits = stage(question, hits, Context())
        return Hits(question, hits)

    def _hit(self, row: Mapping[str, Any], rank: int, dim: int) -> Hit:
        entity = row.get("entity", row)
        key = getattr(row, "id", None)  # pymilvus' own, which is a mapping by the key's name
        if key is None:
            key = row.get("id", rank)
        regions, classes, ids, boxes, keypoints = (
            self._read(name, entity, key) for name in self._sources
        )
        region_vectors = _array(regions, dim, key, self._precision)
        class_vectors = _array(classes, dim, key, self._precision)
        n_regions = 0 if region_vectors is None else len(region_vectors)
        n_classes = 0 if class_vectors is None else len(class_vectors)
        region_boxes = np.zeros((n_regions, 4), np.float32)
        if boxes is not None:
            region_boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        class_ids = np.arange(n_classes) if ids is None else np.asarray(ids, np.int64)
        if len(class_ids) != n_classes or len(region_boxes) != n_regions:
            raise SettingsError(
                f"hit {key!r} has {n_regions} region vectors for {len(region_boxes)} boxes, and "
                f"{n_classes} class vectors for {len(class_ids)} classes"
            )
        hidden = {
            field
            for source in self._sources.values()
            if source is not None and not callable(source)
            for field in ([source] if isinstance(source, str) else source)
        }
        score = float(row.get("distance", 0.0))
        return Hit(
            uri=str(key),
            score=score,
            metadata={name: value for name, value in entity.items() if name not in hidden},
            stages=(StageScore("milvus", score, rank),),
            vectors=Vectors(
                "",
                class_ids,
                class_vectors=class_vectors,
                region_boxes=region_boxes,
                region_vectors=region_vectors,
                keypoints=_keypoints(keypoints, key),
            ),
        )

    def _read(self, name: str, entity: Mapping[str, Any], key: object) -> Any:
        source = self._sources[name]
        if source is None:
            return None
        if callable(source):
            return source(entity)
        fields = [source] if isinstance(source, str) else list(source)
        missing = [field for field in fields if field not in entity]
        if missing:
            raise SettingsError(
                f"hit {key!r} came without its field {missing[0]!r}: name it in output_fields"
            )
        values = [entity[field] for field in fields]
        return values[0] if len(values) == 1 else values


def _encoding(
    regions: np.ndarray | None, classes: np.ndarray | None, class_ids: np.ndarray | None
) -> Encoding:
    region_vectors = np.atleast_2d(np.asarray(regions if regions is not None else (), np.float32))
    class_vectors = np.atleast_2d(np.asarray(classes if classes is not None else (), np.float32))
    ids = np.arange(len(class_vectors)) if class_ids is None else np.asarray(class_ids, np.int64)
    if not (region_vectors.size or class_vectors.size):
        raise SettingsError("no vectors of the query: give its Encoding, or regions or classes")
    no_boxes = np.zeros((len(region_vectors), 4), np.float32)
    scores = np.zeros(len(ids), np.float32)
    return Encoding(
        np.zeros(0, np.float32),
        ids,
        scores,
        class_vectors,
        no_boxes,
        region_vectors,
        "query",
        "",
        0,
        0,
    )


def _keypoints(value: Any, key: object) -> Keypoints | None:
    """Return the keypoints that a field holds; None for an empty one."""
    if value is None or isinstance(value, Keypoints):
        return value
    parts = [value] if isinstance(value, str) else value
    try:
        text = "".join(parts)
        return unpack_keypoints(decoded(text)) if text else None
    except (TypeError, CollectionError) as error:
        raise SettingsError(
            f"hit {key!r} holds no keypoints ({error}): give what pack_keypoints packs, in base64"
        ) from error


def _array(value: Any, dim: int, key: object, precision: Precision) -> np.ndarray | None:
    """Return the vectors that a field holds, of shape (n, dim)."""
    if value is None:
        return None
    try:
        parts = value if isinstance(value, list) and value and isinstance(value[0], str) else None
        if isinstance(value, str) or parts:
            vectors = unpack_vectors(parts or [value], dim, precision)
        else:
            vectors = np.asarray(value, np.float32).reshape(-1, dim)
    except (ValueError, TypeError, CollectionError) as error:
        raise SettingsError(
            f"hit {key!r} holds no vectors of {dim} numbers ({error}): give lists of numbers, or "
            f"{precision} in base64"
        ) from error
    if not np.isfinite(vectors).all():
        raise SettingsError(f"the vectors of hit {key!r} have numbers that are not finite")
    return vectors
