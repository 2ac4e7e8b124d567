"""The service over a small collection, on a port of its own, as a client meets it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.web.app import create_app
from cwf_milvus.web.run import config_of
from cwf_milvus.web.settings import ServeSettings


@contextmanager
def served(
    collections: dict[str, InstanceCollection], folder: Path, **settings: Any
) -> Iterator[httpx.Client]:
    """A client of the service, which runs in a thread."""
    chosen = ServeSettings(cache=folder / "thumbnails", added=folder / "added", **settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config_of(create_app(collections, chosen)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def events(text: str) -> list[tuple[str, str]]:
    """The server-sent events of an answer: (name, data)."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines:
            found.append((lines["event"], lines["data"]))
    return found
