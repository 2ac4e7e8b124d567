"""The examples, run as they stand."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import PIL.Image
import pytest
from operator_photos import fitted
from small_encoders import CHELSEA, COFFEE, ROCKET

from cwf_milvus import InstanceCollection

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


def test_the_service_stands_beside_routes_of_a_programs_own(tmp_path: Path) -> None:
    testclient = pytest.importorskip(
        "fastapi.testclient", reason="FastAPI is not installed: pip install 'cwf-milvus[serve]'"
    )
    encoder = fitted(descriptor="both")
    with InstanceCollection.create(tmp_path / "photos.db", "photos", encoder) as photos:
        photos.add({"cat": CHELSEA, "cup": COFFEE, "rocket": ROCKET}, progress=False)
        build = runpy.run_path(str(EXAMPLES / "serve_fastapi.py"))["build"]
        with testclient.TestClient(build(photos), base_url="http://localhost") as client:
            stream = io.BytesIO()
            PIL.Image.fromarray(COFFEE).save(stream, "JPEG")
            sent = {"photo": stream.getvalue()}
            answer = client.post("/api/search", files=sent, data={"box": BOX, "limit": "2"})
            assert answer.json()["hits"][0]["uri"] == "cup"
            assert client.get("/hello").json() == {"photos": 3}
