"""Search by HTTP: one endpoint that takes a photo and a box, and gives hits as JSON.

cwf-milvus index photos/ --uri photos.db --collection photos
python examples/serve_fastapi.py photos.db photos
curl -F photo=@query.jpg -F box=279,100,601,862 http://127.0.0.1:8000/search

Requests are answered at the same time, by one network. It guards against large uploads; who may
ask is for what stands in front of it.
"""

import os
import sys
from typing import Annotated, Any

from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwf_milvus import InstanceCollection
from cwf_milvus.errors import BoxError, FilterError, ImageError, StoreError

MAX_BYTES = 20 * 2**20


class UploadLimit:
    """Ends a request with 413 as soon as more than `max_bytes` of its body have come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body; what it declares itself is not believed."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, f"the upload is above the limit of {self.max_bytes} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def create_app(photos: InstanceCollection, max_bytes: int = MAX_BYTES) -> FastAPI:
    """Return the application for an open collection.

    Args:
        photos: shared by all requests, as is its network.
        max_bytes: of a request's body.
    """
    app = FastAPI(title="Instance search")
    app.add_middleware(UploadLimit, max_bytes=max_bytes)
    print(f"ready: {photos.encoder}", file=sys.stderr)  # loads the network, before any request

    @app.exception_handler(ImageError)
    @app.exception_handler(BoxError)
    @app.exception_handler(FilterError)
    def bad_request(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(StoreError)
    def no_milvus(_: Request, error: Exception) -> JSONResponse:
        print(error, file=sys.stderr)
        return JSONResponse({"detail": "the collection cannot be reached, try again later"}, 503)

    @app.post("/search")  # not async: each request has a thread of its own
    def search(
        photo: UploadFile,
        box: Annotated[str | None, Form()] = None,
        limit: Annotated[int, Form(ge=1, le=100)] = 20,
    ) -> list[dict[str, Any]]:
        hits = photos.search(photo.file.read(), box=box or None, limit=limit, rerank="regions")
        return [hit.to_dict() for hit in hits]

    return app


if __name__ == "__main__":
    import uvicorn

    token = os.environ.get("MILVUS_TOKEN")
    with InstanceCollection.open(sys.argv[1], sys.argv[2], token=token) as opened:
        uvicorn.run(create_app(opened), host="127.0.0.1", port=8000)
