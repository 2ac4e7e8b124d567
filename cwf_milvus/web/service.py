"""What all requests share: the collections, the decoders, the network's queue, what is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Annotated

from cachetools import TTLCache
from fastapi import HTTPException, Query, Request

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.store.browsing import described_fields
from cwf_milvus.store.rows import Row
from cwf_milvus.web.decoding import Decoders
from cwf_milvus.web.queries import Queries
from cwf_milvus.web.searching import Searcher
from cwf_milvus.web.settings import ServeSettings
from cwf_milvus.web.thumbnails import Thumbnails
from cwf_milvus.web.turns import Turns
from cwf_milvus.web.wire import FieldFound

_FIELDS_SECONDS = 60


class Service:
    """The service behind the routes.

    Args:
        collections: by name; the first is the one that is meant where none is named.
        settings: of the service.
    """

    def __init__(
        self, collections: Mapping[str, InstanceCollection], settings: ServeSettings
    ) -> None:
        self.collections = dict(collections)
        self.settings = settings
        self.decoders = Decoders(os.cpu_count() or 1, settings.decode_seconds)
        self.queries = Queries(self.decoders, settings.max_pixels)
        self.thumbnails = Thumbnails(settings.cache, settings.cache_bytes)
        self.turns = Turns(settings.searches, settings.waiting)
        self.searcher = Searcher()
        self._fields: TTLCache[str, list[FieldFound]] = TTLCache(100, _FIELDS_SECONDS)
        self.is_ready = False

    def chosen(self, name: str | None) -> InstanceCollection:
        """Return the collection of this name, or the first. Raises HTTPException."""
        if name is None:
            return next(iter(self.collections.values()))
        if name not in self.collections:
            known = ", ".join(self.collections)
            raise HTTPException(404, f"no collection {name[:100]!r} is served here: {known}")
        return self.collections[name]

    def fields(self, photos: InstanceCollection) -> list[FieldFound]:
        """Return the fields of the photos, looked for once a minute at most."""
        found = self._fields.get(photos.name)
        if found is None:
            found = [FieldFound(**vars(one)) for one in described_fields(photos)]
            self._fields[photos.name] = found
        return found

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


def stored(photos: InstanceCollection, uri: str) -> Row:
    """Return the row of a photo named as it is stored. Raises HTTPException."""
    row = photos.get([uri])[0]
    if row is not None and row.uri != uri:  # a path as from the folder that the service runs in
        row = None
    if row is None:
        raise HTTPException(404, f"{uri[:200]!r} is not in the collection {photos.name!r}")
    return row
