"""Programs that embed an encoder: they copy it, send it, fork, and set torch's modes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from small_encoders import CHELSEA, SMALL, alike, crops, tiny

from cwf_milvus.backbones import create_backbone
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import CollectionError, SettingsError, StoreError, WeightsError

BOX = (10, 10, 120, 90)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny(whitening=None)


def vectors(encoder: Encoder) -> list[np.ndarray]:
    return [
        *(one.descriptor for one in encoder.encode(crops(3))),
        encoder.encode_query(CHELSEA, BOX).region_vectors,
    ]


def same(encoder: Encoder, other: Encoder) -> bool:
    equal = map(np.array_equal, vectors(encoder), vectors(other))
    return encoder.fingerprint == other.fingerprint and all(equal)


@contextmanager
def default_dtype(dtype: torch.dtype) -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_of_torch_change_no_vector(encoder: Encoder, mode: str) -> None:
    before = vectors(encoder)
    with MODES[mode]():
        dtype = torch.get_default_dtype()
        within = vectors(encoder)
        built = tiny(whitening=None)
        assert torch.get_default_dtype() == dtype
    assert all(map(np.array_equal, before, within))
    assert all(one.dtype == np.float32 for one in within)
    assert same(encoder, built)  # and it is as good outside


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_change_no_search(encoder: Encoder, tmp_path: Path, mode: str) -> None:
    def answer(photos: InstanceCollection) -> list[tuple[str, float]]:
        hits = photos.search(CHELSEA, box=BOX, rerank=["regions", "online"], expand="local")
        return [(hit.uri, hit.score) for hit in hits]

    with InstanceCollection.create(tmp_path / "a.db", "photos", encoder) as photos:
        photos.add({str(i): crop for i, crop in enumerate(crops(4))}, progress=False)
        outside = answer(photos)
        with MODES[mode]():
            assert answer(photos) == outside


# Copies, processes, threads


@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "resnet18", "swin_t", "timm:test_convnext", "vgg16_cam"]
)
def test_an_encoder_can_be_pickled_and_copied(name: str) -> None:
    encoder = Encoder(name, weights="random", whitening=None, **SMALL)
    image = CHELSEA[:160, :160]
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder), copy.copy(encoder)):
        assert other.fingerprint == encoder.fingerprint
        assert alike(other.encode([image])[0], encoder.encode([image])[0])


def _encoded(encoder: Encoder) -> np.ndarray:
    return encoder.encode([CHELSEA])[0].descriptor


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_gives_the_same_vectors_and_never_hangs(
    encoder: Encoder, method: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    expected = _encoded(encoder)  # used before the fork
    pool: Pool
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply_async(_encoded, (encoder,)).get(timeout=120)
    np.testing.assert_allclose(found, expected, atol=1e-5)


_inherited: list[InstanceCollection] = []


def _count(_: int) -> str:
    try:
        return str(_inherited[0].count())
    except StoreError as error:
        return str(error)


def test_a_forked_child_is_told_to_open_a_collection_anew(encoder: Encoder, tmp_path: Path) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    with InstanceCollection.create(tmp_path / "a.db", "photos", encoder) as photos:
        _inherited[:] = [photos]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            said = pool.apply_async(_count, (0,)).get(timeout=60)
        assert "open the collection here anew" in said
        assert photos.count() == 0


def test_a_collection_is_not_copied(encoder: Encoder, tmp_path: Path) -> None:
    with InstanceCollection.create(tmp_path / "a.db", "photos", encoder) as photos:
        for work in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(CollectionError, match=r"InstanceCollection\.open there"):
                work(photos)


def test_threads_share_an_encoder(encoder: Encoder) -> None:
    expected = vectors(encoder)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: vectors(encoder), range(8)):
            assert all(map(np.array_equal, found, expected))


# Checkpoints of the user's own training


def saved(path: Path, state: dict[str, object]) -> Path:
    torch.save(state, path)
    return path


RESNET = torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize(
    "wrapped",
    [
        {f"_orig_mod.{name}": value for name, value in RESNET.items()},
        {"state_dict": {f"model.{name}": value for name, value in RESNET.items()}},
        {"state_dict": {f"model._orig_mod.{name}": value for name, value in RESNET.items()}},
        {"epoch": 3, "model_state_dict": RESNET, "optimizer_state_dict": {}},
        {"net": {f"module.{name}": value for name, value in RESNET.items()}},
    ],
)
def test_the_usual_wrappings_are_taken_off(tmp_path: Path, wrapped: dict[str, object]) -> None:
    backbone = create_backbone("resnet18", weights=saved(tmp_path / "w.pth", wrapped))
    plain = create_backbone("resnet18", weights=saved(tmp_path / "plain.pth", RESNET))
    assert backbone.digest() == plain.digest()


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "mobilenet_v2", "timm:test_resnet"])
def test_a_checkpoint_with_other_classes_is_taken(tmp_path: Path, name: str) -> None:
    if name.startswith("timm:"):
        import timm

        network = timm.create_model(name.removeprefix("timm:"), num_classes=37)
    else:
        network = torchvision.models.get_model(name, num_classes=37)
    weights = saved(tmp_path / "w.pth", network.state_dict())
    encoder = Encoder(name, weights=weights, whitening=None, **SMALL)
    assert len(encoder.class_names) == 37
    assert max(encoder.encode([CHELSEA])[0].class_ids) < 37
    assert Encoder.from_state(encoder.state()).fingerprint == encoder.fingerprint


def test_what_does_not_fit_is_named_with_its_first_names(tmp_path: Path) -> None:
    state = {**RESNET, "loss.weight": torch.zeros(3)}
    del state["conv1.weight"]
    with pytest.raises(WeightsError) as caught:
        create_backbone("resnet18", weights=saved(tmp_path / "w.pth", state))
    assert "1 of its names the network lacks (the first: loss.weight)" in str(caught.value)
    assert "1 names of the network it lacks (the first: conv1.weight)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timms_own_name_of_weights_is_timms_network() -> None:
    encoder = Encoder("resnet18.a1_in1k", weights="random", whitening=None, **SMALL)
    assert encoder.settings.backbone == "timm:resnet18.a1_in1k"
    with pytest.raises(SettingsError, match=r"resnet18 has the weights .*resnet18\.a1_in1k"):
        create_backbone("resnet18.nobody", weights="random")
