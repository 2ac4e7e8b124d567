"""What a command loads before it does anything: torch alone takes seconds."""

from __future__ import annotations

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
