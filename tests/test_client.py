import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from milvus_lite.server_manager import server_manager_instance
from milvus_server import MilvusServer, why_not
from pymilvus import MilvusClient
from test_collection import TinyEncoder, encoding

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.client import Store
from cwf_milvus.store.filters import one_of, quoted

HERE = Path(__file__).parent
TOKEN = "root:s3cret-Token"


def program(code: str) -> list[str]:
    """Return the command that runs code which may use this file's names."""
    start = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}\n"
    return [sys.executable, "-c", f"{start}from test_client import *\n{code}"]


# Milvus Lite


@pytest.mark.parametrize(
    "uri",
    [
        *("photos", "photos.sqlite", "", "ftp://host/photos.db", "localhost:19530", "a\0.db"),
        *("http://", "http://host:port", "http://[::1", "https://:19530", "http://host:99999"),
    ],
)
def test_a_uri_that_is_no_place_for_a_collection_says_what_is(uri):
    with pytest.raises(StoreError, match=r"ends in \.db .*http://host:port"):
        Store(uri, make=True)


def test_a_database_in_use_by_another_process_is_named_with_it(tmp_path):
    uri = str(tmp_path / "photos.db")
    code = f"store = Store({uri!r}, make=True); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        program(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreError) as error:
            Store(uri)
        other.stdin.close()
        other.wait(20)
    assert f"in use by another process (pid {other.pid})" in str(error.value)
    assert uri in str(error.value)
    Store(uri).close()


def test_closing_lets_another_process_open_the_database(tmp_path):
    uri = str(tmp_path / "photos.db")
    Store(uri, make=True).close()
    code = f"Store({uri!r}).close(); print('opened')"
    done = subprocess.run(program(code), capture_output=True, text=True, check=True)
    assert done.stdout == "opened\n"


def test_closing_leaves_a_database_open_that_someone_else_here_opened(tmp_path):
    uri = str(tmp_path / "photos.db")
    theirs = MilvusClient(uri)
    Store(uri).close()
    assert theirs.list_collections() == []
    theirs.close()


@pytest.mark.parametrize("same", [True, False])
def test_a_database_may_be_closed_by_collecting_garbage_while_one_is_opened(
    tmp_path, monkeypatch, same
):
    old = Store(tmp_path / "old.db", make=True)
    connect = MilvusClient.__init__

    def collects_garbage(self, *args, **kwargs):
        monkeypatch.setattr(MilvusClient, "__init__", connect)
        old.close()
        connect(self, *args, **kwargs)

    monkeypatch.setattr(MilvusClient, "__init__", collects_garbage)
    made = []
    opening = threading.Thread(
        target=lambda: made.append(Store(tmp_path / ("old.db" if same else "new.db"), make=True)),
        daemon=True,
    )
    opening.start()
    opening.join(30)
    assert made, "it waits for itself"
    assert made[0].call("list_collections") == []
    made[0].close()
    for name in ("old.db", "new.db"):
        assert str(tmp_path / name) not in server_manager_instance._servers


def test_one_database_by_two_names_is_shared(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "photos.db")
    one = Store(tmp_path / "photos.db", make=True)
    two = Store(tmp_path / "link.db")
    assert one.call("list_collections") == two.call("list_collections") == []
    one.close()
    two.close()


def test_missing_parent_folders_are_made_for_a_new_database_alone(tmp_path):
    uri = tmp_path / "a" / "b" / "photos.db"
    with pytest.raises(CollectionError, match="there is no Milvus Lite database"):
        Store(uri)
    assert not uri.parent.exists()
    Store(uri, make=True).close()
    assert uri.is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SQLite format 3\0 and so on", "Milvus Lite 2.x"),
        (b"hello", "is a file, and a Milvus Lite database is a folder"),
        (b"", "is a file"),
    ],
)
def test_a_file_in_the_way_is_told_apart(tmp_path, content, message):
    path = tmp_path / "photos.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        Store(path, make=True)
    assert path.read_bytes() == content


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "photos.db"
    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="folder with other things"):
        Store(path, make=True)
    assert [inside.name for inside in path.iterdir()] == ["thesis.tex"]


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot use .*: name a path"):
        Store(tmp_path / "file" / "photos.db", make=True)


def test_a_damaged_database_is_refused_and_not_a_traceback(tmp_path, capfd):
    uri = str(tmp_path / "photos.db")
    with InstanceCollection.create(uri, "photos", TinyEncoder()) as photos:
        photos.upsert([encoding()])
    for manifest in Path(uri).rglob("manifest.json*"):
        manifest.write_text("{")
    with pytest.raises(StoreError, match=r"damaged files: photos/manifest\.json .*repair"):
        InstanceCollection.open(uri, "photos")
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def rows_with_vectors(tmp_path):
    """A collection with rows on disk and rows in memory, and a key that wants quoting."""
    names = ["a.jpg", 'quo"ted\\\n.jpg', "c.jpg"]
    uri = tmp_path / "photos.db"
    with InstanceCollection.create(uri, "photos", TinyEncoder()) as photos:
        photos.upsert([encoding(names[0]), encoding(names[1], seed=1)])
    with InstanceCollection.open(uri, "photos", encoder=None) as photos:
        photos.upsert([encoding(names[2], seed=2), encoding(names[0], seed=3)])
        yield photos, names


def test_vectors_read_in_this_process_are_those_that_milvus_sends(rows_with_vectors, monkeypatch):
    photos, names = rows_with_vectors
    fields = ["descriptor", *photos.layout.vector_fields]
    asked = [*names, names[0], "missing.jpg", "\udcff.jpg"]
    options = {"row_bytes": photos.layout.row_bytes}
    sent = photos.store.fetch("photos", "uri", asked, fields, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "call", None)  # nothing is asked through the client
        read = photos.store.fetch_vectors("photos", "uri", asked, fields, **options)
    assert set(read) == set(names)
    for uri, row in sent.items():
        assert {name: row[name] for name in fields} == {name: read[uri][name] for name in fields}
        assert read[uri]["uri"] == uri


@pytest.mark.parametrize("served", [None, (), ("server", "no database", 1)])
def test_vectors_are_asked_for_where_they_cannot_be_read_so(rows_with_vectors, monkeypatch, served):
    photos, names = rows_with_vectors
    fields = photos.layout.vector_fields
    options = {"row_bytes": photos.layout.row_bytes}
    read = photos.store.fetch_vectors("photos", "uri", names, fields, **options)
    with monkeypatch.context() as patch:
        if served is None:
            patch.delattr(server_manager_instance, "_servers")
        else:
            patch.setitem(server_manager_instance._servers, photos.store._lite_path, served)
        assert photos.store.fetch_vectors("photos", "uri", names, fields, **options) == read


def test_vectors_of_what_is_not_there_or_closed_are_refused_in_our_words(rows_with_vectors):
    photos, names = rows_with_vectors
    with pytest.raises(StoreError, match=r"failed in query .*nothing"):
        photos.store.fetch_vectors("nothing", "uri", names, ["descriptor"], row_bytes=1)
    store = Store(photos.store.uri)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.fetch_vectors("photos", "uri", names, ["descriptor"], row_bytes=1)


def test_a_full_disk_is_named_and_what_was_stored_is_kept(tmp_path):
    make_namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*make_namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made here")
    code = """
photos = InstanceCollection.create("disk/photos.db", "photos", TinyEncoder(512, 64, 21))
stored = 0
try:
    while stored < 1000:
        photos.upsert([encoding(f"/p/{stored}.jpg", stored, 512, 64, 21)])
        stored += 1
except StoreError as error:
    print(error)
try:
    photos.upsert([encoding("/p/later.jpg", 1, 512, 64, 21)])
except StoreError as error:
    print(error)
photos.close()
Path("disk/filler").unlink()
with InstanceCollection.open("disk/photos.db", "photos") as photos:
    outcome = photos.verify()
    print(outcome.ok, outcome.rows == stored, stored > 0)
    photos.upsert([encoding("/p/later.jpg", 1, 512, 64, 21)])
    print(photos.count() == stored + 1, photos.verify().ok)
"""
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=16m none disk && head -c 8M /dev/zero > disk/filler"
    done = subprocess.run(
        [*make_namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", *program(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, reopened, again = done.stdout.splitlines()
    assert "No space left on device" in first
    assert "make room on the disk, then run again" in first
    assert "an earlier write to disk/photos.db failed half-way" in second
    assert reopened == "True True True"
    assert again == "True True"


# A server


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_that_is_down_is_named_in_time_and_the_token_is_not(closed_port, capfd):
    uri = f"http://127.0.0.1:{closed_port}"
    started = time.monotonic()
    with pytest.raises(StoreError) as error:
        InstanceCollection.open(uri, "photos", token=TOKEN)
    assert time.monotonic() - started < 15
    assert uri in str(error.value)
    assert "see that it is running" in str(error.value)
    output = "".join(capfd.readouterr())
    for secret in (TOKEN, "s3cret"):
        assert secret not in str(error.value) + output


def test_a_password_in_a_uri_is_not_shown(closed_port):
    with pytest.raises(StoreError) as error:
        Store(f"http://root:s3cret@127.0.0.1:{closed_port}")
    assert "s3cret" not in str(error.value)
    assert f"http://***@127.0.0.1:{closed_port}" in str(error.value)


def test_something_that_is_no_milvus_is_refused_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(StoreError, match="failed in connecting"):
            Store(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < 15


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing_and_the_run_goes_on(tmp_path, capfd):
    if reason := why_not():
        pytest.skip(reason)
    server = MilvusServer(tmp_path / "milvus")
    server.start()
    try:
        photos = InstanceCollection.create(server.uri, "photos", TinyEncoder(), token=TOKEN)
        photos.store.timeout = 8.0
        assert TOKEN not in repr(photos) + repr(photos.store)
        photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(5)])
        server.kill()
        started = time.monotonic()
        with pytest.raises(StoreError) as error:
            photos.upsert([encoding("/p/5.jpg", 5)])
        assert time.monotonic() - started < 30
        assert "run again to go on" in str(error.value)
        assert server.uri in str(error.value)
        photos.close()
        with pytest.raises(StoreError, match="see that it is running"):
            InstanceCollection.open(server.uri, "photos")
        server.start()
        with InstanceCollection.open(server.uri, "photos", encoder=TinyEncoder()) as photos:
            there = photos.contents([f"/p/{i}.jpg" for i in range(8)])
            assert set(there) >= {f"/p/{i}.jpg" for i in range(5)}
            photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(5, 8)])
            assert photos.count() == 8
            outcome = photos.verify()
            assert outcome.ok, outcome
        output = "".join(capfd.readouterr())
        assert "s3cret" not in output + str(error.value)
        assert "Traceback" not in output
    finally:
        server.close()


@pytest.mark.server
def test_the_tests_server_does_not_outlive_tests_that_are_killed(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    code = f"""
import os, signal
server = MilvusServer(Path({str(tmp_path / "milvus")!r}))
server.start()
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(program(code), stdout=subprocess.PIPE, text=True, check=False)
    group = int(done.stdout)
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("the server went on without its tests")


@pytest.mark.server
def test_an_alias_opens_its_collection_and_a_released_one_is_loaded_again(server):
    client = MilvusClient(server.uri)
    with InstanceCollection.create(server.uri, "aliased", TinyEncoder()) as photos:
        photos.upsert([encoding()])
        client.create_alias("aliased", "live")
        with InstanceCollection.open(server.uri, "live") as same:
            assert (same.name, same.count(), same.verify().ok) == ("aliased", 1, True)
        client.release_collection("aliased")
        ((hit,),) = photos.search_vectors(encoding().descriptor, limit=1)
        assert hit.uri == "/p/0.jpg"
        client.release_collection("aliased_ledger")
        photos.upsert([encoding("/p/1.jpg", 1)])
        assert photos.verify().ok
        client.drop_alias("live")
        photos.drop()
    client.close()


# The filter language


def test_quoting_leaves_no_way_out_of_a_literal():
    assert quoted('a"] or uri != "') == '"a\\"] or uri != \\""'
    assert quoted("\\") == '"\\\\"'
    assert quoted("a\nb\tc\rd'") == '"a\\nb\\tc\\rd\'"'
    assert one_of("uri", ["a", 'b"']) == 'uri in ["a", "b\\""]'
