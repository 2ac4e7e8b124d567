"""The route by which photos are dropped into a collection, where the service is writable."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import UploadFile

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CwfError, ImageError
from cwf_milvus.files import write_whole
from cwf_milvus.index.report import Report
from cwf_milvus.photos import formats
from cwf_milvus.photos.sources import checked_size
from cwf_milvus.web.answering import event, words_of
from cwf_milvus.web.asking import EVENTS, FAILURES, Chosen, Served
from cwf_milvus.web.bodies import MOST_ADDED
from cwf_milvus.web.decoding import read_photo
from cwf_milvus.web.service import Service
from cwf_milvus.web.wire import Added, AddedCounts, Failure, Outcome

router = APIRouter(prefix="/api", tags=["photos"], responses=FAILURES)
_LETTERS = re.compile(r"[^\w.-]+")
_LONGEST = 80  # letters of a name that are kept
_FORM = {
    "schema": {
        "type": "object",
        "properties": {
            "photos": {"type": "array", "items": {"type": "string", "format": "binary"}}
        },
        "required": ["photos"],
    }
}


@router.post(
    "/photos",
    openapi_extra={"requestBody": {"content": {"multipart/form-data": _FORM}, "required": True}},
    response_class=Response,
    responses={200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
)
async def add(request: Request, service: Served, photos: Chosen) -> Response:
    """Add photos to the collection: the files of a form, whatever their fields are called.

    An event ``progress`` tells what became of each, ``done`` the counts. A photo is in the
    collection once its event has come; when the connection ends, those after it are not.
    """
    form = await request.form(max_files=MOST_ADDED, max_fields=16)
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        await form.close()
        raise HTTPException(422, "the form has no files: send photos as multipart/form-data")

    async def events() -> AsyncIterator[str]:
        counts: dict[str, int] = {}
        try:
            for done, file in enumerate(files, start=1):
                outcome, reason = await _added(service, photos, file)
                counts[outcome] = counts.get(outcome, 0) + 1
                name = Path(file.filename or "").name
                told = Added(done=done, total=len(files), name=name, outcome=outcome, reason=reason)
                yield event("progress", told)
            yield event("done", AddedCounts(counts=counts))
        except CwfError as error:
            yield event("failed", Failure(error=words_of(error)))
        finally:
            with anyio.CancelScope(shield=True):  # also for one who went away
                await form.close()
                service.searcher.forget()
                await asyncio.to_thread(service.forget)

    return StreamingResponse(events(), media_type=EVENTS)


async def _added(
    service: Service, photos: InstanceCollection, file: UploadFile
) -> tuple[Outcome, str | None]:
    """Store a photo, and return what became of it, with the reason of a failure.

    Raises:
        StoreError: Milvus failed.
    """
    name = Path(file.filename or "photo").name
    limits = service.settings
    try:
        data = checked_size(await file.read(limits.max_bytes + 1), name, limits.max_bytes)
        encoder = photos.encoder
        # What a process of its own could decode may be decoded in this one.
        await service.decoders.run(
            name, read_photo, data, name, encoder.at_least, None, limits.max_pixels
        )
    except ImageError as error:
        return "failed", str(error)
    with anyio.CancelScope(shield=True):  # a thread cannot be called off, and holds the turn
        async with service.writing:
            stored = await asyncio.to_thread(_store, photos, limits.added, name, data)
    return stored


def _store(
    photos: InstanceCollection, folder: Path, name: str, data: bytes
) -> tuple[Outcome, str | None]:
    place = folder / _file_name(name, data)
    is_new = not place.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(place, data)
    except OSError as error:
        return "failed", f"it cannot be kept here ({error.strerror}): ask who runs the service"
    report = photos.add([place], progress=False)
    if report.failed:
        if is_new:
            place.unlink(missing_ok=True)
        return "failed", report.failed[0][1]
    return _outcome(report), None


def _outcome(report: Report) -> Outcome:
    kinds: tuple[Outcome, ...] = ("added", "updated", "moved", "skipped")
    return next((kind for kind in kinds if getattr(report, kind)), "skipped")


def _file_name(name: str, data: bytes) -> str:
    """Return a name that no other photo has, in letters that every file system takes."""
    one = formats.format_of(data, name)
    suffix = formats.suffix_of(name)
    if one is not None and suffix not in one.suffixes:
        suffix = one.suffixes[0]
    stem = _LETTERS.sub("-", name.removesuffix(Path(name).suffix)).strip(".-")[:_LONGEST]
    return f"{stem or 'photo'}-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
