"""What is interrupted ends in time, or waits for a server, and goes on."""

import os
import signal
import socket
import threading
import time
import warnings

import numpy as np
import pytest
from command_line import TINY, programs
from milvus_server import MilvusServer, why_not
from pymilvus import MilvusException
from test_collection import TinyEncoder, encoding

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import StoreError
from cwf_milvus.store import server as server_module
from cwf_milvus.store.server import until_answered

DOWN = MilvusException(message="server unavailable: UNAVAILABLE: failed to connect")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("outputs")) as started:
        yield started


# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_waits_for_an_answer_is_ended_by_a_signal(start, tmp_path, number, status):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the question, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/photo.jpg"
        report = tmp_path / "report.jsonl"
        running = start.start("index", url, "--uri", tmp_path / "p.db", *TINY, "--report", report)
        silent.settimeout(60)
        silent.accept()[0].recv(10)
        running.send(number)
        began = time.monotonic()
        assert running.wait() == status
        assert time.monotonic() - began < 10  # 2 s on a machine that is not busy
    lines = running.text().splitlines()
    assert lines[-1] == "interrupted: what was finished is kept; run the same command to go on"
    assert lines.count(lines[-1]) == 1
    assert "Traceback" not in running.text()


# Waiting


def failing(n, error=DOWN):
    """Return a question that is answered at the nth time, and the times when it was asked."""
    asked = []

    def ask(timeout):
        asked.append(timeout)
        if len(asked) <= n:
            raise error
        return "answer"

    return ask, asked


def test_a_server_that_comes_back_is_waited_for_and_both_are_said(monkeypatch):
    monkeypatch.setattr(server_module, "_PAUSE", 0.01)
    ask, asked = failing(3)
    with pytest.warns(UserWarning, match="Milvus at") as said:
        assert until_answered(ask, "http://here", timeout=9.0, wait=30.0) == "answer"
    assert len(asked) == 4
    words = [str(warning.message) for warning in said]
    assert "does not answer" in words[0]
    assert "waiting for it up to 30 s" in words[0]
    assert "answers again after" in words[1]
    assert len(words) == 2


def test_one_that_does_not_come_back_is_given_up_and_what_it_refuses_is_not_repeated(monkeypatch):
    monkeypatch.setattr(server_module, "_PAUSE", 0.01)
    ask, asked = failing(10**9)
    with pytest.warns(UserWarning, match="waiting"), pytest.raises(MilvusException):
        until_answered(ask, "http://here", timeout=9.0, wait=0.2)
    assert len(asked) > 2
    for wait, error in ((30.0, MilvusException(message="schema mismatch")), (0.0, DOWN)):
        ask, asked = failing(1, error)
        with pytest.raises(MilvusException):
            until_answered(ask, "http://here", timeout=9.0, wait=wait)
        assert len(asked) == 1


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_is_killed_or_frozen_while_photos_are_stored_is_waited_for(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    server = MilvusServer(tmp_path / "milvus")
    server.start()
    try:
        photos = InstanceCollection.create(server.uri, "photos", TinyEncoder())
        photos.store.timeout, photos.store.wait = 5.0, 90.0
        done, failed = [], []

        def store():
            try:
                for i in range(30):
                    photos.upsert([encoding(f"/p/{i}-{k}.jpg", 4 * i + k) for k in range(4)])
                    photos.search_vectors(encoding(seed=4 * i).descriptor, limit=3)
                    done.append(i)
                    time.sleep(0.02)
            except StoreError as error:
                failed.append(error)

        def wait_for(n):
            while len(done) < n and not failed:
                time.sleep(0.05)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            writer = threading.Thread(target=store)
            writer.start()
            wait_for(5)
            group = os.getpgid(server._process.pid)
            os.killpg(group, signal.SIGSTOP)
            time.sleep(8)
            os.killpg(group, signal.SIGCONT)
            wait_for(len(done) + 5)
            server.kill()
            server.start()
            writer.join(150)
        assert not failed, failed[0]
        assert len(done) == 30
        assert sum("answers again" in str(warning.message) for warning in said) >= 2
        assert photos.count() == 120
        assert photos.verify().ok
        (rows,) = photos.search_vectors(np.asarray(encoding(seed=7).descriptor), limit=1)
        assert rows[0].uri == "/p/1-3.jpg"
        os.killpg(group := os.getpgid(server._process.pid), signal.SIGSTOP)
        photos.store.timeout, photos.store.wait = 2.0, 0.0
        began = time.monotonic()
        with pytest.raises(StoreError, match="what was finished is kept"):
            photos.search_vectors(encoding(seed=1).descriptor, limit=3)
        assert time.monotonic() - began < 20
        os.killpg(group, signal.SIGCONT)
        photos.close()
    finally:
        server.close()
