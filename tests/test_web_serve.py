"""`cwf-milvus serve` as a process: its address, its signals, its words; and the API fuzzed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from operator_photos import fitted
from small_encoders import CHELSEA, COFFEE
from web_service import served

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection

ROOT = Path(__file__).parents[1]
TOKEN = "a-token-of-thirty-letters-or-so"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two collections."""
    place = tmp_path_factory.mktemp("serve") / "photos.db"
    encoder = fitted(descriptor="both")
    for name in ("photos", "more"):
        with InstanceCollection.create(place, name, encoder) as photos:
            photos.add({"cat": CHELSEA, "cup": COFFEE}, progress=False)
    return place


@contextmanager
def process(
    database: Path, *options: str, **environ: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command, and the first line that it printed."""
    command = [sys.executable, "-m", "cwf_milvus.cli", "serve", "--uri", str(database)]
    running = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        assert running.stdout is not None
        yield running, running.stdout.readline()
    finally:
        running.kill()
        running.wait()


def test_sigterm_ends_open_requests_properly_and_closes_the_database(database: Path) -> None:
    with process(database, "--collection", "photos", "more", CWF_MILVUS_SERVE_TOKEN=TOKEN) as (
        running,
        line,
    ):
        found = re.fullmatch(r"serving photos, more at (http://127\.0\.0\.1:\d+)/\n", line)
        assert found
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=found[1], headers=headers, timeout=30) as client:
            names = [one["name"] for one in client.get("/api/collections").json()]
            assert names == ["photos", "more"]
            assert client.get("/readyz").status_code == 200
            assert TOKEN not in Path(f"/proc/{running.pid}/cmdline").read_text()
            warm = client.post("/api/search", json={"like": ["cat"]})
            assert warm.status_code == 200
            answers: list[int] = []

            def slowly() -> Iterator[bytes]:
                yield b'{"like": '
                running.send_signal(signal.SIGTERM)
                time.sleep(0.5)
                yield b'["cat"], "limit": 1}'

            def search() -> None:
                json = {"Content-Type": "application/json"}
                answer = client.post("/api/search", content=slowly(), headers=json)
                answers.append(answer.status_code)

            asking = threading.Thread(target=search)
            asking.start()
            asking.join()
            assert answers == [200]
        said, _ = running.communicate(timeout=20)
        assert running.returncode == 0
        assert TOKEN not in said
        assert "Traceback" not in said
    with InstanceCollection.open(database, "photos") as photos:  # nobody holds it any more
        assert photos.verify().ok


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--host", "0.0.0.0"], 2, "set CWF_MILVUS_SERVE_TOKEN"),
        (["--port", "70000"], 2, "from 0 to 65535"),
        (["--host", "no.such.host.example", "--port", "0"], 2, "give another --port"),
        (["--collection", "none"], 3, "there is no collection 'none'"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    database: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.delenv("CWF_MILVUS_SERVE_TOKEN", raising=False)
    if "no.such.host.example" in options:
        monkeypatch.setenv("CWF_MILVUS_SERVE_TOKEN", TOKEN)
    assert main(["serve", "--uri", str(database), *options]) == status
    said = capsys.readouterr().err
    assert words in said
    assert TOKEN not in said
    assert said.count("\n") == 1


def test_no_request_that_its_own_description_allows_ends_in_an_error_of_ours(
    database: Path, tmp_path: Path
) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    with (
        InstanceCollection.open(database, "photos") as photos,
        served({"photos": photos}, tmp_path, writable=True) as client,
    ):
        schema = schemathesis.openapi.from_url(f"{client.base_url}/api/openapi.json")
        met: set[str] = set()
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(timeout=30)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                met.add(case.path)

            ask()
        assert {"/api/search", "/api/queries", "/api/photos", "/api/thumbnail"} <= met


def test_the_containers_run_without_rights_and_tell_their_health() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    words = [line.split()[0] for line in lines if line and line[0].isupper()]
    assert words[0] == "FROM"
    assert "HEALTHCHECK" in words
    user = next(line.split()[1] for line in lines if line.startswith("USER"))
    assert user not in ("root", "0")
    assert words.index("USER") < words.index("ENTRYPOINT")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["photos"]["depends_on"]["milvus"]["condition"] == "service_healthy"
    assert set(services) >= {"photos", "milvus"}
    for one in services.values():
        assert all(str(port).startswith("127.0.0.1:") for port in one.get("ports", ()))


def test_every_option_of_the_container_is_one_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    asked = services["photos"]["command"]
    assert asked[0] == "serve"
    assert {word for word in asked if word.startswith("--")} <= known
