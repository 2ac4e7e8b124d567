"""The routes of a search: a photo sent and kept, what is asked of it, the answer in steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CwfError
from cwf_milvus.photos.images import Image
from cwf_milvus.photos.sources import checked_size
from cwf_milvus.photos.web import is_web, read_web
from cwf_milvus.web.answering import answer_of, event, words_of
from cwf_milvus.web.decoding import read_stored
from cwf_milvus.web.searching import Step
from cwf_milvus.web.service import Service, chosen, service_of
from cwf_milvus.web.wire import Answer, Asked, Failure, QueryKept, Url

_Model = TypeVar("_Model", bound=BaseModel)
_PHOTO = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {
            "photo": {"type": "string", "format": "binary"},
            "box": {"type": "string", "description": "x1,y1,x2,y2 in pixels of the photo"},
            "filter": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 200},
            "offset": {"type": "integer", "minimum": 0, "maximum": 2000},
            "rerank": {"type": "string"},
            "expand": {"type": "string"},
            "candidates": {"type": "integer", "minimum": 1, "maximum": 1000},
            "min_certainty": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["photo"],
    }
}
_KEPT_BODY = {
    "content": {
        "application/octet-stream": _PHOTO,
        "image/*": _PHOTO,
        "application/json": {"schema": {"$ref": "#/components/schemas/Url"}},
    },
    "required": True,
}
_ASKED_BODY = {
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Asked"}},
        "multipart/form-data": _FORM,
    },
    "required": True,
}
EVENTS = "text/event-stream"
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 403, 404, 408, 413, 415, 421, 422, 503)
}

router = APIRouter(prefix="/api", tags=["search"], responses=FAILURES)
Served = Annotated[Service, Depends(service_of)]
Chosen = Annotated[InstanceCollection, Depends(chosen)]


@router.post("/queries", openapi_extra={"requestBody": _KEPT_BODY}, response_model=QueryKept)
async def keep_query(request: Request, service: Served, photos: Chosen) -> QueryKept:
    """Send a photo once, to search with it by the name that comes back."""
    kind = _kind(request)
    if kind == "application/json":
        data = await _fetched(service, _checked(Url, await request.body()).url)
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        data = await request.body()
    else:
        raise HTTPException(415, f"{kind[:100]!r} is no photo: send its bytes as image/jpeg")
    if len(data) > service.settings.max_bytes:
        raise HTTPException(413, f"above {service.settings.max_bytes:,} bytes: save it smaller")
    key, sent = await service.queries.keep(data, photos.encoder.at_least)
    return QueryKept(query=key, width=sent.width, height=sent.height)


@router.get("/query", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def kept_query(service: Served, query: Annotated[str, Query(max_length=64)]) -> Response:
    """Return a photo that was sent, upright, as JPEG of at most 2,048 pixels a side."""
    return Response(await service.queries.shown(query), media_type="image/jpeg")


@router.post(
    "/search",
    openapi_extra={"requestBody": _ASKED_BODY},
    response_model=Answer,
    responses={200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
)
async def search(request: Request, service: Served, photos: Chosen) -> Response:
    """Search, as JSON once it is done, or as events, the first hits at once.

    With ``Accept: text/event-stream`` there is an event ``step`` with the hits by descriptors,
    then ``done`` with those of all stages, or ``failed``.
    """
    kind = _kind(request)
    sent: bytes | None = None
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=64) as form:
            asked, sent = await _of_form(form)
    elif kind == "application/json":
        asked = _checked(Asked, await request.body())
    else:
        raise HTTPException(415, f"{kind[:100]!r}: send application/json or multipart/form-data")
    _check_one_photo(asked, sent)
    service.names.check_filter(asked.filter)
    shown = partial(service.names.shown, photos)
    running = _Running(service, photos, asked, sent)
    try:
        if EVENTS in request.headers.get("accept", ""):
            first = await running.next(request)
            return StreamingResponse(_events(first, running, asked, shown), media_type=EVENTS)
        step = await running.next(request)
        while not step.is_final:
            step = await running.next(request)
    except BaseException:
        running.cancel()
        raise
    answer = answer_of(step, asked, shown)
    return Response(answer.model_dump_json(), media_type="application/json")


class _Running:
    """A search that goes on while nobody listens, and holds its turn until it is over."""

    def __init__(
        self, service: Service, photos: InstanceCollection, asked: Asked, sent: bytes | None
    ) -> None:
        self._steps: asyncio.Queue[Step | Exception] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(service, photos, asked, sent))

    async def next(self, request: Request | None = None) -> Step:
        """Return the next step; raises what the search raises."""
        while True:
            try:
                step = await asyncio.wait_for(self._steps.get(), 0.5 if request else None)
            except TimeoutError:
                if request is not None and await request.is_disconnected():
                    raise HTTPException(499, "who asked went away") from None
                continue
            if isinstance(step, Exception):
                raise step
            return step

    def cancel(self) -> None:
        """Give up, after what is being computed."""
        self._task.cancel()

    async def _run(
        self, service: Service, photos: InstanceCollection, asked: Asked, sent: bytes | None
    ) -> None:
        try:
            async with service.turns.turn():
                image = await _image(service, photos, asked, sent)
                like, unlike = [
                    await asyncio.to_thread(_uris, service, photos, names)
                    for names in (asked.like, asked.unlike)
                ]
                known = asked.model_copy(update={"like": like, "unlike": unlike})
                async for step in service.searcher.steps(photos, known, image):
                    self._steps.put_nowait(step)
        except Exception as error:  # told to who asked
            self._steps.put_nowait(error)


async def _events(
    first: Step, running: _Running, asked: Asked, shown: Callable[[str], str]
) -> AsyncIterator[str]:
    step = first
    try:
        while not step.is_final:
            yield event("step", answer_of(step, asked, shown))
            step = await running.next()
        yield event("done", answer_of(step, asked, shown))
    except CwfError as error:
        yield event("failed", Failure(error=words_of(error)))
    finally:
        running.cancel()


async def _image(
    service: Service, photos: InstanceCollection, asked: Asked, sent: bytes | None
) -> Image | None:
    """Return the query photo of a search, decoded; None for one by stored photos alone."""
    at_least, box = photos.encoder.at_least, asked.framed
    if asked.query is not None:
        return await service.queries.pixels(asked.query, at_least, box)
    if asked.url is not None:
        sent = await _fetched(service, asked.url)
    if sent is not None:
        return await service.queries.decoded(sent, at_least, box)
    if asked.uri is None:
        return None
    row = await asyncio.to_thread(service.names.row, photos, asked.uri)
    return await service.of_stored(photos, row, read_stored, row.uri, row.content, at_least, box)


def _uris(service: Service, photos: InstanceCollection, names: list[str]) -> list[str]:
    return [service.names.row(photos, name).uri for name in names]


async def _fetched(service: Service, url: str) -> bytes:
    if not service.settings.allow_urls:
        raise HTTPException(403, "urls are not fetched here: send the photo")
    if not is_web(url):
        raise HTTPException(400, f"{url[:200]!r} is not the http or https address of a photo")
    most = service.settings.max_bytes
    data = await asyncio.to_thread(read_web, url, most, public_only=True)
    return checked_size(data, url, most)


async def _of_form(form: FormData) -> tuple[Asked, bytes]:
    photo = form.get("photo")
    if not isinstance(photo, UploadFile):
        raise HTTPException(422, "the form has no file 'photo': send the query so")
    told: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "photo":
            continue
        if name in ("like", "unlike"):
            told.setdefault(name, []).append(value)
        elif name == "box" and isinstance(value, str):
            told[name] = value.split(",") if value else None
        else:
            told[name] = value or None
    told = {name: value for name, value in told.items() if value is not None}
    try:
        return Asked.model_validate(told), await photo.read()
    except ValidationError as error:
        raise _invalid(error) from error


def _check_one_photo(asked: Asked, sent: bytes | None) -> None:
    given = [one for one in (asked.query, asked.uri, asked.url, sent) if one is not None]
    if len(given) > 1 or (not given and not asked.like):
        raise HTTPException(
            400, "give one of query, uri, url or the file photo; or like, for more like stored ones"
        )


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _checked(kind: type[_Model], body: bytes) -> _Model:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(error.errors(include_url=False, include_input=False))
