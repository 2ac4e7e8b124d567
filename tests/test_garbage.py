"""Python's garbage collection, put off while answers are made, and on again after."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from small_encoders import CHELSEA, tiny

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import FilterError
from cwf_milvus.rerank import Cam, Regions
from cwf_milvus.search.expansion import LocalExpansion
from cwf_milvus.search.garbage import no_garbage_collection
from cwf_milvus.search.stage import Context, Stage


def test_it_is_off_within_and_on_again_after_whatever_happens():
    with no_garbage_collection():
        assert not gc.isenabled()
        with no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), no_garbage_collection():
        raise KeyError
    assert gc.isenabled()


def test_who_had_it_off_has_it_off_after():
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_leave_it_on():
    def work() -> None:
        for _ in range(200):
            with no_garbage_collection():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.isenabled()


@pytest.mark.filterwarnings("ignore::cwf_milvus.method.whitening.ReducedDimensionWarning")
def test_searches_leave_it_on_refused_ones_too(tmp_path):
    encoder = tiny().fit([CHELSEA[i : i + 90, :120] for i in range(0, 200, 3)])
    with InstanceCollection.create(tmp_path / "p.db", "photos", encoder) as photos:
        photos.add([np.ascontiguousarray(CHELSEA)])
        assert len(photos.search(CHELSEA, rerank="regions", expand="local")) == 1
        assert gc.isenabled()
        with pytest.raises(FilterError):
            photos.search(CHELSEA, filter="no filter")
        assert gc.isenabled()


def test_it_waits_for_all_queries_of_a_brief_stage_alone():
    class Watching(Stage):
        def __call__(self, query, hits, context):
            seen.append(gc.isenabled())
            return list(hits)

    seen: list[bool] = []
    stage = Watching()
    stage.run([None, None], [[], []], Context())
    stage.brief = True
    stage.run([None, None], [[], []], Context())
    assert seen == [True, True, False, False]
    assert gc.isenabled()
    assert Regions.brief
    assert LocalExpansion.brief
    assert not Cam.brief
