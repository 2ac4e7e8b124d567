"""The service against those who mean harm: foreign names and sites, tokens, paths, bombs, sloth."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
from fastapi import HTTPException
from operator_photos import fitted, write_photos
from web_service import served

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.web import looking
from cwf_milvus.web.decoding import Decoders
from cwf_milvus.web.settings import ServeSettings
from cwf_milvus.web.thumbnails import Thumbnails
from cwf_milvus.web.turns import Turns

TOKEN = "a-token-of-thirty-letters-or-so"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstanceCollection]:
    root = tmp_path_factory.mktemp("hostile")
    folder = write_photos(root / "photos")
    (folder / "damaged.jpg").unlink()
    encoder = fitted(descriptor="both", keypoints=50)
    with InstanceCollection.create(root / "photos.db", "photos", encoder) as photos:
        photos.add(folder, progress=False)
        yield photos


@pytest.fixture(scope="module")
def client(stored: InstanceCollection, tmp_path_factory: Any) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("open")
    limits = {"max_bytes": 300_000, "max_pixels": 1_000_000, "decode_seconds": 5.0}
    with served({"photos": stored}, folder, body_seconds=3.0, **limits) as client:
        yield client


@pytest.fixture(scope="module")
def locked(stored: InstanceCollection, tmp_path_factory: Any) -> Iterator[httpx.Client]:
    with served({"photos": stored}, tmp_path_factory.mktemp("locked"), token=TOKEN) as client:
        yield client


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status
    assert words in answer.json()["error"]


# Whose it is


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "a b", "[::1"])
def test_a_name_that_is_not_the_services_own_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/api/collections", headers={"Host": host})
    assert answer.status_code in (400, 421)
    assert str(client.base_url.port) not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "[::1]:80", "192.168.0.7"])
def test_addresses_and_localhost_are_its_own_names(client: httpx.Client, host: str) -> None:
    assert client.get("/api/collections", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
)
def test_another_sites_page_gets_nothing(client: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/api/photos"), ("POST", "/api/search")):
        refused(client.request(method, path, headers=headers), 403, "another site's page")


def test_a_link_from_another_site_opens_the_page_alone(client: httpx.Client) -> None:
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert client.get("/static/manual.css", headers=link).status_code == 200
    assert client.get("/api/photos", headers=link).status_code == 403


def test_every_answer_forbids_scripts_and_pictures_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/api/docs", "/api/collections", "/nowhere", "/static/manual.css"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_apis_page_asks_no_other_host(client: httpx.Client) -> None:
    page = client.get("/api/docs").text
    assert "POST /api/search" in page
    assert "://" not in page
    assert "<script" not in page


# Tokens


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "photos.example"])
def test_other_machines_reach_it_with_a_token_alone(host: str) -> None:
    with pytest.raises(SettingsError, match="CWF_MILVUS_SERVE_TOKEN"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token=TOKEN).host == host


def test_a_token_that_can_be_guessed_is_refused_unsaid() -> None:
    with pytest.raises(SettingsError) as error:
        ServeSettings(token="secret7")
    assert "secret7" not in str(error.value)


def test_without_the_token_only_its_health_is_told(locked: httpx.Client) -> None:
    for path in ("/", "/api/photos", "/static/manual.css", "/metrics", "/api/openapi.json"):
        refused(locked.get(path), 401, "a token is needed")
    page = locked.get("/", headers={"Accept": "text/html,*/*"})  # what a browser asks
    assert page.text.startswith("a token is needed: open /?token=")
    assert locked.get("/healthz").status_code == 200
    assert locked.get("/readyz").status_code == 200


def test_programs_send_the_token_as_a_header(locked: httpx.Client) -> None:
    for given, status in ((TOKEN, 200), (TOKEN[:-1], 401), ("x", 401), ("ü" * 20, 401)):
        headers = {"Authorization": f"Bearer {given}".encode()}
        assert locked.get("/api/photos", headers=headers).status_code == status


def test_the_page_gets_a_cookie_that_is_not_the_token(locked: httpx.Client) -> None:
    answer = locked.get("/", params={"token": TOKEN, "q": "a b"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?q=a+b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert locked.get("/api/photos").status_code == 200  # the client kept it
    locked.cookies.clear()
    refused(locked.get("/", params={"token": "wrong"}), 401, "another one")
    assert locked.get("/api/photos", headers={"Cookie": f"cwf_milvus_serve={TOKEN}"}).is_error


def test_the_token_is_in_no_answer(locked: httpx.Client) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/api/info", "/api/openapi.json", "/metrics", "/api/photo?uri=x", "/nowhere"):
        assert TOKEN not in locked.get(path, headers=headers).text
    assert TOKEN not in repr(ServeSettings(token=TOKEN))


# Only photos of the collection


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "../../../etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "cat.png",
        "a\0b",
        "\ud800".encode("utf-8", "surrogatepass"),
        '" or uri != "',
        "x" * 4096,
    ],
)
@pytest.mark.parametrize("path", ["thumbnail", "original", "explanation", "photo", "neighbours"])
def test_what_is_no_row_is_not_there(client: httpx.Client, path: str, uri: Any) -> None:
    assert client.get(f"/api/{path}", params={"uri": uri}).status_code in (404, 422)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%00",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_pages_own_files(client: httpx.Client, path: str) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as line:
        line.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = line.makefile("rb").read()
    assert answer.split()[1] in (b"404", b"400")
    assert b"import" not in answer


def test_a_photo_that_was_put_in_the_place_of_a_stored_one_is_not_shown(
    client: httpx.Client, stored: InstanceCollection
) -> None:
    uri = next(uri for uri in stored.uris() if "rocket" in uri)
    before = Path(uri).read_bytes()
    try:
        Path(uri).unlink()
        Path(uri).symlink_to("/etc/passwd")
        for path in ("original", "thumbnail", "explanation"):
            refused(client.get(f"/api/{path}", params={"uri": uri}), 404, "not what was stored")
    finally:
        Path(uri).unlink()
        Path(uri).write_bytes(before)
    assert client.get("/api/original", params={"uri": uri}).content == before


# What is sent


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size, with little in it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * width + 1) * min(height, 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def send(client: httpx.Client, data: Any, kind: str = "image/png") -> httpx.Response:
    return client.post("/api/queries", content=data, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(60_000, 60_000), "3,600,000,000 pixels"),
        (png(2_000, 1_000), "above the limit of 1,000,000"),
        (b"no photo at all", "not a photo that can be read"),
        (b"", "0 bytes"),
        (b"\xff\xd8\xff" + bytes(100_000), "damaged or cut off"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a photo"),
        (b"GIF89a" + b"\xff" * 500, "the photo"),
        (b"\0" * 5000, "not a photo"),
    ],
)
def test_bombs_and_rubbish_are_refused_in_words(
    client: httpx.Client, data: bytes, words: str
) -> None:
    refused(send(client, data), 422, words)
    assert client.get("/readyz").status_code == 200


def test_too_many_bytes_are_refused_before_they_are_all_there(client: httpx.Client) -> None:
    refused(send(client, bytes(2_000_000)), 413, "above the limit of 300,000 bytes")
    refused(send(client, iter([bytes(100_000)] * 20)), 413, "above the limit of 300,000 bytes")
    refused(send(client, bytes(300_001)), 413, "300,000 bytes")


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/api/queries", "text/html", b"x", 415),
        ("/api/queries", "application/json", b"{", 422),
        ("/api/queries", "application/json", b'{"url": "http://a/"}', 403),
        ("/api/queries", "application/json", b'{"url": ["a"]}', 422),
        ("/api/search", "text/plain", b"{}", 415),
        ("/api/search", "application/json", b"[]", 422),
        ("/api/search", "application/json", b"\xff\xfe", 422),
        ("/api/search", "application/json", b'{"limit": NaN}', 422),
        ("/api/search", "application/json", b'{"box": [1e308, -1e308, 0, 1e999]}', 422),
        ("/api/search", "application/json", b"[" * 100_000, 422),
        ("/api/search", "application/json", b'{"uri": "\\u0000"}', 404),
        ("/api/search", "application/json", b'{"uri": "\\ud800"}', 422),
        ("/api/search", "multipart/form-data", b"x", 400),
        ("/api/search", "multipart/form-data; boundary=x", b"--x\r\nrubbish", 422),
        ("/api/search", "multipart/form-data; boundary=x", b"--x--\r\n", 422),
    ],
)
def test_wrong_types_and_broken_bodies_are_the_senders_fault(
    client: httpx.Client, path: str, kind: str, body: bytes, status: int
) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "filter",
    [
        'true) or (uri != ""',
        "uri == 'x",
        "(" * 3000,
        "\0",
        "1 == 1; drop table photos",
        "uri in [" + ",".join(["'x'"] * 900) + "]",
        "not not not",
    ],
)
def test_a_filter_stays_a_filter(client: httpx.Client, filter: str) -> None:
    page = client.get("/api/photos", params={"filter": filter})
    if page.status_code == 200:
        assert page.json()["photos"] == []
    else:
        refused(page, 400, "filter")
    uri = client.get("/api/photos").json()["photos"][0]["uri"]
    found = client.post("/api/search", json={"uri": uri, "filter": filter})
    assert found.status_code in (200, 400)


def test_a_decoder_that_takes_too_long_is_ended(stored: InstanceCollection, tmp_path: Path) -> None:
    stream = io.BytesIO()
    PIL.Image.effect_noise((6000, 6000), 90).save(stream, "PNG", compress_level=1)
    with served({"photos": stored}, tmp_path, decode_seconds=0.05, max_bytes=2**26) as client:
        refused(send(client, stream.getvalue()), 422, "took more than 0.05 seconds to decode")
        assert client.get("/readyz").status_code == 200
        started = time.monotonic()
        assert send(client, png(10, 10)).status_code in (200, 422)
        assert time.monotonic() - started < 10


def test_a_decoder_that_takes_too_much_memory_is_refused_and_the_next_is_not() -> None:
    async def both() -> object:
        decoders = Decoders(1, 10.0)
        try:
            with pytest.raises(ImageError, match="took its decoder down"):
                await decoders.run("much.png", bytearray, 2**32)
            return await decoders.run("little.png", bytearray, 3)
        finally:
            decoders.close()

    assert asyncio.run(both()) == bytearray(3)


def test_without_a_folder_of_its_own_no_thumbnail_is_kept() -> None:
    thumbnails = Thumbnails(None, 1000)
    thumbnails.put("a", "200", b"picture")
    assert thumbnails.get("a", "200") is None


def test_urls_are_read_from_public_hosts_alone(
    client: httpx.Client,
    stored: InstanceCollection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    inside = f"{client.base_url}/api/collections"
    with served({"photos": stored}, tmp_path, allow_urls=True) as fetching:
        for path in ("queries", "search"):
            answer = fetching.post(f"/api/{path}", json={"url": inside})
            refused(answer, 422, "an address of a local network")
        for url in ("file:///etc/passwd", "ftp://a/b", "http:\\\\a", "gopher://x"):
            refused(fetching.post("/api/queries", json={"url": url}), 400, "is not the http")


# How slowly


def lines(client: httpx.Client) -> socket.socket:
    line = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30)
    line.settimeout(30)
    return line


def test_slow_senders_hold_no_worker_and_are_let_go(client: httpx.Client) -> None:
    head = (
        "POST /api/queries HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        "Content-Length: 200000\r\n\r\n"
    )
    slow = [lines(client) for _ in range(60)]  # more than there are threads
    try:
        for line in slow:
            line.sendall(head.encode() + b"x")
        with ThreadPoolExecutor(1) as pool:
            quick = pool.submit(client.get, "/api/collections").result(timeout=2.5)
        assert quick.status_code == 200
        answer = slow[0].makefile("rb").read()
        assert answer.split()[1] == b"408"
        assert b"too slowly" in answer
    finally:
        for line in slow:
            line.close()


@pytest.mark.parametrize(
    "kind", ["image/png", "application/json", "multipart/form-data; boundary=b"]
)
def test_a_sender_who_goes_away_is_no_error_of_the_service(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = "queries" if kind == "image/png" else "search"

    def counted() -> set[str]:
        lines = client.get("/metrics").text.splitlines()
        return {one for one in lines if one.startswith("cwf_milvus_requests_total") and path in one}

    before = counted()
    with lines(client) as line:
        head = f"POST /api/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        line.sendall(f"{head}Content-Length: 5000\r\n\r\n--b".encode())
    while not (new := counted() - before):
        time.sleep(0.02)
    assert all('status="499"' in one for one in new)
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_that_is_no_http_is_no_error_of_the_service(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, host: str, kind: str, at_once: bool
) -> None:
    is_refused = host != "localhost" or kind == "text/plain"  # before the body has come
    head = f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    with lines(client) as line:
        if at_once:
            line.sendall(f"{head}4\r\n{{}}\r\n0\r\n\r\n".encode())
        else:
            line.sendall(f"{head}2\r\n{{}}\r\n".encode())
            if is_refused:
                assert line.recv(9999).split()[1] in (b"415", b"421")
            with suppress(ConnectionError):  # it may be closed by then
                line.sendall(b"no number\r\n")
        if at_once or not is_refused:
            assert line.makefile("rb").read().startswith(b"HTTP/1.1 400")
    assert client.get("/readyz").status_code == 200
    assert "Traceback" not in caplog.text


def test_what_all_senders_hold_together_is_bounded(client: httpx.Client) -> None:
    head = (
        "POST /api/queries HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        "Content-Length: 1200001\r\n\r\n"
    )
    senders = [lines(client) for _ in range(20)]  # of 1.2 MB, where all may hold 21 MB
    try:
        for line in senders:
            line.sendall(head.encode() + bytes(1_200_000))
        answers = [line.makefile("rb").readline() for line in senders]
        refusals = [answer for answer in answers if answer.split()[1] == b"503"]
        assert 1 <= len(refusals) <= 5
    finally:
        for line in senders:
            line.close()
    assert send(client, b"no photo").status_code == 422  # what was held was given back


def test_endless_headers_are_cut_off(client: httpx.Client) -> None:
    with lines(client) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(200):
                line.sendall(b"X-Long: " + b"x" * 1000 + b"\r\n")
            answer = line.makefile("rb").read()
        except OSError:
            answer = b""
    assert answer.split()[1:2] in ([b"400"], [])


# How many


def test_a_full_house_says_when_to_come_again(stored: InstanceCollection, tmp_path: Path) -> None:
    with served({"photos": stored}, tmp_path, searches=1, waiting=1) as client:
        uri = client.get("/api/photos").json()["photos"][0]["uri"]

        def search(_: int) -> httpx.Response:
            return client.post("/api/search", json={"uri": uri, "limit": 1})

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(search, range(12)))
        busy = [answer for answer in answers if answer.status_code == 503]
        assert busy
        assert {answer.status_code for answer in answers} == {200, 503}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in busy)
        assert search(0).status_code == 200


def test_looking_at_every_row_takes_no_more_than_some_of_the_threads(
    stored: InstanceCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(*_: object) -> list[object]:
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(looking, "groups", slow)
    with served({"photos": stored}, tmp_path) as client, ThreadPoolExecutor(30) as pool:
        asked = [
            pool.submit(client.get, "/api/groups", params={"by": f"field_{i}"}) for i in range(30)
        ]
        done, _ = wait(asked, timeout=20, return_when=FIRST_COMPLETED)
        assert {one.result().status_code for one in done} == {503}
        assert client.get("/readyz").status_code == 200
        go_on.set()
        assert {one.result().status_code for one in asked} == {200, 503}


def test_who_goes_away_while_waiting_leaves_the_place_to_the_next() -> None:
    async def queue() -> None:
        turns = Turns(1, 1)

        async def wait() -> None:
            async with turns.turn():
                pass

        async with turns.turn():
            for _ in range(3):
                waiting = asyncio.create_task(wait())
                await asyncio.sleep(0)
                assert turns.waiting == 1
                with pytest.raises(HTTPException, match="try again"):
                    await wait()
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                assert turns.waiting == 0
        await wait()
        assert turns.running == 0

    asyncio.run(queue())


# What is hidden


def test_hidden_paths_are_in_no_answer(stored: InstanceCollection, tmp_path: Path) -> None:
    with served({"photos": stored}, tmp_path, hide_paths=True) as client:
        page = client.get("/api/photos", params={"limit": 2}).json()
        rest = client.get("/api/photos", params={"after": page["after"]}).json()
        names = [photo["uri"] for photo in page["photos"] + rest["photos"]]
        assert len(set(names)) == 3
        answers = [
            client.get("/api/photo", params={"uri": names[0]}),
            client.post("/api/search", json={"uri": names[0]}),
            client.post("/api/search", json={"like": [names[0]]}),
            client.get("/api/info"),
            client.get("/api/duplicates"),
        ]
        assert all(answer.status_code == 200 for answer in answers)
        folder = str(Path(next(stored.uris())).parent)
        refusals = [
            client.get("/api/groups", params={"by": "folder"}),
            client.get("/api/photos", params={"filter": 'uri like "/tmp%"'}),
            client.post("/api/search", json={"uri": names[0], "filter": 'uri > "/tmp"'}),
            client.get("/api/photo", params={"uri": next(stored.uris())}),
            client.get("/api/thumbnail", params={"uri": "photo:" + "0" * 32}),
        ]
        assert [answer.status_code for answer in refusals] == [400, 400, 400, 404, 404]
        told = json.dumps([page, rest, *(answer.json() for answer in answers)])
        assert folder not in told
        assert client.get("/api/thumbnail", params={"uri": names[0]}).status_code == 200
