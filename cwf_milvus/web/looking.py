"""The routes of looking around: photos in pages, groups, pictures, what is known of each."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.explain import explain_figure
from cwf_milvus.index.alike import same_scene
from cwf_milvus.photos import formats
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.store.browsing import described_fields, groups, photos_after, same_bytes
from cwf_milvus.store.rows import Row
from cwf_milvus.web.answering import name_of, photo_of
from cwf_milvus.web.asking import FAILURES, Chosen, Served
from cwf_milvus.web.decoding import read_stored, stored_bytes, stored_preview
from cwf_milvus.web.searching import threshold_of
from cwf_milvus.web.service import Service
from cwf_milvus.web.wire import (
    CollectionFound,
    DuplicateGroup,
    FieldFound,
    GroupFound,
    NeighbourFound,
    PhotoDetails,
    PhotoPage,
)

router = APIRouter(prefix="/api", tags=["photos"], responses=FAILURES)
Uri = Annotated[str, Query(min_length=1, max_length=4096, description="as the answers name it")]
_SIZES = (64, 128, 256, 512, 1024, 2048)
_DAY = "private, max-age=86400"
_PICTURE: dict[str, Any] = {"response_class": Response}
_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WebP": "image/webp",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "JPEG 2000": "image/jp2",
    "HEIC": "image/heic",
}


@router.get("/collections")
def collections(service: Served) -> list[CollectionFound]:
    """Return the collections that are served."""
    return [
        CollectionFound(
            name=name,
            photos=one.count(),
            writable=service.settings.writable,
            urls=service.settings.allow_urls,
            graph=one.has_graph(),
            keypoints=one.has_keypoints(),
        )
        for name, one in service.collections.items()
    ]


@router.get("/info")
def info(service: Served, photos: Chosen) -> dict[str, Any]:
    """Return what a collection holds, how it was made, and what a search does by itself."""
    told = photos.info(fields=False)
    if service.settings.hide_paths:
        told.pop("uri")
    return {
        **told,
        "fields": [one.model_dump() for one in fields(service, photos)],
        "threshold": threshold_of(photos),
        "stages": [stage.name for stage in chosen_stages(gallery=photos)],
    }


@router.get("/fields")
def fields(service: Served, photos: Chosen) -> list[FieldFound]:
    """Return the fields of the photos, for filters."""
    found = service.looked_up(photos, "fields", partial(described_fields, photos))
    return [FieldFound(**vars(one)) for one in found]


@router.get("/photos")
def page(
    service: Served,
    photos: Chosen,
    filter: Annotated[str | None, Query(max_length=4096)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    after: Annotated[str, Query(max_length=4096)] = "",
) -> PhotoPage:
    """Return a page of photos, in the order of their uris."""
    names = service.names
    shown = partial(names.shown, photos)
    start = names.uri(photos, after) if after else ""
    rows = photos_after(photos, start, limit=limit, filter=names.check_filter(filter))
    return PhotoPage(
        photos=[photo_of(row, shown(row.uri)) for row in rows],
        after=shown(rows[-1].uri) if len(rows) == limit else None,
    )


@router.get("/groups")
def grouped(
    service: Served, photos: Chosen, by: Annotated[str, Query(min_length=1, max_length=255)]
) -> list[GroupFound]:
    """Return how many photos each folder, date, or value of a field has."""
    wanted = service.names.check_grouping(by)
    found = service.looked_up(photos, ("groups", wanted), partial(groups, photos, wanted))
    return [GroupFound(**vars(one)) for one in found]


@router.get("/photo")
def photo(service: Served, photos: Chosen, uri: Uri) -> PhotoDetails:
    """Return what is known of a photo."""
    row = service.names.row(photos, uri)
    names = photos.encoder.class_names
    return PhotoDetails(
        **photo_of(row, uri).model_dump(),
        classes=[names[i] for i in row.class_ids.tolist()],
        scores=row.class_scores.tolist(),
        content=row.content,
        in_graph=photos.has_graph() and row.uri in photos.graph.get([row.uri]),
    )


@router.get("/neighbours")
def neighbours(
    service: Served, photos: Chosen, uri: Uri, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[NeighbourFound]:
    """Return the photos that resemble one, by the graph."""
    row, shown = service.names.row(photos, uri), partial(service.names.shown, photos)
    if not photos.has_graph():
        raise HTTPException(404, f"{photos.name!r} has no graph: run `cwf-milvus graph` first")
    return [
        NeighbourFound(
            uri=shown(one.uri), name=name_of(one.uri), score=one.similarity, inliers=one.inliers
        )
        for one in photos.neighbours(row.uri, limit)
    ]


@router.get("/duplicates")
def duplicates(
    service: Served, photos: Chosen, kind: Literal["bytes", "scene"] = "bytes"
) -> list[DuplicateGroup]:
    """Return groups of photos with the same bytes, or of the same scene, by the graph."""
    shown = partial(service.names.shown, photos)
    found = service.looked_up(
        photos,
        ("duplicates", kind),
        partial(same_scene if kind == "scene" else same_bytes, photos),
    )
    return [
        DuplicateGroup(representative=shown(group[0]), uris=[shown(uri) for uri in group])
        for group in found
    ]


@router.get("/thumbnail", **_PICTURE, responses={200: {"content": {"image/jpeg": {}}}})
async def thumbnail(
    request: Request,
    service: Served,
    photos: Chosen,
    uri: Uri,
    size: Annotated[int, Query(ge=1, le=2048)] = 256,
) -> Response:
    """Return a photo as a small JPEG, its longest side of the next of 64, 128, ... 2,048 pixels."""
    row = await asyncio.to_thread(service.names.row, photos, uri)
    longest = next(one for one in _SIZES if one >= size)
    tag = f'"{row.content[:32]}-{longest}"'
    headers = {"ETag": tag, "Cache-Control": _DAY}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data = await asyncio.to_thread(service.thumbnails.get, row.content, str(longest))
    if data is None:
        data = await service.of_stored(photos, row, stored_preview, row.uri, row.content, longest)
        await asyncio.to_thread(service.thumbnails.put, row.content, str(longest), data)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/original", **_PICTURE, responses={200: {"content": {"image/*": {}}}})
async def original(service: Served, photos: Chosen, uri: Uri) -> Response:
    """Return a photo as it is stored, or, with ``--strip-exif``, its pixels alone as JPEG."""
    row = await asyncio.to_thread(service.names.row, photos, uri)
    headers = {"Cache-Control": "private, no-cache"}
    if service.settings.strip_exif:
        data = await service.of_stored(photos, row, stored_preview, row.uri, row.content, None)
        return Response(data, media_type="image/jpeg", headers=headers)
    data = await service.of_stored(photos, row, stored_bytes, row.uri, row.content)
    one = formats.format_of(data, row.uri)
    kind = _TYPES.get(one.name if one else "", "application/octet-stream")
    return Response(data, media_type=kind, headers=headers)


@router.get("/explanation", **_PICTURE, responses={200: {"content": {"image/png": {}}}})
async def explanation(service: Served, photos: Chosen, uri: Uri) -> Response:
    """Return a picture of what the network sees in a photo."""
    row = await asyncio.to_thread(service.names.row, photos, uri)
    kind = f"explanation-{photos.encoder.fingerprint[:16]}"  # what this network sees
    data = await asyncio.to_thread(service.thumbnails.get, row.content, kind)
    if data is None:
        async with service.turns.turn():
            data = await _explained(service, photos, row)
        await asyncio.to_thread(service.thumbnails.put, row.content, kind, data)
    return Response(data, media_type="image/png", headers={"Cache-Control": _DAY})


async def _explained(service: Service, photos: InstanceCollection, row: Row) -> bytes:
    encoder = photos.encoder
    image = await service.of_stored(
        photos, row, read_stored, row.uri, row.content, encoder.at_least, None
    )

    def draw() -> bytes:
        stream = io.BytesIO()
        explain_figure(encoder, image).save(stream, "PNG")
        return stream.getvalue()

    return await asyncio.to_thread(draw)
