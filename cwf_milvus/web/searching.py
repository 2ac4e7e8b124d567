"""A search from the request to its steps: the photo decoded, encoded, looked for, re-ranked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from cachetools import LRUCache, TTLCache

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.images import Image
from cwf_milvus.search.certainty import certainty_model
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.search import search_steps, steered_query
from cwf_milvus.search.stage import Stage
from cwf_milvus.web.batcher import Batcher
from cwf_milvus.web.metrics import Metrics
from cwf_milvus.web.wire import Asked, Seconds

_P = ParamSpec("_P")
_R = TypeVar("_R")
_QUERIES = 64  # that stay encoded
_ANSWERS, _ANSWER_SECONDS = 64, 60.0


@dataclass(frozen=True, eq=False)
class Step:
    """The hits of a search as far as they are known.

    Attributes:
        hits: up to the last one asked for, and more where there are more.
        is_final: no better ones follow.
        threshold: certainty from which a hit is shown as found; None where it cannot be told.
        seconds: what it took so far.
        reaches: how many hits were asked for.
    """

    hits: Hits
    is_final: bool
    threshold: float | None
    seconds: Seconds
    reaches: int


def threshold_of(photos: InstanceCollection) -> float | None:
    """Return the certainty from which a hit counts as found; None where it cannot be told."""
    model = certainty_model(photos)
    if model is None:
        return None
    curve = model.verified if photos.has_keypoints() and model.verified else model.score_alone
    return curve.threshold


@dataclass(frozen=True, eq=False)
class _Plan:
    """How a search is done: what a collection says of it, asked for in a thread."""

    stages: list[Stage]
    threshold: float | None

    @classmethod
    def of(cls, photos: InstanceCollection, asked: Asked) -> _Plan:
        rerank = "none" if asked.unlike and asked.rerank == "auto" else asked.rerank
        names = [name.strip() for name in rerank.split(",")]
        stages = chosen_stages(names[0] if len(names) == 1 else names, asked.expand, None, photos)
        return cls(stages, threshold_of(photos))


class Searcher:
    """Searches for many at once: one network, and threads for what comes before and after it.

    What a query was encoded to is kept for its other filters and pages, and an answer a minute for
    its further pages.

    Args:
        metrics: told the batches of the network.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._batcher = Batcher(metrics.batches.observe)
        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "search")
        self._queries: LRUCache[Hashable, Query] = LRUCache(_QUERIES)
        self._answers: TTLCache[Hashable, Step] = TTLCache(_ANSWERS, _ANSWER_SECONDS)

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
        wanted = asked.model_dump_json(exclude={"query", "uri", "url", "offset", "limit"})
        key = (id(photos), None if image is None else image.content, wanted)
        needed = asked.offset + asked.limit + 1
        kept = self._answers.get(key)
        if asked.offset and kept is not None and kept.reaches >= needed:
            yield kept
            return
        started = time.perf_counter()
        plan = await self._run(_Plan.of, photos, asked)
        without: set[str] = set()
        if image is None:
            query, without = await self._run(steered_query, photos, asked.like, asked.unlike)
        else:
            query = await self._query(photos, image, asked)
        encoded = time.perf_counter()
        depth = max(needed, asked.candidates)  # so many are looked at, so that a page more is free
        steps = search_steps(
            photos,
            [query],
            limit=depth,
            filter=asked.filter,
            stages=plan.stages,
            candidates=asked.candidates,
            min_certainty=asked.min_certainty,
            without=without,
        )
        done = await self._run(next, steps)
        first = time.perf_counter()
        seconds = Seconds(encode=encoded - started, search=first - encoded, stages=0)
        if plan.stages:
            yield Step(done[0], False, plan.threshold, seconds, depth)
            done = await self._run(next, steps)
            seconds = seconds.model_copy(update={"stages": time.perf_counter() - first})
        last = Step(done[0], True, plan.threshold, seconds, depth)
        self._answers[key] = last
        yield last

    async def _query(self, photos: InstanceCollection, image: Image, asked: Asked) -> Query:
        if asked.like or asked.unlike:
            raise SettingsError("give either a photo, or like and unlike: not both")
        encoder, box = photos.encoder, asked.framed
        key = (id(photos), image.content, box)
        query = self._queries.get(key)
        if query is None:
            prepared = await self._run(encoder.prepare_query, image, box)
            encoding = await self._batcher.encode(encoder, prepared)
            clipped = box and box.checked(image.width, image.height)
            query = self._queries[key] = Query(encoding, image.uri, image, clipped)
        return query

    async def _run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))

    def forget(self) -> None:
        """Let go of answers: photos have come."""
        self._answers.clear()

    def close(self) -> None:
        """End the threads, once their work is done."""
        self._threads.shutdown(cancel_futures=True)
