"""Targets of `fuzz.py`: requests to the service as they come over the wire, and answers to ours."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from fuzz_targets import Made

TOKEN = "a-token-of-thirty-letters-or-so"
_PATIENCE = 60.0  # seconds that a request may wait for its answer


class _Inline:
    """Decodes in this process, so that what a decoder does is seen."""

    def __init__(self, *_: object) -> None:
        pass

    async def warm(self) -> None:
        return

    async def run(self, _: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    def close(self) -> None:
        return


class _Wire(asyncio.Transport):
    """A connection of which what is written is kept."""

    def __init__(self, lost: Callable[[None], None]) -> None:
        super().__init__()
        self.sent, self.closed, self.lost = bytearray(), False, lost

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 8765)}.get(name, default)

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


class _Heard(logging.Handler):
    """Keeps the exceptions that uvicorn and asyncio log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = record.exc_info[1] if record.exc_info else None
        self.errors.append(found or AssertionError(record.getMessage()))


def _photo(kind: str = "JPEG") -> bytes:
    import PIL.Image
    from small_encoders import CHELSEA

    stream = io.BytesIO()
    PIL.Image.fromarray(CHELSEA[100:190, 100:190]).save(stream, kind)
    return stream.getvalue()


def _service(folder: Path, **options: Any) -> tuple[Callable[[bytes], bytes], Any, list[str]]:
    """Return what gives the service a connection's bytes, the service, and its photos' uris."""
    from operator_photos import fitted, write_photos
    from uvicorn.server import ServerState

    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.web import adding, queries, service
    from cwf_milvus.web.app import create_app
    from cwf_milvus.web.run import Patient, config_of
    from cwf_milvus.web.settings import ServeSettings

    photos = InstanceCollection.create(
        folder / "p.db", "photos", fitted(descriptor="both", keypoints=50)
    )
    photos.add(write_photos(folder / "photos"), progress=False)
    photos.set_metadata({uri: {"place": "here", "year": 1999} for uri in photos.uris()})
    photos.build_graph(neighbours=2, progress=False)
    service.Decoders = _Inline  # type: ignore[misc]
    queries.secrets = SimpleNamespace(token_urlsafe=lambda _: "kept")  # type: ignore[attr-defined]

    def stored(_: object, place: Path, name: str, data: bytes) -> tuple[str, None]:
        (place / adding._file_name(name, data)).with_suffix(".x")
        return "added", None  # the collection stays as it is

    adding._store = stored  # type: ignore[assignment]
    settings = ServeSettings(
        cache=folder / "thumbnails", added=folder / "added", max_pixels=4_000_000, **options
    )
    app, heard, loop = create_app({"photos": photos}, settings), _Heard(), asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    config = config_of(app)
    config.load()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(heard)
        logging.getLogger(name).propagate = False
    context = app.router.lifespan_context(app)
    loop.run_until_complete(context.__aenter__())
    state = ServerState()

    async def one(data: bytes) -> bytes:
        protocol = Patient(config=config, server_state=state, app_state={})
        wire = _Wire(protocol.connection_lost)
        protocol.connection_made(wire)
        protocol.data_received(data)
        await asyncio.sleep(0)
        while state.tasks:
            done, _ = await asyncio.wait(set(state.tasks), timeout=0.005)
            cycle = protocol.cycle
            if not done and cycle is not None and cycle.more_body:
                break  # it waits for what will not come
        wire.close()
        await asyncio.sleep(0)
        if state.tasks:
            _, late = await asyncio.wait(set(state.tasks), timeout=_PATIENCE)
            assert not late, "a request never ends"
        return bytes(wire.sent)

    def talk(data: bytes) -> bytes:
        if not data:  # asyncio gives no such
            return b""
        head, blank, body = data.partition(b"\r\n\r\n")
        head = head.replace(b"Content-Length: @", b"Content-Length: %d" % len(body))
        heard.errors.clear()
        sent = loop.run_until_complete(one(head + blank + body))
        assert context is not None  # collected as garbage, it would end the service
        if heard.errors:
            raise heard.errors[0]
        assert b"HTTP/1.1 500" not in sent
        return sent

    return talk, photos, sorted(photos.uris())


def _requests(uri: str, *more: str) -> list[bytes]:
    """Return a request of every kind."""
    head = "\r\n".join(["Host: localhost:8765", *more])

    def asked(line: str, *headers: str, body: bytes | None = None) -> bytes:
        length = [] if body is None else ["Content-Length: @"]
        lines = [f"{line} HTTP/1.1", head, *headers, *length]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")

    paths = ["/", "/healthz", "/readyz", "/metrics", "/api/docs", "/api/collections", "/api/info"]
    paths += ["/api/fields", "/api/photos?limit=2&filter=year%20%3E%201", "/api/groups?by=place"]
    paths += [f"/api/photos?after={uri}", "/api/groups?by=folder", "/api/query?query=kept"]
    paths += [f"/api/{kind}?uri={uri}" for kind in ("photo", "neighbours", "original")]
    paths += [f"/api/thumbnail?uri={uri}&size=64", f"/api/explanation?uri={uri}"]
    paths += ["/api/duplicates?kind=scene", "/static/app.js", "/api/photo?uri=%2e%2e%2fx"]
    box = b'--b\r\nContent-Disposition: form-data; name="box"\r\n\r\n1,2,30,40\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a \xc3\xa9.jpg"\r\n'
    form = box + file + b"Content-Type: image/jpeg\r\n\r\n" + _photo() + b"\r\n--b--\r\n"
    multipart, plain = "Content-Type: multipart/form-data; boundary=b", "application/json"
    told: dict[str, Any] = {"uri": "x", "box": [1, 2, 30, 40], "limit": 3, "filter": "year > 1"}
    whole = {"query": "kept", "rerank": "regions", "expand": "none", "candidates": 3, "offset": 1}
    like = {"like": ["x"], "unlike": ["x"], "min_certainty": 0.5}
    bodies = [json.dumps(one).encode() for one in (told, whole, like, {"url": "http://x/a.jpg"})]
    ranged = ["Range: bytes=0-5,7-", "If-None-Match: *", "If-Range: x", "Accept-Encoding: gzip"]
    forwarded = ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Accept: text/html"]
    return [
        *(asked(f"GET {path}") for path in paths),
        asked("GET /static/manual.css", *ranged),
        asked("GET /?token=x&y=1", *forwarded),
        asked("GET /", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Cookie: a=b; c"),
        asked("POST /api/queries", "Content-Type: image/jpeg", body=_photo()),
        asked("POST /api/queries", f"Content-Type: {plain}", body=bodies[3]),
        *(asked("POST /api/search", f"Content-Type: {plain}", body=one) for one in bodies),
        asked("POST /api/search", multipart, "Accept: text/event-stream", body=form),
        asked("POST /api/photos", multipart, "Origin: http://localhost:8765", body=form),
        asked("POST /api/search", f"Content-Type: {plain}", "Transfer-Encoding: chunked")
        + b"2\r\n{}\r\n0\r\n\r\n",
    ]


def web(folder: Path) -> Made:
    """The service as it stands on one's own machine, writable."""
    talk, _, uris = _service(folder, writable=True)
    wholes = _requests(quote(uris[0], safe=""))
    wholes = [one.replace(b'"x"', json.dumps(uris[0]).encode()) for one in wholes]
    for one in wholes:
        talk(one)
    return talk, wholes


def web_locked(folder: Path) -> Made:
    """The service as it is shown to others: with a token, and no paths."""
    more = {"names": ("photos.example",), "strip_exif": True, "hide_paths": True}
    talk, _, _ = _service(folder, token=TOKEN, **more)
    bearer = f"Authorization: Bearer {TOKEN}"
    page = talk(f"GET /api/photos HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n\r\n".encode())
    name = json.loads(page.partition(b"\r\n\r\n")[2])["photos"][0]["uri"]
    wholes = [
        one.replace(b'"x"', json.dumps(name).encode()) for one in _requests(quote(name), bearer)
    ]
    login = f"GET /?token={TOKEN}&a=b HTTP/1.1\r\nHost: photos.example\r\n\r\n".encode()

    def target(data: bytes) -> None:
        assert str(folder).encode() not in talk(data)

    return target, [*wholes, login]


def url(folder: Path) -> Made:
    """What another host answers to a photo's url."""
    from cwf_milvus.errors import ImageError
    from cwf_milvus.photos.web import read_web

    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg"
    known, answer = socket.getaddrinfo, [b""]

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return known(host, *args, **kwargs)

    socket.getaddrinfo = lookup

    def serve() -> None:
        while True:
            with suppress(OSError), listener.accept()[0] as one:
                one.settimeout(5)
                one.recv(65536)
                one.sendall(answer[0])

    threading.Thread(target=serve, daemon=True).start()

    def target(data: bytes) -> None:
        answer[0] = data
        with suppress(ImageError):
            read_web(address, 5000)

    body = b"\xff\xd8 a photo"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n\xff\xd8 a phot\r\n0\r\n\r\n"
    )
    moved = b"HTTP/1.1 302 Found\r\nLocation: /b.jpg\r\nContent-Length: 0\r\n\r\n"
    away = b"HTTP/1.1 301 Moved\r\nLocation: ftp://127.0.0.1/b.jpg\r\nSet-Cookie: a=b\r\n\r\n"
    gone = b"HTTP/1.0 404 Not Found\r\nContent-Encoding: gzip\r\n\r\nnothing"
    return target, [head + body, chunked, moved, away, gone]
