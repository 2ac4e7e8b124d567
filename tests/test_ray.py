"""Photos encoded by two workers of a real, local Ray are those that one process encodes."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import ray
import torch
from command_line import TINY
from small_encoders import CHELSEA, tiny
from test_folders import fill

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.index.indexing import index_photos
from cwf_milvus.ray import EncodePhotos, MilvusDatasink, encoded_by_ray

pytestmark = pytest.mark.slow
ALONE = [*TINY, "--batch-size", "1"]  # the last bits may differ with the others of a batch


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers do: sums in other orders differ in the last bits
    ray.init(
        num_cpus=3,  # two that encode, one that reads or writes
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder():
    sizes = {"image_size": 64, "class_image_size": 32, "n_classes": 4, "n_pooled": 4}
    return tiny(whitening=None, batch_size=1, **sizes)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "in", 24)
    PIL.Image.fromarray(CHELSEA).save(tmp_path / "in" / "cat.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno photo")
    return tmp_path / "in"


class Dies(EncodePhotos):
    """Kills its own process at the third batch, once among all workers."""

    def __call__(self, batch):
        done = Path(self.marker)
        done.mkdir(exist_ok=True)
        (done / f"{os.getpid()}-{batch['uri'][0].replace('/', '-')}").touch()
        if len(list(done.iterdir())) >= 3 and not (done / "died").exists():
            (done / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def rows(uri, name="photos"):
    with InstanceCollection.open(uri, name) as photos:
        assert photos.verify().ok
        return photos.raw_rows(list(photos.uris()))


def test_the_command_makes_the_collection_of_one_process_bit_for_bit(folder, tmp_path, capsys):
    (folder / "metadata.csv").write_text("file_name,year\n3.png,2003\n")
    one = ["index", str(folder), "--uri", str(tmp_path / "one.db"), *ALONE, "--class-rows"]
    assert main(one) == 1
    capsys.readouterr()
    many = ["index", str(folder), "--uri", str(tmp_path / "many.db"), *ALONE, "--class-rows"]
    many += ["--ray", "auto", "--workers", "2", "--report", str(tmp_path / "report.jsonl")]
    assert main(many) == 1
    told = capsys.readouterr()
    assert "25 added" in told.out
    assert "1 failed" in told.out
    assert "bad.png" in told.err
    assert rows(tmp_path / "many.db") == rows(tmp_path / "one.db")
    assert main(many) == 1
    assert "0 added, 0 updated, 25 skipped, 1 failed" in capsys.readouterr().out
    last = json.loads((tmp_path / "report.jsonl").read_text().splitlines()[-1])
    assert last["summary"]["skipped"] == 25


def test_a_worker_that_is_killed_costs_nothing(folder, tmp_path, encoder):
    stage = type("DiesOnce", (Dies,), {"marker": str(tmp_path / "met")})
    for name, elsewhere in (
        ("one", None),
        ("many", encoded_by_ray(encoder, "auto", workers=2, stage=stage)),
    ):
        with InstanceCollection.create(tmp_path / f"{name}.db", "photos", encoder) as photos:
            report = index_photos(photos, folder, progress=False, elsewhere=elsewhere)
            assert (report.added, len(report.failed)) == (25, 1)
    assert (tmp_path / "met" / "died").exists()
    assert rows(tmp_path / "many.db") == rows(tmp_path / "one.db")


def test_the_sink_stores_each_photo_once_and_collects_what_failed(folder, tmp_path, encoder):
    with InstanceCollection.create(tmp_path / "one.db", "photos", encoder) as photos:
        photos.add(folder, progress=False)
    InstanceCollection.create(tmp_path / "sink.db", "photos", encoder).close()
    items = [{"uri": str(path), "year": i} for i, path in enumerate(sorted(folder.glob("*.png")))]
    encoded = ray.data.from_items([*items, *items[:3]], override_num_blocks=4).map_batches(
        EncodePhotos,
        fn_constructor_kwargs={"encoder": encoder.state(), "batch_size": 1},
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    sink = MilvusDatasink(tmp_path / "sink.db", "photos", metadata=["year"])
    encoded.write_datasink(sink, concurrency=1)
    assert {Path(uri).name for uri, _ in sink.report.failed} == {"bad.png"}
    assert sink.report.added >= 25
    one, many = rows(tmp_path / "one.db"), rows(tmp_path / "sink.db")
    assert one.keys() == many.keys()
    for uri, row in many.items():
        assert isinstance(row.pop("year"), int)
        assert {**row, "checksum": ""} == {**one[uri], "checksum": ""}


def test_a_batch_has_uniform_columns_whatever_becomes_of_its_photos(folder, encoder):
    stage = EncodePhotos(encoder.state(), uri="path", photo="bytes")
    files = [folder / "1.png", folder / "bad.png", folder / "cat.png"]
    batch = {
        "path": np.array([str(file) for file in files], object),
        "bytes": np.array([file.read_bytes() for file in files], object),
        "split": np.array(["a", "b", "c"], object),
    }
    found = stage(batch)
    assert {len(column) for column in found.values()} == {3}
    assert found["descriptor"].shape == (3, encoder.dim)
    assert found["region_vectors"].shape == (3, encoder.n_regions, encoder.dim)
    assert [bool(reason) for reason in found["reason"]] == [False, True, False]
    assert not found["descriptor"][1].any()
    assert list(found["split"]) == ["a", "b", "c"]
    assert "bytes" not in found
    with pytest.raises(SettingsError, match="no column 'bytes'"):
        stage({"uri": batch["path"]})
