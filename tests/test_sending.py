"""What is sent to a device and fetched from it, and that nothing between the two waits for it.

A GPU is stood in for by PyTorch's meta device, whose tensors have no values: whatever would wait
for one (`.item()`, `.cpu()`, a mask as an index, `nonzero`) raises there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_encoders import CHELSEA, COFFEE, HUBBLE, alike, crops, small, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cwf_milvus.backbones.base import Backbone
from cwf_milvus.backbones.vgg import Vgg16, Vgg16Cam
from cwf_milvus.encode.describe import on_device
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.method.cam import class_activation_maps, top_classes
from cwf_milvus.method.sending import fetched, sent

META = torch.device("meta")
QUICK: dict[str, Any] = {"keypoints": 0, "image_size": 96, "class_image_size": 64}


class Copies(TorchDispatchMode):
    """Notes how tensors of the CPU come to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        here = [one for one in given if one.device.type == "cpu" and one.ndim]
        there = [one for one in [*given, *tree_flatten(made)[0]] if _is_there(one)]
        if here and there:
            if func is torch.ops.aten._to_copy.default and kwargs.get("non_blocking"):
                self.sent += 1
            else:
                self.waiting.append(str(func))
        return made


def _is_there(one: object) -> bool:
    return isinstance(one, torch.Tensor) and one.device == META


@pytest.fixture(scope="module")
def fitted() -> Encoder:
    return tiny(**QUICK, dim=12, descriptor="both").fit(crops(8))


def there(encoder: Encoder) -> Encoder:
    """Move an encoder's network and whitening to the meta device, as the first batch would."""
    encoder.backbone.to(META)
    if encoder.whitenings is not None:
        for whitening in (encoder.whitenings.classes, encoder.whitenings.regions):
            whitening._map_on(META)
    return encoder


ENCODERS: dict[str, Callable[[Encoder], Encoder]] = {
    "fitted": lambda fitted: Encoder.from_state(fitted.state(), runtime="torch"),
    "default network": lambda _: small(**QUICK, whitening=None, runtime="torch"),
    "resized there": lambda _: tiny(**QUICK, whitening=None, resize_on="device"),
    "classes of one's own": lambda _: tiny(**QUICK, whitening=None, classes=(5, 3, 8)),
    "crow": lambda _: tiny(**QUICK, whitening=None, feature_weighting="crow", descriptor="regions"),
    "gradients": lambda _: Encoder("timm:convnext_atto", weights="random", whitening=None, **QUICK),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_waits_for_the_device_from_the_photos_to_the_descriptors(
    fitted: Encoder, name: str
) -> None:
    encoder = there(ENCODERS[name](fitted))
    batch = [encoder.prepare(encoder.read(photo)) for photo in (CHELSEA, CHELSEA[:, ::-1].copy())]
    with Copies() as copies:
        made = on_device(encoder.local_vectors(batch), encoder.whitenings, encoder.settings)
    assert all(one.device == META for one in made)
    assert made[0].shape == (2, encoder.dim)
    assert copies.waiting == []
    # Views, a batch of each; or photos one by one; the regions' sides; a class list.
    assert 1 <= copies.sent <= 5


@pytest.mark.parametrize("network", [Vgg16, lambda layer: Vgg16Cam(layer, groups=2)])
def test_nor_do_the_papers_networks(network: Callable[[str], Backbone]) -> None:
    with META:
        vgg = network("conv5_1")
        images = torch.empty(2, 3, 64, 96, dtype=torch.uint8)
    with Copies() as copies, torch.no_grad():
        maps = vgg(images)
        ids, _ = top_classes(maps.logits, 5)
        class_activation_maps(maps.class_source, maps.class_weights(ids), (4, 6))
    assert (copies.waiting, copies.sent) == ([], 0)


def test_nor_does_a_query_with_a_box(fitted: Encoder) -> None:
    encoder = there(ENCODERS["fitted"](fitted))
    queries = [encoder.prepare_query(CHELSEA, (10, 20, 200, 150)), encoder.prepare_query(CHELSEA)]
    with Copies() as copies:
        on_device(encoder.local_vectors(queries), encoder.whitenings, encoder.settings)
    assert copies.waiting == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x[0].tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: bool((x > 0).any()),
    ],
)
def test_the_stand_in_raises_where_a_gpu_would_be_waited_for(wait: Callable[..., Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        wait(torch.ones(3, 3, device=META))


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.to(META),
        lambda x: torch.ones(5, 4, device=META)[x.long()],
    ],
)
def test_and_a_copy_that_waits_is_noted(copy: Callable[..., Any]) -> None:
    with Copies() as copies:
        copy(torch.ones(3))
    assert copies.waiting


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(6)
    assert sent(tensor, torch.device("cpu")) is tensor
    (back,) = fetched([tensor])()
    assert back is tensor
    assert fetched([])() == []


def test_a_class_list_may_be_any_sequence() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0]])
    for classes in ([3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1])):
        ids, scores = top_classes(logits, 2, classes)
        assert ids.tolist() == [[1, 3]]
        assert torch.equal(scores, logits.softmax(1)[:, [1, 3]])


class OnGpu(Encoder):
    """An encoder that believes to be on a GPU where the order of its steps is concerned."""

    steps: list[str]

    def _begun(self, batch: Any) -> Callable[[], Any]:
        self.steps.append("begun")
        arrived = super()._begun(batch)

        def told() -> Any:
            self.steps.append("arrived")
            return arrived()

        return told

    @property
    def device(self) -> Any:
        return torch.device("cuda") if self.ahead else super().device

    ahead = False


def test_a_gpu_is_given_the_next_batch_before_its_last_is_waited_for(
    fitted: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwf_milvus.encode.network.sent", lambda tensor, device: tensor)
    encoder = OnGpu.from_state(fitted.state(), runtime="torch")
    assert isinstance(encoder, OnGpu)
    photos = [CHELSEA, COFFEE, HUBBLE, CHELSEA[::-1].copy()]
    prepared = [encoder.prepare(encoder.read(photo)) for photo in photos]
    encoder.steps = []
    one_by_one = [encoder.encode_prepared([photo])[0] for photo in prepared]
    assert encoder.steps == ["begun", "arrived"] * 4
    encoder.steps, encoder.ahead = [], True

    def lists() -> Iterator[Any]:
        for photo in prepared:
            encoder.steps.append("taken")
            yield [photo]

    made = [encoding for (encoding,) in encoder.encode_batches(lists())]
    turn = ["taken", "begun", "arrived"]
    assert encoder.steps == ["taken", "begun", *turn, *turn, *turn, "arrived"]
    assert all(alike(a, b) for a, b in zip(made, one_by_one, strict=True))
    assert [e.uri for e in made] == [photo.uri for photo in prepared]
    encoder.batch_size = 1
    assert all(alike(a, b) for a, b in zip(encoder.encode(photos), one_by_one, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gets_and_gives_back_the_same_numbers() -> None:
    gpu = torch.device("cuda:0")
    numbers = torch.arange(10_000_000)
    there = [sent(numbers + i, gpu) for i in range(3)]
    assert all(one.device == gpu for one in there)
    arrived = fetched([one * 2 for one in there])()
    assert all(torch.equal(one, 2 * (numbers + i)) for i, one in enumerate(arrived))
