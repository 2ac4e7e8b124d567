"""Commands that were cut short and are run again end as if nothing had been; see `kills`."""

import random

import pytest
from command_line import programs
from kills import cut_short_and_repeat, cut_uploads_short


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("outputs")) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("remove", "kill"),
        ("graph", "kill"),
        ("repair of damaged files", "kill"),
        ("copy", "kill"),
        ("index --metadata", "disk"),
    ],
)
def test_a_command_that_was_cut_short_and_repeated_ends_as_an_undisturbed_one(
    start, tmp_path, name, how
):
    numbers = random.Random(name)
    assert cut_short_and_repeat(name, how, 1, start, tmp_path / "here", numbers).wrong == []


@pytest.mark.slow
def test_photos_sent_to_a_service_that_is_killed_are_there_once_when_they_are_sent_again(
    start, tmp_path
):
    pytest.importorskip("fastapi", reason="pip install 'cwf-milvus[serve]'")
    numbers = random.Random(18)
    assert cut_uploads_short("kill", 1, start, tmp_path / "here", numbers).wrong == []
