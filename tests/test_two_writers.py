"""Two writers on one server, with readers beside them: the union, and no wrong answer.

`python tests/test_two_writers.py 60` does it for 60 seconds on a server of its own.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from milvus_server import MilvusServer
from test_collection import TinyEncoder, encoding

from cwf_milvus.collection import InstanceCollection

_SETTLED = 3.0  # seconds after which another connection must see what was stored


def write_and_read(uri: str, name: str, seconds: float) -> dict[str, int]:
    """Return what was done; every wrong answer and every error is raised as one."""
    InstanceCollection.create(uri, name, TinyEncoder()).close()
    ends = time.monotonic() + seconds
    stored: dict[int, float] = {}  # number of a photo to when it was acknowledged
    removed: set[int] = set()
    wrong: list[object] = []
    n_searches = [0, 0]

    def guarded(work, number):
        try:
            with InstanceCollection.open(uri, name) as photos:
                work(photos, number)
        except BaseException as error:
            wrong.append(error)

    def write(photos, writer):
        i = writer
        while time.monotonic() < ends:
            part = [i, i + 2, i + 4]
            photos.upsert([encoding(f"/p/{k}.jpg", k) for k in part])
            stored.update((k, time.monotonic()) for k in part)
            if i % 5 == 0:
                removed.add(i)
                photos.remove(f"/p/{i}.jpg")
            i += 6

    def read(photos, reader):
        numbers = np.random.default_rng(reader)
        while time.monotonic() < ends:
            if not stored:
                time.sleep(0.05)
                continue
            k = int(numbers.choice(list(stored)))
            is_due = time.monotonic() - stored[k] > _SETTLED and k not in removed
            wanted = encoding(seed=k).descriptor
            (rows,) = photos.search_vectors(wanted, limit=5)
            n_searches[reader] += 1
            uris = [row.uri for row in rows]
            if is_due and k not in removed and uris[0] != f"/p/{k}.jpg":
                wrong.append(("not found", k, uris))
            if len(set(uris)) < len(uris):
                wrong.append(("twice", uris))
            for row in rows:
                right = encoding(seed=int(Path(row.uri).stem)).descriptor @ wanted
                if abs(row.score - right) > 1e-4:
                    wrong.append(("score", row.uri, row.score, right))

    threads = [
        threading.Thread(target=guarded, args=(work, number))
        for work in (write, read)
        for number in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with InstanceCollection.open(uri, name) as photos:
        outcome = photos.verify()
        there = {int(Path(one).stem) for one in photos.uris()}
        photos.drop()
    assert not wrong, wrong[:3]
    assert there == stored.keys() - removed
    assert outcome.ok, str(outcome)
    return {"stored": len(stored), "removed": len(removed), "searches": sum(n_searches)}


@pytest.mark.server
def test_two_writers_and_two_readers_give_the_union_and_no_wrong_answer(server):
    done = write_and_read(server.uri, "two_writers", 6.0)
    assert min(done["stored"], done["searches"]) > 10


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        running = MilvusServer(Path(folder) / "milvus")
        running.start()
        try:
            print(write_and_read(running.uri, "two_writers", float(sys.argv[1])))
        finally:
            running.close()
