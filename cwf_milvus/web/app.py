"""The application: collections and settings in, what a server of ASGI runs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, CwfError, ImageError, StoreError
from cwf_milvus.files import drop_parts
from cwf_milvus.web import adding, asking, looking, watching
from cwf_milvus.web.answering import words_of
from cwf_milvus.web.guard import Guard
from cwf_milvus.web.metrics import Measured, Metrics
from cwf_milvus.web.service import Service
from cwf_milvus.web.settings import ServeSettings

_STATIC = Path(__file__).parent / "static"
_STATUS: tuple[tuple[type[CwfError], int], ...] = (
    (ImageError, 422),
    (CollectionError, 404),
    (StoreError, 503),
    (CwfError, 400),
)


def create_app(
    collections: Mapping[str, InstanceCollection], settings: ServeSettings | None = None
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        collections: open ones, by the name that they are served under; the first is the one that
            is meant where none is named. They stay open when the application ends.
        settings: of the service; None for those of a page on this machine alone.

    Example:
        >>> with InstanceCollection.open("photos.db", "holiday") as photos:
        ...     uvicorn.run(create_app({"holiday": photos}))
    """
    settings = settings or ServeSettings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(collections, settings, metrics)
        if settings.writable:
            await asyncio.to_thread(drop_parts, settings.added)
        try:
            await service.start()
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="cwf-milvus",
        description="Find this very thing in your photos.",
        version=version("cwf-milvus"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(asking.router)
    app.include_router(looking.router)
    if settings.writable:
        app.include_router(adding.router)
    app.include_router(watching.router)
    app.add_exception_handler(CwfError, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measured, metrics=metrics)  # outermost: refusals count too
    return app


def _failed(_: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    assert isinstance(error, CwfError)
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse({"error": words_of(error)}, status, headers)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    words = f"{place[:200]}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse({"error": words}, 422)
