"""What all tests share: workers that run side by side take one core each, and a real server."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from milvus_server import MilvusServer, why_not

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Not the user's own; kept from run to run, since a network takes seconds to convert.
_user = os.getuid() if hasattr(os, "getuid") else "tests"
os.environ["CWF_MILVUS_CACHE"] = str(Path(tempfile.gettempdir(), f"cwf-milvus-tests-{_user}"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A real Milvus server, one for a worker."""
    if reason := why_not():
        pytest.skip(reason)
    running = MilvusServer(tmp_path_factory.mktemp("milvus"))
    running.start()
    yield running
    running.close()
