"""Photos by http: read within bytes and time, from a server that can be as bad as it likes."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from photo_files import CHELSEA, encoded, refusal

from cwf_milvus.errors import ImageError
from cwf_milvus.photos import web
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.photos.sources import read_bytes

PHOTO = encoded(CHELSEA[:60, :90])
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def give(asked: BaseHTTPRequestHandler, body: bytes = PHOTO, **headers: object) -> None:
    asked.send_response(200)
    for name, value in {"Content-Length": len(body), **headers}.items():
        asked.send_header(name, str(value))
    asked.end_headers()
    asked.wfile.write(body)


def to(place: str) -> Answer:
    def answer(asked: BaseHTTPRequestHandler) -> None:
        asked.send_response(302)
        asked.send_header("Location", place)
        asked.end_headers()

    return answer


def test_a_photo_is_read_by_http_and_named_by_its_url():
    with serving(give) as host:
        url = f"{host}/a%20cat.png?size=[big]&id=3#top"
        image = load_image(url)
        assert image.uri == url
        assert image.content == hashlib.sha256(PHOTO).hexdigest()
        assert list_photos(url) == [url]
        assert load_image(f"{host}/Zürich – 東京 🐈.png").width == 90


def test_what_the_server_says_is_told():
    with serving(lambda asked: asked.send_error(404)) as host:
        message = refusal(f"{host}/gone.jpg")
    assert "the host answers 404 Not Found; check the url" in message


def test_a_host_that_does_not_answer_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
    message = refusal(url)
    assert f"cannot read '{url}': Connection refused" in message
    assert "that its host can be reached" in message
    for wrong in (
        "http://",
        "http:///a.jpg",
        "http://[::1/a.jpg",
        "http://a b/c.jpg",
        "http://x:y/z",
    ):
        assert "cannot read" in refusal(wrong)


@pytest.mark.parametrize("told", [{}, {"Content-Length": 10**12}, {"Transfer-Encoding": "chunked"}])
def test_an_endless_answer_ends_at_the_limit_of_bytes(told):
    def endless(asked: BaseHTTPRequestHandler) -> None:
        asked.send_response(200)
        for name, value in told.items():
            asked.send_header(name, str(value))
        asked.end_headers()
        piece = b"x" * 65536
        if "Transfer-Encoding" in told:
            piece = b"10000\r\n" + piece + b"\r\n"
        while True:
            asked.wfile.write(piece)

    with serving(endless) as host, pytest.raises(ImageError, match="larger than 1,000,000 bytes"):
        read_bytes(host + "/a.jpg", max_bytes=1_000_000)


@pytest.mark.parametrize("stage", ["silent", "headers", "body"])
def test_an_answer_that_drips_ends_at_the_limit_of_time(stage, monkeypatch):
    monkeypatch.setattr(web, "SECONDS", 0.4)
    over = threading.Event()

    def drip(asked: BaseHTTPRequestHandler) -> None:
        if stage != "silent":
            asked.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"X: " if stage == "headers" else b"\r\n"))
        while not over.wait(0.05):
            if stage != "silent":
                asked.wfile.write(b"x")

    with serving(drip) as host:
        message = refusal(host + "/a.jpg")
        over.set()
    assert "it took more than 0.4 seconds; download it first" in message


def test_an_answer_that_is_cut_off_is_refused():
    with serving(lambda asked: give(asked, PHOTO, **{"Content-Length": len(PHOTO) + 9})) as host:
        assert "the answer ends 9 bytes too early" in refusal(host + "/a.png")


def test_a_redirect_is_followed_to_http_alone_and_not_for_ever(tmp_path):
    with serving(give) as host, serving(to(f"{host}/there.png")) as first:
        assert load_image(f"{first}/here.png").width == 90
    for place in (f"file://{tmp_path}/a.png", "ftp://127.0.0.1/a.png", "gopher://x/"):
        with serving(to(place)) as host:
            assert "cannot read" in refusal(f"{host}/a.png")
    with serving(lambda asked: to(asked.path + "x")(asked)) as host:
        assert "cannot read" in refusal(f"{host}/a.png")


def test_a_redirect_from_outside_into_the_local_network_is_refused(monkeypatch):
    class Outside:
        is_global = True

    with serving(give) as inside, serving(to(f"{inside}/secret.png")) as host:
        seen = iter([Outside()])
        known = web.ipaddress.ip_address
        monkeypatch.setattr(web.ipaddress, "ip_address", lambda text: next(seen, known(text)))
        message = refusal(f"{host}/a.png")
    assert "it leads from a public host into a local network" in message


def test_a_chained_url_without_its_driver_says_what_to_install(monkeypatch):
    import builtins

    plain = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name.partition(".")[0] == "s3fs":
            raise ModuleNotFoundError("No module named 's3fs'", name="s3fs")
        return plain(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    message = refusal("zip://a.png::s3://bucket/a.zip")
    assert "s3fs" in message
    assert message.endswith("pip install what it names")


def test_an_address_of_colons_is_no_chain():
    assert web.is_web("http://[::1]/a.jpg")
    assert web.is_web("simplecache::https://[::1]:80/a?b=c::d")
    assert not web.is_web("zip://a.jpg::http://[::1]/a.zip")
    assert not web.is_web("http://[::1]/a::zip://b")
