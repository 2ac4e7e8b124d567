"""What a command loads before it does anything: torch alone takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from small_encoders import CHELSEA, COFFEE, tiny

from cwf_milvus import InstanceCollection

_SCRIPT = """
import sys
from cwf_milvus.cli import main
status = main(sys.argv[2:])
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"loaded {loaded}" if loaded else status)
"""


@pytest.fixture(scope="module")
def photos_db(tmp_path_factory):
    """A collection whose encoder was restored once, so that its class names are kept."""
    place = str(tmp_path_factory.mktemp("start") / "photos.db")
    encoder = tiny(whitening=None, keypoints=20)
    with InstanceCollection.create(place, "photos", encoder) as photos:
        photos.upsert(encoder.encode([CHELSEA, COFFEE]))
    with InstanceCollection.open(place, "photos") as photos:
        assert list(photos.class_names) == list(photos.encoder.class_names)
        uri = next(photos.uris())
    return place, uri


def run(without, *command):
    """Run a command in a process of its own, which must not have loaded some packages."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, without, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [["info"], ["verify"]])
def test_a_command_that_sees_no_photo_loads_no_torch(photos_db, command):
    assert run("torch,timm,torchvision,sklearn", *command, "--uri", photos_db[0])


def test_a_search_like_a_stored_photo_loads_no_torch_and_names_classes(photos_db):
    place, uri = photos_db
    shown = run("torch,timm,torchvision,sklearn,cv2", "search", "--uri", place, "--like", uri)
    assert "sha256:" in shown


@pytest.mark.parametrize("given", [{}, {"OPENBLAS_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_of_a_search_sleep_while_they_wait_unless_they_are_told_otherwise(tmp_path, given):
    names = ["OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY"]
    script = (
        f"import os; from cwf_milvus.cli import main; main(['search', 'x.png']); "
        f"print([os.environ.get(name) for name in {names}])"
    )
    environ = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environ
    )
    assert done.stdout.splitlines()[-1] == str(list(given.values()) or ["1", "PASSIVE"])
