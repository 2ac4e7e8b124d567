"""The examples, run as they stand."""

from __future__ import annotations

import asyncio
import io
import runpy
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from operator_photos import fitted
from small_encoders import CHELSEA, COFFEE, ROCKET

from cwf_milvus import InstanceCollection
from cwf_milvus.encode.encoder import Encoder

EXAMPLES = Path(__file__).parents[1] / "examples"
BOX = "80,14,478,390"  # the cup


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few real photos, in the folder where the example runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in (("cat", CHELSEA), ("coffee", COFFEE), ("rocket", ROCKET)):
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    PIL.Image.fromarray(COFFEE).rotate(20).save(folder / "turned.png")
    return folder


def run(name: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_quick_start_finds_the_cup_and_writes_a_page(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("quickstart.py", photos, photos / "coffee.png", BOX)
    shown = capsys.readouterr().out
    assert "4 added" in shown
    assert shown.index("coffee.png") < shown.index("turned.png") < shown.index("cat.png")
    assert Path("quickstart.html").stat().st_size > 10_000


def test_the_bulk_index_goes_on_and_tells_what_failed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "file_name,year\n" + "".join(f"{p.name},2020\n" for p in photos.iterdir())
    Path("metadata.csv").write_text(table)
    with pytest.raises(SystemExit) as end:
        run("bulk_index.py", photos, "metadata.csv")
    assert end.value.code == 0
    assert "4 added" in capsys.readouterr().out
    (photos / "bad.jpg").write_bytes(b"no photo")
    (photos / "cat.png").unlink()
    told = pytest.warns(UserWarning, match=r"name none of these 4 photos: 1 \(line \d 'cat\.png'")
    with told, pytest.raises(SystemExit) as end:
        run("bulk_index.py", photos, "metadata.csv")
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "0 added, 0 updated, 3 skipped, 1 failed, 1 pruned" in out
    assert "bad.jpg" in err
    assert "bad.jpg" in Path("report.jsonl").read_text()


def test_the_towhee_pipeline_indexes_searches_and_describes(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(
        "towhee", reason="Towhee is not installed: pip install 'cwf-milvus[towhee]'"
    )
    run("towhee_pipeline.py", photos, photos / "coffee.png", BOX)
    shown = capsys.readouterr().out
    assert shown.count("stored") == 4
    assert "coffee.png  [" in shown
    assert "descriptor: (1024,)" in shown


@pytest.mark.slow
def test_the_notebook_runs_and_shows_pictures(photos: Path) -> None:
    papermill = pytest.importorskip("papermill", reason="papermill is not installed")
    done = papermill.execute_notebook(
        EXAMPLES / "instance_search.ipynb",
        "done.ipynb",
        parameters={"photos": str(photos), "query": "coffee.png", "box": [80, 14, 478, 390]},
        progress_bar=False,
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("text/html") == 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "4 added" in text
    assert "regions" in text


# The service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A client of the service over a small collection, and the collection."""
    testclient = pytest.importorskip(
        "fastapi.testclient", reason="FastAPI is not installed: pip install 'cwf-milvus[serve]'"
    )
    root = tmp_path_factory.mktemp("service")
    encoder = fitted(descriptor="both")
    with InstanceCollection.create(root / "photos.db", "photos", encoder) as photos:
        photos.add({"cat": CHELSEA, "cup": COFFEE, "rocket": ROCKET}, progress=False)
        make = runpy.run_path(str(EXAMPLES / "serve_fastapi.py"))["create_app"]
        with testclient.TestClient(make(photos, max_bytes=300_000)) as client:
            yield client, photos


def jpeg(pixels: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def test_the_service_answers_with_hits_and_where_the_thing_is(service: tuple[Any, Any]) -> None:
    client, photos = service
    answer = client.post("/search", files={"photo": jpeg(COFFEE)}, data={"box": BOX, "limit": "2"})
    assert answer.status_code == 200
    hits = answer.json()
    assert hits[0]["uri"] == "cup"
    assert len(hits) == 2
    assert len(hits[0]["box"]) == 4
    expected = photos.search(jpeg(COFFEE), box=BOX, limit=2, rerank="regions")
    assert hits[0]["score"] == pytest.approx(expected[0].score, abs=1e-5)


@pytest.mark.parametrize(
    ("photo", "box", "words"),
    [
        (b"no photo at all", "", "not a photo that can be read"),
        (jpeg(COFFEE)[:4000], "", "damaged or cut off"),
        (jpeg(COFFEE), "5,5,2,2", "has no area"),
        (jpeg(COFFEE), "a,b", "not four numbers"),
    ],
)
def test_what_cannot_be_searched_is_a_bad_request_with_the_reason(
    service: tuple[Any, Any], photo: bytes, box: str, words: str
) -> None:
    answer = service[0].post("/search", files={"photo": photo}, data={"box": box})
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_an_upload_above_the_limit_is_ended_before_it_is_all_there(
    service: tuple[Any, Any],
) -> None:
    client, _ = service
    head = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="p"\r\n\r\n'
    chunks, answer = 0, list[dict[str, Any]]()

    async def endless() -> dict[str, Any]:
        nonlocal chunks
        chunks += 1
        body = head if chunks == 1 else bytes(100_000)
        return {"type": "http.request", "body": body, "more_body": True}

    async def note(message: dict[str, Any]) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/search",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }
    asyncio.run(client.app(scope, endless, note))
    assert chunks == 4  # 300,000 bytes are allowed, the head among them
    assert answer[0]["status"] == 413
    assert b"above the limit of 300000 bytes" in answer[1]["body"]


def test_requests_at_the_same_time_share_one_network(
    service: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = service
    networks, meeting = set(), threading.Barrier(4, timeout=30)
    encode = Encoder.encode_prepared

    def meets(self: Encoder, batch: Any) -> Any:
        networks.add(id(self.backbone))
        meeting.wait()  # broken, and the request fails, unless four are here at once
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode_prepared", meets)
    pictures = [jpeg(CHELSEA), jpeg(COFFEE), jpeg(ROCKET), jpeg(CHELSEA)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda photo: client.post("/search", files={"photo": photo}), pictures)
        )
    assert [answer.json()[0]["uri"] for answer in answers] == ["cat", "cup", "rocket", "cat"]
    assert len(networks) == 1
