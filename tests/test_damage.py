"""Files of Milvus Lite that are damaged or not to be had: mended, or named in words."""

import os
import shutil
import socket
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient
from test_client import program
from test_collection import TinyEncoder, encoding

from cwf_milvus.answers.hits import Query
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.rerank import Classes, Online, Regions
from cwf_milvus.search.search import search_queries
from cwf_milvus.store import lite
from cwf_milvus.store.answers import advice

N = 12


class NamedClasses(TinyEncoder):
    class_names = tuple(map(str, range(1000)))


@pytest.fixture
def database(tmp_path):
    """A database whose vector index is on the disk; closed."""
    uri = tmp_path / "photos.db"
    with InstanceCollection.create(uri, "photos", TinyEncoder()) as photos:
        photos.upsert([encoding(f"/p/{i}.jpg", i) for i in range(N)])
    with InstanceCollection.open(uri, "photos") as photos:
        assert photos.verify().ok
    return uri


def index_of(database):
    (index,) = database.glob("collections/photos/partitions/*/indexes/*.flat.idx")
    return index


def hits(photos, i=3):
    (rows,) = photos.search_vectors(encoding(seed=i).descriptor, limit=N)
    return [(row.uri, row.score) for row in rows]


# The vector index


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-7],
        lambda data: data + b"more",
        lambda data: data[:200] + bytes(len(data) - 200),
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data.replace(b"(12, 8)", b"(11, 8)"),
        lambda data: os.urandom(len(data)),
    ],
)
def test_a_damaged_vector_index_is_made_again_and_said_once(database, damage):
    with InstanceCollection.open(database, "photos") as photos:
        right = hits(photos)
    index = index_of(database)
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="the vector index of photos in .* made again"):
        photos = InstanceCollection.open(database, "photos")
    with photos:
        assert hits(photos) == right
        assert photos.verify().ok
    assert index.read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InstanceCollection.open(database, "photos").close()


def test_an_index_that_answers_otherwise_than_the_rows_is_found(database, monkeypatch):
    vectors = np.load(index_of(database))
    swapped = vectors[[1, 0, *range(2, N)]]
    zeroed = vectors * (np.arange(N) != 5)[:, None]
    monkeypatch.setattr(lite, "drop_damaged", lambda path: [])
    for damaged, n in ((swapped, 2), (zeroed.astype(np.float32), 1)):
        np.save(index_of(database).open("wb"), damaged)
        with InstanceCollection.open(database, "photos") as photos:
            outcome = photos.verify()
            assert (outcome.ok, outcome.searched) == (False, N)
            assert f"{n} of {N} stored descriptors that were searched for" in str(outcome)


def test_photos_that_are_alike_or_empty_are_no_damage(tmp_path):
    with InstanceCollection.create(tmp_path / "p.db", "photos", TinyEncoder()) as photos:
        nothing = np.zeros(8, np.float32)
        photos.upsert([encoding("/a", 1), encoding("/b", 1), encoding("/c", 2, descriptor=nothing)])
        assert photos.verify().ok


# Vectors in a row


@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("region_vectors_0", "AAAA", Regions()),
        ("region_vectors_0", "not base64 at all", Regions()),
        ("region_boxes", "", Regions()),
        ("class_vectors_0", "AAAA", Classes()),
        ("class_vectors_0", "", Online()),
    ],
)
def test_a_hit_with_damaged_vectors_keeps_its_place_and_the_others_are_ranked(
    database, field, value, stage
):
    query = Query(encoding("/p/3.jpg", 3), "query")
    with InstanceCollection.open(database, "photos", encoder=NamedClasses()) as photos:
        first = search_queries(photos, [query], stages=[], limit=N, filter=None)[0]
        place = 4
        (row,) = photos.raw_rows([first[place].uri]).values()
        photos.store.write("photos", [{**row, field: value}])
        found = search_queries(photos, [query], stages=[stage], limit=N, filter=None)[0]
    assert len(found) == N
    assert found[place].uri == first[place].uri
    assert "its stored vectors are damaged" in found[place].note
    assert "it kept its place" in found[place].note
    assert not any(hit.note for i, hit in enumerate(found) if i != place)


# A creation that was cut short


@pytest.mark.parametrize("left", [(), ("schema.json.tmp",)])
def test_a_collection_whose_creation_was_cut_short_is_made_at_the_next_attempt(database, left):
    folder = database / "collections" / "photos_graph"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("{")
    with InstanceCollection.open(database, "photos") as photos:
        assert photos.build_graph(neighbours=3, progress=False).photos == N
    with InstanceCollection.open(database, "photos") as photos:
        assert photos.verify().ok


# Who may reach it


def test_an_open_database_listens_on_no_port_and_others_cannot_reach_its_socket(database):
    code = f"""
import pathlib, re
photos = InstanceCollection.open({str(database)!r}, "photos")
inodes = {{link.readlink().name for link in pathlib.Path("/proc/self/fd").iterdir()
           if link.is_symlink()}}
for line in open("/proc/net/tcp").readlines()[1:] + open("/proc/net/tcp6").readlines()[1:]:
    parts = line.split()
    assert parts[3] != "0A" or f"socket:[{{parts[9]}}]" not in inodes, line
from cwf_milvus.store import lite
(name,) = lite._sockets.values()
print(oct(pathlib.Path(name).parent.stat().st_mode & 0o777))
photos.close()
print(pathlib.Path(name).parent.exists())
"""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("only Linux tells which ports are open")
    done = subprocess.run(program(code), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o700", "False"]


def test_another_client_of_this_process_shares_an_open_database(database):
    with InstanceCollection.open(database, "photos") as photos:
        client = MilvusClient(str(database))
        assert client.has_collection("photos")
        rows = client.query("photos", "uri == '/p/1.jpg'", output_fields=["uri"])
        assert [row["uri"] for row in rows] == ["/p/1.jpg"]
        client.close()
        assert photos.count() == N


def test_a_database_is_reached_past_a_proxy_in_the_environment(database):
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # answers nothing
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY")
        code = f"print(InstanceCollection.open({str(database)!r}, 'photos').count())"
        environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
        done = subprocess.run(
            program(code),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**environment, **dict.fromkeys(names, address)},
        )
    assert done.stdout == f"{N}\n", done.stderr


def test_a_read_only_database_is_refused_with_what_to_do(database, tmp_path):
    make_namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*make_namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made here")
    code = """
try:
    InstanceCollection.open("photos.db", "photos")
except StoreError as error:
    print(error)
"""
    mount = "mount --bind . . && mount -o remount,ro,bind ."
    done = subprocess.run(
        [*make_namespace, "sh", "-c", f'{mount} && cd "$PWD" && exec "$@"', "sh", *program(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Read-only file system" in done.stdout
    assert "open the copy" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be tried by root alone")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_files_without_access_are_named_with_what_to_do(database, tmp_path, what):
    shutil.copytree(database, tmp_path / "theirs.db")
    for path in (tmp_path, *(tmp_path / "theirs.db").rglob("*"), tmp_path / "theirs.db"):
        os.chown(path, 65534, 65534)
    parquet = next((tmp_path / "theirs.db").glob("collections/photos/**/*.parquet"))
    (tmp_path / "theirs.db" if what == "folder" else parquet).chmod(0)
    code = f"""
import os
os.setgid(65534); os.setuid(65534)
try:
    InstanceCollection.open({str(tmp_path / "theirs.db")!r}, "photos").count()
except StoreError as error:
    print(error)
"""
    done = subprocess.run(program(code), capture_output=True, text=True, check=False, cwd=tmp_path)
    if "Permission denied" not in done.stdout and done.returncode:
        pytest.skip(f"the other user cannot run Python here: {done.stderr[-200:]}")
    assert "Permission denied" in done.stdout
    assert "readable and writable" in done.stdout or "can be read and written" in done.stdout


# Words


@pytest.mark.parametrize("is_lite", [True, False])
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("service not ready[Proxy=1]: Abnormal", "wait a minute"),
        ("channel not subscribed", "wait a minute"),
        ("[Errno 13] Permission denied: '/x'", "readable and writable"),
        ("[Errno 30] Read-only file system", "copy it"),
        ("UNAVAILABLE: failed to connect", "see that it is running"),
        ("something that nobody foresaw", "again"),
    ],
)
def test_every_failure_has_a_remedy(words, remedy, is_lite):
    assert remedy in advice(words, is_lite)
    assert "log may say more" not in advice(words, is_lite)
