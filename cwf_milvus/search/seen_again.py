"""The stage `cam`: the paper's re-ranking by regions of the query's class maps (its section 3.4).

Each candidate is read and seen by the network again: the maps of the query's classes on it give
boxes, each box a descriptor over these classes, and the best cosine with the query's is the score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_count
from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.local_vectors import pool_local
from cwf_milvus.encode.seen import Seen
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.method.cam import class_activation_maps
from cwf_milvus.method.pooling import class_vectors_in_boxes, l2_normalize
from cwf_milvus.method.regions import THRESHOLDS, CellBox, heat_boxes
from cwf_milvus.photos.box import Box
from cwf_milvus.search.stage import Context, Stage, reranked, stored_of

if TYPE_CHECKING:
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.encode.views import Prepared

_READERS = 4
_LEAST_SIDE = 5  # cells


class Cam(Stage):
    """Re-rank by the best region of the query's class maps on each hit.

    Photos that cannot be read any more keep their place, and a note says why. The descriptor of a
    hit's best region takes the place of its stored one for the expansion of this query: in a
    collection of the paper's descriptors (`descriptor="classes"`) the sum over the query's classes
    that was scored; in others what the encoder makes of that region, as of a query's box, for as
    many of the best hits as `n_described` says.

    With the encoder's `paper_compat` the 40 % box is never scored, as in the published scripts.
    Their other slip, that a region's descriptor is seen by later queries too, is not repeated.

    Args:
        n_classes: how many of the query's classes (the paper's 6).
        n_heat: the maps of how many of them make the heat map that the boxes come from.
        thresholds: of the boxes, fractions of the heat map's maximum.
        n_described: how many of the best hits get the descriptor of their region, where it takes
            work of its own (a sixth of a forward pass); no expansion should take more.

    Raises:
        SettingsError: a number under 1, or a threshold that is not between 0 and 1.
    """

    name = "cam"

    def __init__(
        self,
        n_classes: int = 6,
        n_heat: int = 2,
        thresholds: Sequence[float] = THRESHOLDS,
        n_described: int = 20,
    ) -> None:
        self.n_classes = checked_count("n_classes", n_classes)
        self.n_heat = checked_count("n_heat", n_heat)
        if not thresholds or not all(0 < one < 1 for one in thresholds):
            raise SettingsError(f"thresholds={thresholds!r}: give fractions between 0 and 1")
        self.thresholds = tuple(thresholds)
        self.n_described = checked_count("n_described", n_described)

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`.

        Raises:
            SettingsError: no collection whose encoder could see the photos.
        """
        if context.gallery is None:
            raise SettingsError("cam sees the photos anew, which takes a collection's encoder")
        encoder = context.gallery.encoder
        ids = torch.from_numpy(np.array(query.encoding.class_ids[: self.n_classes]))
        asked = torch.from_numpy(np.array(query.encoding.class_vectors[: self.n_classes]))
        target = l2_normalize(asked.sum(dim=0)).to(encoder.device)
        scores = np.full(len(hits), np.nan)
        boxes: dict[int, Box] = {}
        descriptors: dict[int, np.ndarray] = {}
        reasons: dict[int, str] = {}
        is_papers = encoder.settings.descriptor == "classes"
        crops: dict[int, tuple[Tensor, Tensor, CellBox]] = {}  # of the best hits so far
        for seen, members in _seen(encoder, hits, reasons):
            maps, found = self._regions(encoder, seen, ids, [place for place, _ in members])
            for (place, i), (cell_boxes, vectors) in zip(members, found, strict=True):
                cosines = vectors @ target
                best = int(cosines.argmax())
                scores[i] = float(cosines[best])
                boxes[i] = _in_pixels(cell_boxes[best], seen.features.shape[-2:], hits[i])
                if "descriptor" in context.wanted and hits[i].vectors is not None:
                    if is_papers:
                        descriptors[i] = vectors[best].cpu().numpy()
                    else:
                        one = slice(place, place + 1)
                        crops[i] = seen.features[one].clone(), maps[one].clone(), cell_boxes[best]
                        while len(crops) > self.n_described:
                            del crops[min(crops, key=lambda i: (scores[i], -i))]
        for i, crop in crops.items():
            descriptors[i] = _described(encoder, ids, *crop).cpu().numpy()

        def changes(i: int) -> dict[str, Any]:
            changed: dict[str, Any] = {"box": boxes[i]}
            if i in descriptors:
                changed["vectors"] = replace(stored_of(hits[i]), descriptor=descriptors[i])
            return changed

        return reranked(self.name, hits, scores, changes, lambda i: reasons.get(i, ""))

    @torch.no_grad()
    def _regions(
        self, encoder: Encoder, seen: Seen, ids: Tensor, places: Sequence[int]
    ) -> tuple[Tensor, list[tuple[list[CellBox], Tensor]]]:
        """Return a batch's class maps (B, N, H, W), and the boxes of some of its photos.

        With the boxes, of each the unit sum of its whitened class vectors, of shape (R, d).
        """
        features = seen.features
        n_photos, _, height, width = features.shape
        weights = seen.class_weights(ids.to(features.device).expand(n_photos, -1))
        maps = class_activation_maps(seen.class_source, weights, (height, width))
        thresholds = self.thresholds
        if encoder.settings.paper_compat and len(thresholds) > 1:
            thresholds = thresholds[:-1]
        lists = heat_boxes(
            maps[:, : self.n_heat].mean(dim=1)[list(places)], thresholds, _LEAST_SIDE
        )
        vectors = [
            class_vectors_in_boxes(
                features[place], maps[place], boxes, encoder.settings.feature_weighting
            )
            for place, boxes in zip(places, lists, strict=True)
        ]
        counts = [len(boxes) for boxes in lists]
        whitened = encoder.whiten(torch.cat(vectors), "classes")
        sums = l2_normalize(whitened.sum(dim=1))
        return maps, list(zip(lists, torch.split(sums, counts), strict=True))


@torch.no_grad()
def _described(
    encoder: Encoder, ids: Tensor, features: Tensor, maps: Tensor, box: CellBox
) -> Tensor:
    """Return the descriptor (d,) that the encoder gives to a box of a photo, as to a query's.

    Args:
        encoder: whose descriptors are not of classes alone.
        ids: the query's classes, of shape (N,).
        features: X of shape (1, K, H, W).
        maps: of the query's classes, of shape (1, N, H, W).
        box: in cells.
    """
    local = pool_local(features, maps, ids[None], ids[None], [box], encoder.settings)
    class_vectors = encoder.whiten(local.class_vectors, "classes")
    region_vectors = encoder.whiten(local.region_vectors[0], "regions")
    return encoder.describe(class_vectors, [region_vectors])[0]


def _seen(
    encoder: Encoder, hits: Sequence[Hit], reasons: dict[int, str]
) -> Iterator[tuple[Seen, list[tuple[int, int]]]]:
    """Yield batches as the network saw them, each with (place in the batch, index of the hit)."""
    cache = encoder.seen
    kept: dict[int, tuple[Seen, list[tuple[int, int]]]] = {}
    fresh: list[int] = []
    for i, hit in enumerate(hits):
        batch = cache.find(_key(hit))
        if batch is None:
            fresh.append(i)
        else:
            members = kept.setdefault(id(batch), (batch, []))[1]
            members.append((batch.photos.index(_key(hit)), i))
    yield from kept.values()
    with ThreadPoolExecutor(_READERS) as readers:
        for group in batches(
            _prepared(encoder, hits, fresh, reasons, readers),
            encoder.batch_size,
            lambda item: item[1].grid[0],
        ):
            with torch.no_grad():
                maps = encoder.backbone(encoder.views([prepared for _, prepared in group]))
            batch = Seen(
                maps.features,
                maps.class_source,
                maps.class_weights,
                tuple(_key(hits[i]) for i, _ in group),
            )
            cache.keep(batch)
            yield batch, [(place, i) for place, (i, _) in enumerate(group)]


def _prepared(
    encoder: Encoder,
    hits: Sequence[Hit],
    indices: Sequence[int],
    reasons: dict[int, str],
    readers: ThreadPoolExecutor,
) -> Iterator[tuple[int, Prepared]]:
    def read(i: int) -> Prepared | str:
        try:
            return encoder.prepare(encoder.read(hits[i].uri))
        except ImageError as error:
            return str(error)

    ahead = _READERS + 2 * encoder.batch_size
    reading = deque((i, readers.submit(read, i)) for i in indices[:ahead])
    for following in [*indices[ahead:], *[None] * len(reading)]:
        i, future = reading.popleft()
        if following is not None:
            reading.append((following, readers.submit(read, following)))
        outcome = future.result()
        if isinstance(outcome, str):
            reasons[i] = outcome
        else:
            yield i, outcome


def _key(hit: Hit) -> str:
    content = hit.vectors.content if hit.vectors is not None else ""
    return f"{content} {hit.uri}"


def _in_pixels(box: CellBox, cells: Sequence[int], hit: Hit) -> Box:
    height, width = cells
    return Box(*(float(side) for side in box)).scaled(hit.width / width, hit.height / height)
