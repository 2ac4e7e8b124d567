"""A search from the request to its steps: the photo decoded, encoded, looked for, re-ranked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.images import Image
from cwf_milvus.search.certainty import certainty_model
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.search import search_steps, steered_query
from cwf_milvus.web.batcher import Batcher
from cwf_milvus.web.metrics import Metrics
from cwf_milvus.web.wire import Asked, Seconds


@dataclass(frozen=True, eq=False)
class Step:
    """The hits of a search as far as they are known.

    Attributes:
        hits: up to the last one asked for, and one more where there is one.
        is_final: no better ones follow.
        threshold: certainty from which a hit is shown as found; None where it cannot be told.
        seconds: what it took so far.
    """

    hits: Hits
    is_final: bool
    threshold: float | None
    seconds: Seconds


def threshold_of(photos: InstanceCollection) -> float | None:
    """Return the certainty from which a hit counts as found; None where it cannot be told."""
    model = certainty_model(photos)
    if model is None:
        return None
    curve = model.verified if photos.has_keypoints() and model.verified else model.score_alone
    return curve.threshold


class Searcher:
    """Searches collections for many at once: one network, and a thread a core for the stages.

    Args:
        metrics: told the batches of the network.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._batcher = Batcher(metrics.batches.observe)
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "search")

    async def steps(
        self, photos: InstanceCollection, asked: Asked, image: Image | None
    ) -> AsyncIterator[Step]:
        """Yield the steps of a search.

        Args:
            photos: the collection.
            asked: what is asked.
            image: the query photo; None for a search by stored photos alone.

        Raises:
            CwfError: as `InstanceCollection.search`.
        """
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        rerank = "none" if asked.unlike and asked.rerank == "auto" else asked.rerank
        names = [name.strip() for name in rerank.split(",")]
        stages = chosen_stages(names[0] if len(names) == 1 else names, asked.expand, None, photos)
        without: set[str] = set()
        if image is None:
            query, without = await loop.run_in_executor(
                self._threads, steered_query, photos, asked.like, asked.unlike
            )
        else:
            query = await self._query(photos, image, asked)
        encoded = time.perf_counter()
        steps = search_steps(
            photos,
            [query],
            limit=asked.offset + asked.limit + 1,
            filter=asked.filter or None,
            stages=stages,
            candidates=asked.candidates,
            min_certainty=asked.min_certainty,
            without=without,
        )
        threshold = threshold_of(photos)
        first = None
        while (found := await loop.run_in_executor(self._threads, next, steps, None)) is not None:
            now = time.perf_counter()
            first = first or now
            yield Step(
                found[0],
                # The last of a generator is known by its number: one, or two with stages.
                not stages or now is not first,
                threshold,
                Seconds(encode=encoded - started, search=first - encoded, stages=now - first),
            )

    async def _query(self, photos: InstanceCollection, image: Image, asked: Asked) -> Query:
        box = asked.framed
        if asked.like or asked.unlike:
            raise SettingsError("give either a photo, or like and unlike: not both")
        encoder = photos.encoder
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._threads, encoder.prepare_query, image, box)
        encoding = await self._batcher.encode(encoder, prepared)
        return Query(encoding, image.uri, image, box and box.checked(image.width, image.height))

    def close(self) -> None:
        """End the threads, once their work is done."""
        self._threads.shutdown(cancel_futures=True)
