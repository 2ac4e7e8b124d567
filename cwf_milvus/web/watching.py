"""The routes of who watches the service: health, readiness, metrics, and the API's own page."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from cwf_milvus.errors import CwfError
from cwf_milvus.web.asking import Served
from cwf_milvus.web.manual import manual
from cwf_milvus.web.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def health() -> Response:
    """Tell that the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Served) -> Response:
    """Return counts and times, as Prometheus reads them."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/api/docs", response_class=HTMLResponse)
async def docs(request: Request) -> Response:
    """Return the API's own page."""
    return HTMLResponse(manual(request.app.openapi()))


@router.get("/readyz")
def ready(service: Served) -> Response:
    """Tell whether searches can be answered: the network is loaded, Milvus is there."""
    if not service.is_ready:
        return JSONResponse({"error": "the network is being loaded: wait"}, 503)
    try:
        for one in service.collections.values():
            one.count()
    except CwfError:
        return JSONResponse({"error": "Milvus cannot be reached: see that it runs"}, 503)
    return PlainTextResponse("ready\n")
