"""VGG-16 twice: torchvision's with gradient class maps, and the paper's with a CAM head."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg16

from cwf_milvus.backbones.vgg import CONVOLUTIONS, Vgg16, Vgg16Cam, build_vgg16, build_vgg16_cam
from cwf_milvus.backbones.weights import find_weights
from cwf_milvus.errors import ImageError, SettingsError, WeightsError

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def photos(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).to(torch.uint8)


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def network() -> Vgg16:
    return build_vgg16(weights="random")


@pytest.fixture(scope="module")
def original(network: Vgg16) -> nn.Module:
    """torchvision's own network, with the same weights."""
    with torch.device("meta"):
        original = vgg16(init_weights=False)
    state = {k: v for k, v in network.state_dict().items() if k not in ("mean", "std")}
    original.load_state_dict(state, assign=True)
    return original.eval()


@pytest.fixture(scope="module")
def paper_network() -> Vgg16Cam:
    return build_vgg16_cam(weights="random", groups=2)


@pytest.fixture(scope="module")
def convolutions(network: Vgg16, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of the convolutions alone under torchvision's names."""
    path = tmp_path_factory.mktemp("vgg") / "convolutions.safetensors"
    save_file({k: v for k, v in network.state_dict().items() if k.startswith("features.")}, path)
    yield path
    path.unlink()


def test_vgg16_gives_the_logits_and_the_feature_maps_of_torchvision(
    network: Vgg16, original: nn.Module
) -> None:
    images = photos(2, 75, 101)
    normalised = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    maps = network(images)
    with torch.no_grad():
        assert relative(maps.logits, original(normalised)) < 1e-4
        assert relative(maps.features, original.features[:26](normalised)) < 1e-4
        assert relative(maps.class_source, original.features[:30](normalised)) < 1e-4
    assert maps.features.shape == (2, network.n_features, 75 // network.stride, 6)
    assert len(network.class_names) == 1000
    assert network.class_names[285] == "Egyptian cat"


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (32, 32),  # one cell after pool5
        (64, 95),  # fewer than 7 cells: average pooling repeats them
        (224, 224),  # exactly 7 x 7
        (250, 331),  # 7 x 10: pooling regions overlap; odd rows, which pool5 drops
        (368, 300),  # 11 x 9
    ],
)
def test_class_weights_of_vgg16_equal_autograd_through_pool5_and_the_classifier(
    network: Vgg16, original: nn.Module, height: int, width: int
) -> None:
    maps = network(photos(2, height, width))
    ids = torch.tensor([[3, 999, 0], [17, 3, 512]])
    weights = maps.class_weights(ids)

    source = maps.class_source.detach().requires_grad_()
    logits = original.classifier(original.avgpool(original.features[30](source)).flatten(1))
    wanted = torch.stack(
        [
            torch.autograd.grad(logits[b, ids[b, n]], source, retain_graph=True)[0][b].mean((1, 2))
            for b in range(2)
            for n in range(3)
        ]
    ).view(2, 3, 512)
    assert wanted.abs().max() > 0
    assert relative(weights, wanted) < 1e-4


def test_dropout_sleeps_and_nothing_asks_for_gradients(network: Vgg16) -> None:
    images = photos(1, 64, 64)
    first, second = network(images), network(images)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert not network.training


@pytest.mark.parametrize(("layer", "depth"), [("conv5_1", 26), ("conv5_2", 28), ("conv5_3", 30)])
def test_features_are_taken_behind_the_relu_of_the_chosen_layer(
    layer: str, depth: int, network: Vgg16, convolutions: Path
) -> None:
    images = photos(1, 48, 80)
    chosen = build_vgg16_cam(layer, convolutions)
    normalised = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    features = chosen.features_only(images)
    assert relative(features, network.features[:depth](normalised)) < 1e-4
    assert features.min() >= 0


def test_another_layer_is_refused() -> None:
    for build in (build_vgg16, build_vgg16_cam):
        with pytest.raises(SettingsError, match=r"'fc6'.*conv5_1"):
            build("fc6", "random")


@pytest.mark.parametrize("build", [build_vgg16, build_vgg16_cam])
def test_convolutions_alone_give_features_and_ask_for_a_head_where_classes_are_needed(
    build: type[Vgg16] | type[Vgg16Cam], convolutions: Path, network: Vgg16
) -> None:
    headless = build(weights=convolutions)
    images = photos(1, 64, 64)
    assert relative(headless.features_only(images), network(images).features) < 1e-4
    for ask in (headless, headless.predict):
        with pytest.raises(WeightsError, match=r"head.*missing.*cams_from=BACKBONE"):
            ask(images)


def test_a_whole_torchvision_checkpoint_gives_vgg16_cam_its_convolutions(
    network: Vgg16, tmp_path: Path
) -> None:
    state = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg16.pth")
    headless = build_vgg16_cam(weights=tmp_path / "vgg16.pth")
    images = photos(1, 32, 32)
    assert relative(headless.features_only(images), network(images).features) < 1e-4
    (tmp_path / "vgg16.pth").unlink()


def test_caffes_names_are_read_as_bgr_minus_the_mean(network: Vgg16, tmp_path: Path) -> None:
    state = network.state_dict()
    named = {
        f"{name}.{part}": state[f"features.{index}.{part}"]
        for name, index in CONVOLUTIONS.items()
        for part in ("weight", "bias")
    }
    save_file(named, tmp_path / "caffe.safetensors")
    headless = build_vgg16_cam(weights=tmp_path / "caffe.safetensors")
    images = photos(1, 64, 48)
    blue_first = images.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    assert relative(headless.features_only(images), network.features[:26](blue_first)) < 1e-4
    (tmp_path / "caffe.safetensors").unlink()


def test_the_input_that_weights_want_is_part_of_the_digest(
    convolutions: Path, tmp_path: Path
) -> None:
    plain = build_vgg16_cam(weights=convolutions)
    state = {**plain.state_dict(), "mean": torch.tensor([1.0, 2.0, 3.0])}
    save_file(state, tmp_path / "other.safetensors")
    assert build_vgg16_cam(weights=tmp_path / "other.safetensors").digest() != plain.digest()
    assert build_vgg16_cam(weights=convolutions, layer="conv5_3").digest() == plain.digest()
    state["std"] = torch.zeros(3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="must be positive"):
        build_vgg16_cam(weights=tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").unlink()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (45, 67), (112, 240)])
def test_vgg16_cam_is_conv5_3_cam_conv_mean_and_dense(
    paper_network: Vgg16Cam, height: int, width: int
) -> None:
    images = photos(2, height, width)
    state = paper_network.state_dict()
    x = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    for name, index in CONVOLUTIONS.items():
        if name.endswith("_1") and name != "conv1_1":
            x = F.max_pool2d(x, 2)
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
    source = F.relu(
        F.conv2d(x, state["CAM_conv.weight"], state["CAM_conv.bias"], padding=1, groups=2)
    )
    logits = source.mean((2, 3)) @ state["CAM_fc.weight"].T + state["CAM_fc.bias"]

    maps = paper_network(images)
    assert relative(maps.class_source, source) < 1e-4
    assert relative(maps.logits, logits) < 1e-4
    assert torch.equal(paper_network.predict(images), maps.logits)


def test_the_class_weights_of_vgg16_cam_are_those_of_the_dense_layer(
    paper_network: Vgg16Cam,
) -> None:
    maps = paper_network(photos(2, 64, 96))
    ids = torch.tensor([[5, 900], [0, 999]])
    weights = maps.class_weights(ids)
    assert weights.shape == (2, 2, 1024)
    scores = (weights * maps.class_source.mean((2, 3))[:, None]).sum(-1)
    scores = scores + paper_network.state_dict()["CAM_fc.bias"][ids]
    assert relative(scores, maps.logits.gather(1, ids)) < 1e-4


def test_the_groups_are_read_from_the_weights(paper_network: Vgg16Cam, tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    save_file(paper_network.state_dict(), path)
    loaded = build_vgg16_cam(weights=path)
    images = photos(1, 32, 48)
    assert torch.equal(loaded.predict(images), paper_network.predict(images))
    assert loaded.digest() == paper_network.digest()
    with pytest.raises(WeightsError, match="has 2 groups, not 1"):
        build_vgg16_cam(weights=path, groups=1)
    with pytest.raises(SettingsError, match="groups 3"):
        build_vgg16_cam(weights=path, groups=3)
    path.unlink()


def test_a_head_of_another_shape_is_refused_by_name(
    paper_network: Vgg16Cam, tmp_path: Path
) -> None:
    state = paper_network.state_dict()
    path = tmp_path / "damaged.safetensors"
    for name, value in (
        ("CAM_conv.weight", torch.zeros(1024, 300, 3, 3)),
        ("CAM_conv.weight", torch.zeros(7)),
        ("CAM_fc.weight", torch.zeros(10, 1024)),
        ("features.24.weight", torch.zeros(512, 512, 1, 1)),
    ):
        save_file({**state, name: value}, path)
        with pytest.raises(WeightsError, match=name):
            build_vgg16_cam(weights=path)
    save_file({k: v for k, v in state.items() if k != "CAM_conv.weight"}, path)
    with pytest.raises(WeightsError, match=r"CAM_conv.weight is missing"):
        build_vgg16_cam(weights=path)
    path.unlink()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    for build in (build_vgg16, build_vgg16_cam):
        with pytest.raises(WeightsError, match="not those of 'vgg16"):
            build(weights=tmp_path / "resnet.safetensors")


def test_images_without_a_single_cell_are_refused_with_the_least_size(
    network: Vgg16, paper_network: Vgg16Cam
) -> None:
    with pytest.raises(ImageError, match=r"40x31 pixels.*at least 32"):
        network(photos(1, 31, 40))
    with pytest.raises(ImageError, match=r"15x16 pixels.*at least 16"):
        paper_network(photos(1, 16, 15))


def test_without_weights_the_error_names_the_file_and_the_ways_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth.*\(1\).*\(2\).*\(3\)"):
        build_vgg16()
    with pytest.raises(WeightsError, match=r"vgg16_cam\.safetensors.*convert-weights"):
        build_vgg16_cam()


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = build_vgg16_cam(weights="random")
    assert torch.equal(torch.rand(3), wanted)
    assert first.digest() == build_vgg16_cam(weights="random").digest()


def test_real_weights_see_an_espresso_in_coffee() -> None:
    data = pytest.importorskip("skimage.data")
    try:
        find_weights("vgg16")
    except WeightsError:
        pytest.skip("torchvision's VGG-16 is not in the hub's cache")
    coffee = torch.from_numpy(np.ascontiguousarray(data.coffee().transpose(2, 0, 1)))[None]
    network = build_vgg16()
    logits = network.predict(F.interpolate(coffee.float(), (224, 320), mode="bilinear"))
    assert network.class_names[int(logits.argmax())] == "espresso"
