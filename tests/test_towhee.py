"""The operators and pipelines inside Towhee itself."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from operator_photos import EMBED, fitted, write_photos
from small_encoders import CHELSEA, COFFEE

pytest.importorskip("towhee", reason="Towhee is not installed: pip install 'cwf-milvus[towhee]'")

from towhee import AutoConfig, AutoPipes, ops, pipe
from towhee.types.image import Image as TowheeImage

import cwf_milvus.towhee
from cwf_milvus import operators
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.operators.install import HUB, install, operator_names, uninstall

ROOT = HUB.parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, one of them damaged, and an encoder."""
    root = tmp_path_factory.mktemp("towhee")
    write_photos(root / "photos")
    fitted(descriptor="both").save(root / "encoder")
    return root


def index_pipeline(folder: Path, name: str, **more: Any) -> Any:
    config = AutoConfig.load_config(
        "cwf_image_index",
        uri=str(folder / name),
        collection="things",
        encoder=str(folder / "encoder"),
        **more,
    )
    return AutoPipes.pipeline("cwf_image_index", config=config)


def search_pipeline(folder: Path, name: str, **more: Any) -> Any:
    config = AutoConfig.load_config(
        "cwf_image_search", uri=str(folder / name), collection="things", **more
    )
    return AutoPipes.pipeline("cwf_image_search", config=config)


@pytest.fixture(scope="module")
def indexed(folder: Path) -> Path:
    """The folder, its photos being in photos.db."""
    index_pipeline(folder, "photos.db")(str(folder / "photos")).to_list()
    return folder


def embedding(*args: Any, config: Any = None, **options: Any) -> Any:
    return (
        pipe.input("image")
        .map("image", ("x", "maps", "ids"), ops.cwf.cam_vgg_embed(*args, **options), config=config)
        .output("x", "maps", "ids")
    )


# Operators


@pytest.mark.parametrize("name", operator_names())
def test_a_factory_takes_what_its_core_takes(name: str) -> None:
    factory = getattr(importlib.import_module(f"cwf_milvus.data.hub.{name}"), name)
    core = getattr(operators, name.title().replace("_", ""))
    expected = [(p.name, p.default) for p in inspect.signature(core).parameters.values()]
    assert [(p.name, p.default) for p in inspect.signature(factory).parameters.values()] == expected
    assert getattr(cwf_milvus.towhee, core.__name__).__doc__ == core.__doc__


def test_the_chain_in_a_pipeline_gives_the_encoders_descriptor(folder: Path) -> None:
    encoder = Encoder.load(folder / "encoder")
    chain = (
        pipe.input("image")
        .map("image", ("x", "maps", "ids"), ops.cwf.cam_vgg_embed(**EMBED))
        .map(
            ("x", "maps"),
            ("classes", "regions"),
            ops.cwf.class_weight_pool(region_levels=encoder.settings.region_levels),
        )
        .map(("classes", "regions"), "vector", ops.cwf.pca_whiten(str(folder / "encoder")))
        .output("vector")
    )
    for photo in (CHELSEA, COFFEE):
        (vector,) = chain(photo).get()
        assert np.abs(vector - encoder.encode([photo])[0].descriptor).max() < 1e-6


def test_operators_made_beforehand_can_be_put_in_a_pipeline() -> None:
    embed = operators.CamVggEmbed(**EMBED)
    pipeline = (
        pipe.input("image")
        .map("image", ("x", "maps", "ids"), embed)
        .map(("x", "maps"), "vectors", operators.ClassWeightPool())
        .output("vectors")
    )
    expected = operators.ClassWeightPool()(*embed(CHELSEA)[:2])
    assert (pipeline(CHELSEA).get()[0] == expected).all()


def test_arrays_of_towhees_decoder_give_what_the_photo_gives() -> None:
    embed = embedding(**EMBED)
    expected = embed(CHELSEA).get()
    for array in (
        TowheeImage(CHELSEA[..., ::-1], "BGR"),
        TowheeImage(CHELSEA, "RGB"),
        TowheeImage(np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)]), "RGBA"),
    ):
        for ours, theirs in zip(embed(array).get(), expected, strict=True):
            assert (ours == theirs).all()
    grey = TowheeImage(CHELSEA[..., ::-1], "BGR")[..., 1]
    assert (embed(grey).get()[0] == embed(CHELSEA[..., 1]).get()[0]).all()


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where a GPU is")
def test_the_device_of_a_nodes_config_is_the_networks() -> None:
    # In a thread of its own: Towhee does not take a node's config back when the node fails.
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(RuntimeError, match="device 'cuda:3' cannot be had"),
    ):
        pool.submit(embedding, **EMBED, config={"device": 3}).result()


def test_the_device_given_as_an_argument_wins() -> None:
    assert len(embedding(**EMBED, device="cpu", config={"device": 3})(CHELSEA).get()) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_the_gpu_gives_what_one_on_the_cpu_gives() -> None:
    on_gpu = embedding(**EMBED, config={"device": 0})(CHELSEA).get()
    on_cpu = embedding(**EMBED, device="cpu")(CHELSEA).get()
    assert np.abs(on_gpu[0] - on_cpu[0]).max() < 1e-2 * np.abs(on_cpu[0]).max()


@pytest.mark.parametrize(
    ("device", "name"), [(-1, "cpu"), (1, "cuda:1"), ("cpu", "cpu"), (None,) * 2]
)
def test_a_pipelines_device_is_a_number_or_a_name(device: int | str | None, name: str) -> None:
    assert cwf_milvus.towhee._device(device) == name


# Pipelines


def test_a_folder_is_indexed_and_a_bad_photo_is_told(folder: Path) -> None:
    index = index_pipeline(folder, "told.db", batch_size=2, device="cpu")
    missing = str(folder / "missing.jpg")
    rows = index([str(folder / "photos"), missing, COFFEE]).to_list()
    by_name = {Path(photo_id).name: error for photo_id, error in rows}
    assert len(rows) == 6
    assert by_name["cat.png"] == by_name["cup.png"] == by_name["rocket.png"] == ""
    assert "damaged or cut off" in by_name["damaged.jpg"]
    assert "missing.jpg" in by_name["missing.jpg"]
    (found,) = search_pipeline(folder, "told.db")(COFFEE, "").get()
    assert len(found) == 4  # three files and an array


def test_photos_are_encoded_in_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = Encoder.encode_prepared

    def counted(self: Encoder, batch: Any) -> Any:
        sizes.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode_prepared", counted)
    photos = [np.roll(COFFEE, 9 * i, axis=1) for i in range(12)]
    rows = index_pipeline(folder, "batches.db", batch_size=8)(photos).to_list()
    assert [error for _, error in rows] == [""] * 12
    assert sizes == [8, 4]


def test_many_more_photos_than_a_queue_holds_pass_through(folder: Path) -> None:
    # Towhee's queues hold 1,000 rows, and its nodes wait for one another in threads.
    index = index_pipeline(folder, "many.db", batch_size=500)
    missing = [str(folder / f"missing-{i}.jpg") for i in range(2500)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda part: index(part).to_list(), (missing,) * 3))
    assert [len(rows) for rows in answers] == [2500] * 3


def test_a_search_gives_rows_and_the_place_of_the_thing(indexed: Path) -> None:
    search = search_pipeline(
        indexed, "photos.db", limit=2, rerank="regions", expand=2, output_fields=["box", "width"]
    )
    (rows,) = search(str(indexed / "photos" / "cup.png"), (80, 14, 478, 390)).get()
    assert Path(rows[0][0]).name == "cup.png"
    assert len(rows) == 2
    assert rows[0][3] == 600


def test_an_error_still_says_what_happened(indexed: Path) -> None:
    search = search_pipeline(indexed, "photos.db")
    with pytest.raises(RuntimeError, match="box 10,10,5,5 has no area; give corners"):
        search(CHELSEA, (10, 10, 5, 5))
    with pytest.raises(RuntimeError, match=r"damaged\.jpg.* is damaged or cut off"):
        search(str(indexed / "photos" / "damaged.jpg"), "")
    with pytest.raises(RuntimeError, match=r"no Milvus Lite database .*nowhere\.db"):
        search_pipeline(indexed, "nowhere.db")


def test_a_token_is_in_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "s3cret")
    with pytest.raises(RuntimeError) as caught:
        ops.cwf.instance_search("http://127.0.0.1:1", "things")(CHELSEA)
    assert "s3cret" not in str(caught.value)


def networks() -> tuple[int, int]:
    """Return how many networks are in memory, and the bytes of their weights."""
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) is Encoder]
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
        for encoder in alive
        for part in encoder.backbone.state_dict().values()
    }
    return len({id(encoder.backbone) for encoder in alive}), sum(storages.values())


def test_concurrent_calls_and_pipelines_share_one_network_in_memory(indexed: Path) -> None:
    before, bytes_before = networks()
    alone = Encoder.load(indexed / "encoder")
    one, bytes_with_one = networks()
    bytes_of_one = bytes_with_one - bytes_before
    assert one == before + 1
    assert bytes_of_one > 0
    del alone
    searches = [search_pipeline(indexed, "photos.db") for _ in range(3)]
    photos = [str(indexed / "photos" / f"{name}.png") for name in ("cat", "cup", "rocket")]
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda i: searches[i % 3](photos[i // 9], "").get(), range(27)))
    for i, (rows,) in enumerate(answers):
        assert rows[0][0] == photos[i // 9]
        assert rows == answers[9 * (i // 9)][0]
    now, bytes_now = networks()
    assert now == before + 1
    assert bytes_now == bytes_before + bytes_of_one


# By name


@pytest.mark.skipif(
    not any(d.name == "cwf-milvus" for d in importlib.metadata.distributions()),
    reason="Towhee would install what is imported from a folder: pip install -e .",
)
def test_after_install_towhee_finds_an_operator_with_no_import(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from towhee import ops, pipe\n"
        "assert 'cwf_milvus' not in sys.modules\n"
        "p = pipe.input('x', 'm').map(('x', 'm'), 'v', ops.cwf.class_weight_pool()).output('v')\n"
        "x, m = np.random.rand(8, 4, 5), np.random.rand(3, 4, 5)\n"
        "print(p(x, m).get()[0].shape)\n"
    )
    install(tmp_path / "home")
    environ = {**os.environ, "TOWHEE_HOME": str(tmp_path / "home"), "TOWHEE_URL": "http://[::1]:9"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, env=environ, cwd=tmp_path
    )
    assert done.stdout == "(3, 8)\n", done.stderr
    uninstall(tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*"))


# The folders' own examples


@pytest.mark.parametrize("name", operator_names())
def test_the_code_example_of_an_operator_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(COFFEE).save("photo.jpg")
    Path("damaged.jpg").write_bytes(Path("photo.jpg").read_bytes()[:3000])
    readme = (HUB / name / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code, f"{name}/README.md", "exec"), {})
    shown = capsys.readouterr().out
    expected = {
        "cam_vgg_embed": r"\(1280, 13, 20\) \(64, 13, 20\)",
        "class_weight_pool": r"\(64, 1280\)",
        "pca_whiten": r"(1\.0|0\.99999)",
        "instance_insert": r"photo\.jpg stored\n.*damaged\.jpg '.*' is damaged or cut off",
        "instance_search": r"photo\.jpg 0\.\d+ \[.*\]",
        "cam_rerank": r"photo\.jpg 0\.\d+ \[.*\]",
    }
    assert re.search(expected[name], shown), shown
