from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient
from stage_hits import DIM, units

from cwf_milvus.errors import SettingsError
from cwf_milvus.rerank import Classes, Online, Regions, Reranker, late_interaction
from cwf_milvus.search.expansion import LocalExpansion, QueryExpansion

N = 12
PATCHES = units(N, 3, DIM, seed=5)
QUERY = units(4, DIM, seed=6)


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[MilvusClient]:
    """A collection that another program made: patches as numbers in JSON, and as packed text."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.db"
    client = MilvusClient(str(path))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("number", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=4)
    schema.add_field("packed", DataType.VARCHAR, max_length=65_535)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    client.create_collection("theirs", schema=schema, index_params=params)
    client.insert(
        "theirs",
        [
            {
                "number": i,
                "embedding": units(4, seed=i).tolist(),
                "packed": base64.b64encode(PATCHES[i].astype("<f2").tobytes()).decode(),
                "patches": PATCHES[i].ravel().tolist(),
                "path": f"/photos/{i}.jpg",
            }
            for i in range(N)
        ],
    )
    yield client
    client.close()


def answer(client: MilvusClient, *fields: str):
    return client.search(
        "theirs", [units(4, seed=99).tolist()], limit=N, output_fields=["path", *fields]
    )[0]


def expected() -> list[str]:
    scores = late_interaction(QUERY, PATCHES).scores
    return [str(i) for i in np.argsort(-scores, kind="stable")]


@pytest.mark.parametrize("field", ["patches", "packed"])
def test_hits_of_anothers_collection_are_re_ranked_by_the_named_field(client, field):
    rerank = Reranker([Regions()], regions=field)
    hits = rerank(answer(client, field), regions=QUERY)
    assert [hit.uri for hit in hits] == expected()
    assert hits[0].metadata["path"] == f"/photos/{hits[0].uri}.jpg"
    assert field not in hits[0].metadata
    assert [stage.stage for stage in hits[0].stages] == ["milvus", "regions"]


def test_vectors_may_come_from_a_function_of_the_hit(client):
    rerank = Reranker([Regions()], regions=lambda hit: PATCHES[int(hit["path"][8:-4])])
    assert [hit.uri for hit in rerank(answer(client), regions=QUERY)] == expected()


def test_several_fields_are_put_together():
    halves = [
        {
            "id": i,
            "distance": 0.0,
            "entity": {
                name: base64.b64encode(part.astype("<f2").tobytes()).decode()
                for name, part in (("a", PATCHES[i][:2]), ("b", PATCHES[i][2:]))
            },
        }
        for i in range(N)
    ]
    hits = Reranker([Regions()], regions=("a", "b"))(halves, regions=QUERY)
    assert [hit.uri for hit in hits] == expected()


def test_local_expansion_works_on_anothers_hits_too(client):
    rerank = Reranker([Regions(), LocalExpansion()], regions="packed")
    hits = rerank(answer(client, "packed"), regions=QUERY)
    assert [stage.stage for stage in hits[0].stages] == ["milvus", "regions", "local"]


def test_class_vectors_come_with_their_classes():
    rows = [
        {"id": i, "distance": 0.0, "entity": {"v": PATCHES[i].tolist(), "c": [i, i + 1, i + 2]}}
        for i in range(N)
    ]
    online = Reranker([Online(), Classes()], classes="v", class_ids="c")
    hits = online(rows, classes=QUERY, class_ids=np.arange(4))
    assert len(hits) == N
    assert hits[0].classes[0].startswith("class ")


def test_boxes_of_the_regions_are_those_of_the_hit():
    boxes = [[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 4, 4]]
    rows = [{"id": 1, "distance": 0.5, "entity": {"v": PATCHES[0].tolist(), "b": boxes}}]
    (hit,) = Reranker([Regions()], regions="v", boxes="b")(rows, regions=QUERY)
    assert list(hit.box) in boxes


@pytest.mark.parametrize(
    ("entity", "words"),
    [
        ({}, "without its field 'v'"),
        ({"v": [1.0] * (DIM + 1)}, "no vectors of 16 numbers"),
        ({"v": "&&&"}, "no vectors of 16 numbers"),
        ({"v": [float("nan")] * DIM}, "not finite"),
        ({"v": {"a": 1}}, "no vectors of 16 numbers"),
    ],
)
def test_fields_that_hold_no_vectors_are_refused_by_name(entity, words):
    rerank = Reranker([Regions()], regions="v")
    with pytest.raises(SettingsError, match=words):
        rerank([{"id": 7, "distance": 0.1, "entity": entity}], regions=QUERY)


def test_what_a_stage_needs_must_be_said():
    with pytest.raises(SettingsError, match="say where they are with regions=FIELD"):
        Reranker([Regions()])
    with pytest.raises(SettingsError, match="leave the stage out"):
        Reranker([QueryExpansion()], regions="v")
    with pytest.raises(SettingsError, match="no vectors of the query"):
        Reranker([Regions()], regions="v")([])


def test_no_hits_stay_no_hits():
    assert len(Reranker([Regions()], regions="v")([], regions=QUERY)) == 0
