"""Receipts: no order of writers, kills and copies makes a loss of none, or hides one."""

import dataclasses
import shutil
import threading
import uuid

import pytest
from test_collection import TinyEncoder, encoding

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError
from cwf_milvus.store.ledger import Ledger, photo_of


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def photos(request, tmp_path):
    place = getattr(request, "param", "lite")
    uri = tmp_path / "photos.db" if place == "lite" else request.getfixturevalue("server").uri
    with InstanceCollection.create(uri, f"ledger_{uuid.uuid4().hex}", TinyEncoder()) as made:
        yield made
        made.drop()


on_a_server_too = pytest.mark.parametrize(
    "photos", ["lite", pytest.param("server", marks=pytest.mark.server)], indirect=True
)  # the others' rows are the same there, and take it seconds each


def some(n, start=0):
    return [encoding(f"/p/{i}.jpg", i) for i in range(start, start + n)]


def uris(*numbers):
    return [f"/p/{i}.jpg" for i in numbers]


def killed_at(monkeypatch, target, method, work):
    """Do some work that is killed where it calls a method."""
    with monkeypatch.context() as patch:

        def kill(*_, **__):
            raise Killed

        patch.setattr(target, method, kill)
        with pytest.raises(Killed):
            work()


def test_lost_photos_are_named(photos):
    photos.upsert(some(6))
    photos.store.delete(photos.name, "uri", uris(1, 2))  # behind our back
    outcome = photos.verify()
    assert (outcome.lost, outcome.missing) == (2, uris(1, 2))
    assert "lost: '/p/1.jpg'" in str(outcome)
    photos.upsert(some(1, start=1))
    assert photos.verify().missing == uris(2)
    assert photos.remove(uris(2)) == 0  # given up
    assert photos.verify().ok


def test_writers_that_look_before_either_writes_count_a_photo_once(photos):
    with InstanceCollection.open(photos.store.uri, photos.name) as other:
        for one in (photos, other):
            one.contents(uris(0, 1))
        for one in (photos, other):
            one.upsert(some(2))
        other.remove(uris(0))
        outcome = photos.verify()
        assert (outcome.ok, outcome.rows, outcome.expected) == (True, 1, 1)


@on_a_server_too
def test_a_photo_stored_while_another_writer_removes_it_is_never_lost(photos, monkeypatch):
    """One writes its row, the other removes it all, then the first one's receipt arrives."""
    with InstanceCollection.open(photos.store.uri, photos.name) as other:
        give = Ledger._give

        def late(ledger, *args):
            assert other.remove(uris(0)) == 1
            give(ledger, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "_give", late)
            photos.upsert(some(1))
        outcome = photos.verify()
        assert (outcome.ok, outcome.rows, outcome.lost) == (True, 0, 0)


def test_many_threads_that_add_and_remove_the_same_photos_lose_none(photos):
    def work(seed):
        with InstanceCollection.open(photos.store.uri, photos.name) as one:
            for i in range(6):
                one.upsert(some(3, start=seed % 2))
                if i % 2:
                    one.remove(uris(1, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert photos.verify().lost == 0
    photos.upsert(some(5))
    assert photos.verify().ok


def test_rows_whose_receipts_were_never_written_are_no_loss_and_noted_by_a_sound_verify(
    photos, monkeypatch
):
    photos.upsert(some(2))
    killed_at(monkeypatch, Ledger, "_give", lambda: photos.upsert(some(2, start=2)))
    outcome = photos.verify()
    assert (outcome.ok, outcome.rows, outcome.expected, outcome.unnoted) == (True, 4, 2, 2)
    assert "2 more rows than were noted" in str(outcome)
    outcome = photos.verify()
    assert (outcome.expected, outcome.unnoted) == (4, 0)


@pytest.mark.parametrize("killed", ["delete", "write"])
def test_a_removal_that_was_killed_is_told_until_it_is_repeated(photos, monkeypatch, killed):
    photos.upsert(some(6))
    writes = iter([photos.store.write])  # the removal is noted, and not closed

    def kill(*args, **options):
        real = next(writes, None) if killed == "write" else None
        if real is None:
            raise Killed
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(photos.store, killed, kill)
        with pytest.raises(Killed):
            photos.remove(uris(0, 1))
    outcome = photos.verify()
    assert outcome.lost == 0
    assert outcome.returned == (uris(0, 1) if killed == "delete" else [])
    assert outcome.ok is (killed == "write")
    photos.remove(uris(0, 1))
    outcome = photos.verify()
    assert (outcome.ok, outcome.rows, outcome.expected) == (True, 4, 4)
    photos.store.delete(photos.name, "uri", uris(2, 3, 4, 5))
    assert photos.verify().missing == uris(2, 3, 4, 5)


@on_a_server_too
def test_removed_rows_that_come_back_are_named_and_are_not_ok(photos):
    photos.upsert(some(3))
    rows = list(photos.raw_rows(uris(0, 1)).values())
    photos.remove(uris(0, 1))
    assert photos.verify().ok
    photos.store.write(photos.name, rows)  # as from a log of deletions that was lost
    outcome = photos.verify()
    assert (outcome.ok, outcome.returned, outcome.lost) == (False, uris(0, 1), 0)
    assert "2 rows are there that were removed" in str(outcome)
    assert "nothing is lost" not in str(outcome)
    assert photos.remove(uris(0)) == 1
    photos.verify(accept=True)
    outcome = photos.verify()
    assert (outcome.ok, outcome.rows, outcome.expected) == (True, 2, 2)


def test_a_photo_that_is_added_again_is_not_one_that_came_back(photos, monkeypatch):
    photos.upsert(some(2))
    photos.remove(uris(0, 1))
    photos.upsert(some(1))
    killed_at(monkeypatch, Ledger, "_give", lambda: photos.upsert(some(1, start=1)))
    outcome = photos.verify()
    assert (outcome.ok, outcome.rows, outcome.returned) == (True, 2, [])


def test_removed_photos_leave_no_name_behind(photos):
    photos.upsert(some(2))
    photos.remove(uris(0))
    rows = list(photos.store.scan(photos.ledger.name, "key", ["uri"]))
    assert sorted(row["uri"] for row in rows) == ["", "/p/1.jpg"]


def test_receipts_of_an_earlier_collection_of_the_name_do_not_count(tmp_path):
    place = tmp_path / "photos.db"
    first = InstanceCollection.create(place, "again", TinyEncoder())
    first.upsert(some(4))
    with InstanceCollection.open(place, "again") as other:
        other.drop()
    with InstanceCollection.create(place, "again", TinyEncoder()) as other:
        other.upsert(some(2))
        first.upsert(some(1, start=3))  # an object that outlived its collection goes on
        for one in (first, other):
            outcome = one.verify()
            assert (outcome.ok, outcome.rows, outcome.expected) == (True, 3, 3)
        first.close()
        other.drop()


def test_an_object_that_outlived_its_collection_keeps_out_of_another_encoders(tmp_path):
    place = tmp_path / "photos.db"
    with InstanceCollection.create(place, "again", TinyEncoder()) as first:
        with InstanceCollection.open(place, "again") as other:
            other.drop()
        with (
            InstanceCollection.create(place, "again", TinyEncoder(weights="b")) as other,
            pytest.raises(CollectionError, match="open it again"),
        ):
            first.upsert(some(1))
        assert other


def test_a_copy_of_a_database_has_its_receipts(tmp_path):
    with InstanceCollection.create(tmp_path / "a.db", "photos", TinyEncoder()) as photos:
        photos.upsert(some(4))
        photos.remove(uris(3))
    shutil.copytree(tmp_path / "a.db", tmp_path / "b.db")
    for place in ("a.db", "b.db"):
        with InstanceCollection.open(tmp_path / place, "photos") as photos:
            photos.upsert([dataclasses.replace(encoding(place, 9))])
            outcome = photos.verify()
            assert (outcome.ok, outcome.rows, outcome.expected) == (True, 4, 4)


def test_damaged_receipts_are_told_and_make_no_loss(tmp_path):
    with InstanceCollection.create(tmp_path / "a.db", "photos", TinyEncoder()) as photos:
        photos.upsert(some(2))
        key = photos.ledger._key("stored/", photo_of("/p/0.jpg"))
        rows = photos.store.fetch(photos.ledger.name, "key", [key], ["uri", "began", "ended"])
        photos.store.write(
            photos.ledger.name, [{**rows[key], "uri": "/p/other", "vector": [0.0, 0.0]}]
        )
        outcome = photos.verify()
        assert (outcome.ok, outcome.lost) == (False, 0)
        assert "1 receipts in 'photos_ledger' are damaged" in str(outcome)
        photos.verify(accept=True)
        outcome = photos.verify()
        assert (outcome.ok, outcome.expected) == (True, 2)


def former(photos, *numbers):
    """Return rows as they are, to be put back behind our back."""
    rows = photos.raw_rows(uris(*numbers))
    return [photos.layout.with_metadata(r, photos.layout.metadata_of(r)) for r in rows.values()]


@on_a_server_too
def test_a_lost_update_of_fields_is_named_until_it_is_given_again_or_given_up(photos):
    photos.upsert(some(3), [{"n": i} for i in range(3)])
    rows = former(photos, 0, 1)
    assert photos.set_metadata({uri: {"n": 9} for uri in uris(0, 1, 2)}) == uris(0, 1, 2)
    assert photos.verify().ok
    photos.store.write(photos.name, rows)
    outcome = photos.verify()
    assert (outcome.ok, outcome.outdated, outcome.damaged) == (False, uris(0, 1), [])
    assert "2 rows have the user's fields of before an update that was lost" in str(outcome)
    photos.set_metadata({uris(0)[0]: {"n": 9}})
    assert photos.verify().outdated == uris(1)
    photos.verify(accept=True)
    assert photos.verify().ok


@pytest.mark.parametrize("after", ["updated", "stored", "removed and stored", "moved"])
def test_a_photo_that_was_written_again_after_an_update_has_lost_none(photos, after):
    photos.upsert(some(2), [{"n": 0}] * 2)
    photos.set_metadata({uri: {"n": 1} for uri in uris(0, 1)})
    if after == "updated":
        photos.set_metadata({uris(0)[0]: {"n": 0}})
    elif after == "moved":
        photos.move({uris(0)[0]: uris(1)[0]})
    else:
        if after == "removed and stored":
            photos.remove(uris(0))
        photos.upsert(some(1), [{"n": 0}])
    assert photos.verify().ok


@pytest.mark.parametrize("killed", ["_give", "_write"])
@pytest.mark.parametrize("again", ["stored", "updated"])
def test_a_kill_before_the_note_of_an_update_makes_no_loss(photos, monkeypatch, killed, again):
    photos.upsert(some(1), [{"n": 0}])
    photos.set_metadata({uris(0)[0]: {"n": 1}})

    def work():
        if again == "stored":
            photos.upsert(some(1), [{"n": 2}])
        else:
            photos.set_metadata({uris(0)[0]: {"n": 2}})

    killed_at(monkeypatch, Ledger, killed, work)
    (row,) = photos.get(uris(0))
    assert row.metadata == {"n": 2}
    assert photos.verify().ok


def test_threads_that_update_and_store_the_same_photos_lose_no_update(photos):
    photos.upsert(some(3), [{"n": 0}] * 3)

    def work(seed):
        with InstanceCollection.open(photos.store.uri, photos.name) as one:
            for i in range(6):
                if (i + seed) % 3:
                    one.set_metadata({uri: {"n": [seed, i]} for uri in uris(0, 1, 2)})
                else:
                    one.upsert(some(3), [{"n": [seed, i]}] * 3)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert photos.verify().outdated == []  # others write while it reads
    assert photos.verify().ok
