"""What all requests share: the collections, the decoders, the network's queue, what is kept."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from typing import Annotated, Any, ParamSpec, TypeVar

from cachetools import TTLCache
from fastapi import HTTPException, Query, Request

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import ImageError
from cwf_milvus.store.rows import Row
from cwf_milvus.web.decoding import Decoders
from cwf_milvus.web.metrics import Metrics
from cwf_milvus.web.names import Names
from cwf_milvus.web.queries import Queries
from cwf_milvus.web.searching import Searcher
from cwf_milvus.web.settings import ServeSettings
from cwf_milvus.web.thumbnails import Thumbnails
from cwf_milvus.web.turns import Turns

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOOKERS = 8
_LOOKED_UP, _SECONDS = 100, 300.0  # answers that are kept, and how long


class Service:
    """The service behind the routes.

    Args:
        collections: by name; the first is the one that is meant where none is named.
        settings: of the service.
        metrics: where what is done is counted.
    """

    def __init__(
        self,
        collections: Mapping[str, InstanceCollection],
        settings: ServeSettings,
        metrics: Metrics,
    ) -> None:
        self.collections = dict(collections)
        self.settings = settings
        self.decoders = Decoders(os.cpu_count() or 1, settings.decode_seconds)
        self.names = Names(settings.hide_paths)
        self.metrics = metrics
        self.queries = Queries(self.decoders, settings.max_pixels)
        self.thumbnails = Thumbnails(settings.cache, settings.cache_bytes)
        self.turns = Turns(settings.searches, settings.waiting)
        self.searcher = Searcher(metrics)
        self.writing = asyncio.Lock()
        metrics.watch(self.turns)
        self._looking = threading.Lock()
        self._lookers = threading.BoundedSemaphore(_LOOKERS)
        self._found: TTLCache[Hashable, list[Any]] = TTLCache(_LOOKED_UP, _SECONDS)
        self.is_ready = False

    def chosen(self, name: str | None) -> InstanceCollection:
        """Return the collection of this name, or the first. Raises HTTPException."""
        if name is None:
            return next(iter(self.collections.values()))
        if name not in self.collections:
            known = ", ".join(self.collections)
            raise HTTPException(404, f"no collection {name[:100]!r} is served here: {known}")
        return self.collections[name]

    def looked_up(
        self, photos: InstanceCollection, what: Hashable, find: Callable[[], list[_R]]
    ) -> list[_R]:
        """Return what looking at every row finds, for five minutes or until photos come or go.

        One at a time: who asks meanwhile waits, and most often for the same answer.

        Raises:
            HTTPException: so many wait that nobody else would have a thread.
        """
        if not self._lookers.acquire(blocking=False):
            raise HTTPException(
                503, "too many look around at once: try again in a moment", {"Retry-After": "5"}
            )
        with ExitStack() as held:
            held.callback(self._lookers.release)
            held.enter_context(self._looking)
            key = id(photos), photos.count(), what
            found: list[_R] | None = self._found.get(key)
            if found is None:
                found = self._found[key] = find()
            return found

    def forget(self) -> None:
        """Let go of what was looked up: photos have come."""
        with self._looking:
            self._found.clear()

    async def of_stored(
        self,
        photos: InstanceCollection,
        row: Row,
        work: Callable[_P, _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Return what a function of `web.decoding` makes of a stored photo.

        Raises:
            HTTPException: it is gone, or another than was stored; names no path.
        """
        try:
            return await self.decoders.run(row.uri, work, *args, **kwargs)
        except ImageError as error:
            name = self.names.shown(photos, row.uri)
            raise HTTPException(
                404,
                f"{name[:200]!r} cannot be shown: it is gone, or not what was stored; index it "
                "again",
            ) from error

    async def start(self) -> None:
        """Load the networks and start the decoders, before the first request."""
        await self.decoders.warm()
        for one in self.collections.values():
            await asyncio.to_thread(getattr, one, "encoder")
        self.is_ready = True

    def close(self) -> None:
        """End what works for the requests."""
        self.searcher.close()
        self.decoders.close()


def service_of(request: Request) -> Service:
    """Return the service that a request came to, for FastAPI's `Depends`."""
    found: Service = request.app.state.service
    return found


def chosen(
    request: Request,
    collection: Annotated[
        str | None, Query(max_length=255, description="the first one, where none is named")
    ] = None,
) -> InstanceCollection:
    """Return the collection that a request names, for FastAPI's `Depends`."""
    return service_of(request).chosen(collection)
