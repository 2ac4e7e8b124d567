"""The service's searches: a photo sent once, boxes on it, hits in steps, as a program asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from photo_collection import CAT, collection, is_cat, photo, photos
from web_service import events, served

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.search import ask, search_steps
from cwf_milvus.web.app import create_app
from cwf_milvus.web.settings import ServeSettings

BOX = list(CAT)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstanceCollection]:
    with collection(tmp_path_factory.mktemp("web") / "photos.db") as made:
        yield made


@pytest.fixture(scope="module")
def client(
    stored: InstanceCollection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with served({"photos": stored}, tmp_path_factory.mktemp("service")) as client:
        yield client


@pytest.fixture(scope="module")
def query(client: httpx.Client) -> str:
    """The cat's photo, sent once."""
    sent = client.post(
        "/api/queries",
        content=Path(photo("chelsea.png")).read_bytes(),
        headers={"Content-Type": "image/png"},
    ).json()
    assert (sent["width"], sent["height"]) == (451, 300)
    name: str = sent["query"]
    return name


def test_a_box_on_a_photo_sent_before_gives_the_hits_of_the_library(
    client: httpx.Client, stored: InstanceCollection, query: str
) -> None:
    answer = client.post("/api/search", json={"query": query, "box": BOX, "limit": 6}).json()
    expected = stored.search(photo("chelsea.png"), box=CAT, limit=6, candidates=100)
    assert [hit["uri"] for hit in answer["hits"]] == [hit.uri for hit in expected]
    assert answer["step"] == "final"
    assert answer["found"] is True
    assert answer["more"] is True
    first = answer["hits"][0]
    assert first["certainty"] == 1
    assert first["framed_by"] == "points"
    assert first["inliers"] >= len(first["points"]) > 10
    assert first["box"] == pytest.approx(BOX, abs=3)
    assert answer["query"] == {"width": 451, "height": 300, "box": BOX}


def test_events_bring_the_hits_by_descriptors_first_and_then_all_stages(
    client: httpx.Client, query: str
) -> None:
    asked = {"query": query, "box": BOX, "limit": 4}
    answer = client.post("/api/search", json=asked, headers={"Accept": "text/event-stream"})
    (one, first), (two, last) = events(answer.text)
    assert (one, two) == ("step", "done")
    before, after = json.loads(first), json.loads(last)
    assert before["step"] == "descriptor"
    assert all(hit["points"] == [] for hit in before["hits"])
    assert len(before["hits"]) == len(after["hits"]) == 4
    assert after == client.post("/api/search", json=asked).json() | {"seconds": after["seconds"]}


def test_steps_of_the_library_are_one_without_stages_and_two_with(
    stored: InstanceCollection,
) -> None:
    queries = ask(stored.encoder, [photo("chelsea.png")], [CAT])
    (only,) = search_steps(stored, queries, limit=5, filter=None)
    first, last = search_steps(
        stored, queries, limit=5, filter=None, stages=chosen_stages(gallery=stored)
    )
    assert [hit.uri for hit in first[0]] == [hit.uri for hit in only[0]]
    assert first[0].found is None
    assert last[0].found is True
    assert all(len(hit.stages) == 1 for hit in first[0])
    assert all(len(hit.stages) > 1 for hit in last[0])
    assert list(search_steps(stored, [], limit=5, filter=None)) == [[]]


def test_stages_are_named_with_commas_between_them(client: httpx.Client, query: str) -> None:
    asked = {"query": query, "limit": 2, "rerank": "regions, spatial", "expand": "none"}
    hit = client.post("/api/search", json=asked).json()["hits"][0]
    assert list(hit["stage_scores"]) == ["descriptor", "regions", "spatial"]


def test_a_photo_and_its_box_in_one_form_need_no_second_request(client: httpx.Client) -> None:
    answer = client.post(
        "/api/search",
        files={"photo": Path(photo("chelsea.png")).read_bytes()},
        data={"box": ",".join(map(str, BOX)), "limit": "3"},
    ).json()
    assert is_cat(answer["hits"][0]["uri"])
    assert len(answer["hits"]) == 3


def test_further_hits_follow_those_of_the_page_before(client: httpx.Client, query: str) -> None:
    def page(**asked: int) -> dict:
        return client.post("/api/search", json={"query": query, "box": BOX, **asked}).json()

    whole = page(limit=8)["hits"]
    assert page(limit=4)["hits"] + page(limit=4, offset=4)["hits"] == whole
    assert page(limit=4, offset=2000)["hits"] == []
    assert page(limit=200)["more"] is False


def test_a_stored_photo_is_a_query_and_finds_itself_first(client: httpx.Client) -> None:
    uri = photo("coffee.png")
    answer = client.post("/api/search", json={"uri": uri, "limit": 2}).json()
    assert answer["hits"][0]["uri"] == uri


def test_more_like_stored_photos_leaves_those_out(client: httpx.Client) -> None:
    like, unlike = photo("chelsea.png"), photo("coffee.png")
    asked = {"like": [like], "unlike": [unlike], "limit": 5}
    answer = client.post("/api/search", json=asked).json()
    found = [hit["uri"] for hit in answer["hits"]]
    assert is_cat(found[0])
    assert like not in found
    assert unlike not in found
    assert answer["query"]["width"] is None


def test_filters_and_the_least_certainty_leave_hits_out(client: httpx.Client, query: str) -> None:
    asked = {"query": query, "box": BOX, "limit": 50}
    some = client.post("/api/search", json={**asked, "filter": "place < 5"}).json()["hits"]
    assert len(some) == 5
    sure = client.post("/api/search", json={**asked, "min_certainty": 0.69}).json()["hits"]
    assert 0 < len(sure) < len(photos())
    assert all(hit["certainty"] >= 0.69 for hit in sure)


def test_a_sent_photo_comes_back_for_a_page_that_is_reloaded(
    client: httpx.Client, query: str
) -> None:
    answer = client.get("/api/query", params={"query": query})
    assert answer.headers["content-type"] == "image/jpeg"
    assert client.get("/api/query", params={"query": "another"}).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"box": [5, 5, 2, 2]}, 400, "has no area"),
        ({"box": [1, 2, 3]}, 422, "at least 4"),
        ({"box": [900, 900, 950, 950]}, 400, "outside the photo"),
        ({"filter": "nonsense ==="}, 400, "Milvus refused the filter"),
        ({"filter": "colour == 'red'"}, 400, "a field that no photo has"),
        ({"limit": 0}, 422, "limit"),
        ({"limit": 10**30}, 422, "limit"),
        ({"rerank": "magic"}, 400, "rerank='magic'"),
        ({"expand": "x" * 101}, 422, "expand"),
        ({"uri": "/etc/passwd"}, 400, "give one of"),
        ({"wrong": 1}, 422, "wrong"),
        ({"query": None, "uri": "/etc/passwd"}, 404, "is not in the collection"),
        ({"query": None, "like": ["/etc/passwd"]}, 404, "is not in the collection"),
        ({"query": None, "url": "http://127.0.0.1:1/"}, 403, "not fetched here"),
        ({"query": "forgotten"}, 404, "send it again"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_what_cannot_be_searched_is_refused_with_the_remedy(
    client: httpx.Client, query: str, asked: dict, status: int, words: str, accept: str
) -> None:
    body = {"query": query, **asked}
    answer = client.post("/api/search", json=body, headers={"Accept": accept})
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_searches_at_the_same_time_pass_the_network_together(
    client: httpx.Client, query: str
) -> None:
    def batches() -> tuple[float, float]:
        told = dict(
            line.rsplit(" ", 1)
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("cwf_milvus_network_batch_")
        )
        return (
            float(told["cwf_milvus_network_batch_count"]),
            float(told["cwf_milvus_network_batch_sum"]),
        )

    def search(i: int) -> list[str]:
        asked = {"query": query, "box": [9 * i, i, 355 - i, 275], "limit": 2}
        answer = client.post("/api/search", json=asked)
        return [hit["uri"] for hit in answer.json()["hits"]]

    before = batches()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(search, range(8)))
    after = batches()
    assert after[1] - before[1] == 8
    assert after[0] - before[0] < 8
    assert found == [search(i) for i in range(8)]  # from what was kept
    assert all(is_cat(uri) for uris in found for uri in uris)
    assert batches() == after


def test_an_application_can_be_started_again(stored: InstanceCollection, tmp_path: Path) -> None:
    app = create_app({"photos": stored}, ServeSettings(cache=tmp_path))
    for _ in range(2):
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/readyz").status_code == 200
            assert "cwf_milvus_searches_running 0.0" in client.get("/metrics").text
