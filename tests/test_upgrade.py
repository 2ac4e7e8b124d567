"""A collection that version 0.1.0 wrote (`data/make_0_1_0.py`) opens, searches, verifies, grows."""

import sys
import tarfile
from pathlib import Path

import pytest

from cwf_milvus.collection import InstanceCollection

DATA = Path(__file__).parent / "data"
sys.path.append(str(DATA))
from make_0_1_0 import drawn  # noqa: E402


@pytest.fixture
def photos(tmp_path):
    with tarfile.open(DATA / "collection-0.1.0.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    with InstanceCollection.open(tmp_path / "photos.db", "photos") as opened:
        yield opened


def names(found):
    return [hit.uri for hit in found]


def test_it_opens_and_searches_with_its_own_encoder(photos):
    assert photos.count() == 5
    for i in (0, 4):
        assert photos.search(drawn(i), limit=1, rerank="regions")[0].uri == f"/p/{i}.png"
    found = photos.search(drawn(1), filter='place == "Oslo" and year >= 2011')
    assert set(names(found)) == {"/p/1.png", "/p/3.png"}


def test_it_verifies_and_a_loss_is_seen_before_any_receipt_was_given(photos):
    photos.store.delete("photos", "uri", ["/p/0.png"])  # behind our back
    outcome = photos.verify()
    assert (outcome.ok, outcome.lost, outcome.expected) == (False, 1, 5)
    photos.add({"/p/0.png": drawn(0)}, progress=False)
    assert photos.verify().ok
    photos.store.delete("photos", "uri", ["/p/0.png"])
    assert photos.verify().missing == ["/p/0.png"]  # all have receipts since


def test_it_grows_and_shrinks_and_nothing_is_said_to_be_lost(photos):
    report = photos.add({f"/p/{i}.png": drawn(i) for i in range(8)}, progress=False)
    assert (report.added, report.skipped) == (3, 5)
    assert photos.remove(["/p/1.png", "/p/7.png"]) == 2
    for _ in range(2):
        outcome = photos.verify()
        assert (outcome.ok, outcome.rows, outcome.lost) == (True, 6, 0)
    assert outcome.expected == 6
    assert photos.sidecar.counted() == 0  # receipts alone count from now on
    assert photos.search(drawn(6), limit=1)[0].uri == "/p/6.png"
