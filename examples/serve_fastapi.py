"""The service inside a program of your own, beside its own routes.

cwf-milvus index photos/ --uri photos.db --collection photos
python examples/serve_fastapi.py photos.db photos
curl -F photo=@query.jpg -F box=279,100,601,862 http://127.0.0.1:8000/api/search

`cwf-milvus serve` is the same without the program.
"""

import os
import sys

from fastapi import FastAPI

from cwf_milvus import InstanceCollection
from cwf_milvus.web.app import create_app
from cwf_milvus.web.settings import ServeSettings


def build(photos: InstanceCollection) -> FastAPI:
    """Return the service for an open collection, with a route more."""
    app = create_app({photos.name: photos}, ServeSettings(max_bytes=20 * 2**20))

    @app.get("/hello")
    def hello() -> dict[str, int]:
        return {"photos": photos.count()}

    return app


if __name__ == "__main__":
    import uvicorn

    token = os.environ.get("MILVUS_TOKEN")
    with InstanceCollection.open(sys.argv[1], sys.argv[2], token=token) as opened:
        uvicorn.run(build(opened), host="127.0.0.1", port=8000, access_log=False)
