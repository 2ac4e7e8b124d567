"""Names become networks with their own weights, or an error says what to do."""

import hashlib
import re
import socket
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

from cwf_milvus.backbones import Backbone, create_backbone, list_backbones
from cwf_milvus.backbones.vgg import CONVOLUTIONS
from cwf_milvus.backbones.weights import RANDOM, find_weights, seeded
from cwf_milvus.errors import SettingsError, WeightsError
from cwf_milvus.method.cam import class_activation_maps

LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
NAMED = [info for info in list_backbones() if "NAME" not in info.name]
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache, and an empty Hugging Face cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@cache
def photos_as_they_are() -> list[Tensor]:
    """A cat, an espresso and a palace, each uint8, of shape (1, 3, h, w)."""
    arrays = (data.chelsea(), data.coffee(), load_sample_image("china.jpg"))
    return [torch.tensor(array).permute(2, 0, 1)[None] for array in arrays]


def resized(photo: Tensor, height: int, width: int) -> Tensor:
    view = F.interpolate(photo.float(), (height, width), mode="bicubic", antialias=True)
    return view.round().clamp(0, 255).to(torch.uint8)


@cache
def photos(height: int, width: int) -> Tensor:
    """All three, of shape (3, 3, height, width)."""
    return torch.cat([resized(photo, height, width) for photo in photos_as_they_are()])


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert wanted.abs().max() > 0
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return create_backbone(device="cpu")


@cache
def torchvision_network(name: str, **options: object) -> nn.Module:
    """The library's own network, with random weights, and norms that do something."""
    with seeded():
        network = torchvision.models.get_model(name, weights=None, **options).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias, std=0.1)
    return network.requires_grad_(False)


def imagenet(images: Tensor) -> Tensor:
    return (images / 255 - IMAGENET_MEAN) / IMAGENET_STD


# --- the default networks -------------------------------------------------------------------


@pytest.mark.parametrize("name", LITES)
def test_logits_equal_those_of_the_original_implementation(name):
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    network = original.from_pretrained(
        name.replace("_", "-"), weights_path=str(find_weights(name))
    ).eval()
    backbone = create_backbone(name, device="cpu")
    images = photos(backbone.native_size, backbone.native_size)
    with torch.no_grad():
        wanted = network((images.float() - 127) / 128)
    maps = backbone(images)
    assert (maps.logits - wanted).abs().max() < 1e-4
    assert torch.equal(backbone.predict(images), maps.logits)


@pytest.mark.parametrize("name", LITES)
def test_the_classes_of_real_photos_are_the_known_ones(name):
    backbone = create_backbone(name, device="cpu")
    middles = []
    for photo in photos_as_they_are():  # the square in the middle, as ImageNet is tested
        height, width = photo.shape[2:]
        side = min(height, width) * 7 // 8
        top, left = (height - side) // 2, (width - side) // 2
        square = photo[:, :, top : top + side, left : left + side]
        middles.append(resized(square, backbone.native_size, backbone.native_size))
    best = backbone.predict(torch.cat(middles)).argmax(1).tolist()
    cat, coffee, china = (backbone.class_names[i] for i in best)
    assert cat in ("tabby", "tiger cat", "Egyptian cat")
    assert coffee == "espresso"
    assert china == "palace"


@pytest.mark.parametrize(("height", "width"), [(97, 161), (33, 31), (1, 1), (128, 320)])
def test_any_size_gives_one_cell_for_each_32_pixels_begun(lite0, height, width):
    maps = lite0(photos(height, width))
    grid = (-(-height // 32), -(-width // 32))
    assert maps.features.shape == maps.class_source.shape == (3, 1280, *grid)
    assert maps.logits.shape == (3, 1000)
    assert torch.isfinite(maps.logits).all()


def test_features_of_the_default_network_are_what_relu6_gives(lite0):
    maps = lite0(photos(96, 128))
    assert torch.equal(maps.features, maps.class_source)
    assert maps.features.min() == 0
    assert 3 < maps.features.max() <= 6


def test_uint8_and_float_images_are_the_same(lite0):
    images = photos(96, 128)
    assert torch.equal(lite0.predict(images), lite0.predict(images.float()))


def test_an_image_alone_gives_what_it_gives_in_a_batch(lite0):
    images = photos(160, 128)
    together = lite0(images)
    for i in range(len(images)):
        alone = lite0(images[i : i + 1])
        assert (alone.features[0] - together.features[i]).abs().max() < 1e-4
        assert (alone.logits[0] - together.logits[i]).abs().max() < 1e-4


# --- the list -------------------------------------------------------------------------------


@pytest.mark.parametrize("info", NAMED, ids=lambda info: info.name)
def test_the_list_says_what_each_network_is(info):
    own = "lite" in info.name
    backbone = create_backbone(info.name, weights=None if own else RANDOM, device="cpu")
    channels, *layer, stride = info.features.split(", ")
    assert channels == str(backbone.n_features)
    assert stride == f"stride {backbone.stride}"
    linear = getattr(backbone, "linear", info.name == "vgg16_cam")
    assert info.class_maps == ("linear" if linear else "gradient")
    images = photos(64, 96)[:1]
    maps = backbone(images)
    assert maps.features.shape[1] == backbone.n_features
    assert maps.features.min() >= 0
    assert torch.equal(backbone.features_only(images), maps.features)
    assert torch.equal(backbone.predict(images), maps.logits)
    assert len(backbone.class_names) == maps.logits.shape[1]
    weights = maps.class_weights(torch.tensor([[3, 999]]))
    assert weights.shape == (1, 2, maps.class_source.shape[1])
    assert weights.abs().max() > 0
    for value in (maps.features, maps.class_source, maps.logits, weights):
        assert not value.requires_grad
    assert not backbone.training
    if layer and not info.name.startswith("vgg"):  # whose layers have the paper's names
        assert layer[0] in dict(backbone.network.named_modules())


def test_a_listed_layer_is_the_one_that_features_come_from_by_default(lite0):
    listed = list_backbones()[0]
    assert listed.name == "efficientnet_lite0"
    again = create_backbone(layer=listed.features.split(", ")[1], device="cpu")
    assert relative(again(photos(64, 96)).features, lite0(photos(64, 96)).features) < 1e-5


def test_the_list_says_what_has_not_been_measured():
    for info in list_backbones():
        assert all((info.name, info.features, info.class_maps, info.weights, info.measured))
        real = info.name in LITES or "NAME" in info.name
        assert real or info.measured.startswith("random weights only")


# --- weights --------------------------------------------------------------------------------


def test_torchvisions_weights_come_from_the_hubs_cache(hub):
    with pytest.raises(WeightsError, match=r"Looked for: .*resnet18-f37072fd\.pth"):
        create_backbone("resnet18")
    original = torchvision_network("resnet18")
    torch.save(original.state_dict(), hub / "resnet18-f37072fd.pth")
    backbone = create_backbone("resnet18", device="cpu")
    images = photos(64, 96)
    assert relative(backbone.predict(images), original(imagenet(images))) < 1e-4


def test_timms_weights_come_from_the_hugging_face_cache(hub):
    with pytest.raises(WeightsError, match=r"convnext_atto.*\(1\).*\(2\) .*\(3\)"):
        create_backbone("timm:convnext_atto")
    original = timm.create_model("convnext_atto").eval()
    repo = Path(constants.HF_HUB_CACHE) / "models--timm--convnext_atto.d2_in1k"
    file = repo / "snapshots" / "abc" / "model.safetensors"
    for folder in (repo / "refs", file.parent):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    save_file(original.state_dict(), file)
    backbone = create_backbone("timm:convnext_atto", device="cpu")
    images = photos(64, 96)
    with torch.no_grad():
        assert relative(backbone.predict(images), original(imagenet(images))) < 1e-4


def test_a_file_under_timms_names_gives_the_lite_network_of_the_package(tmp_path, lite0):
    published = torch.load(find_weights("efficientnet_lite0"), weights_only=True)
    with seeded():
        model = timm.create_model("tf_efficientnet_lite0")
    # Both name their weights in the order of the network.
    values = (value.contiguous() for value in published.values())
    state = dict(zip(model.state_dict(), values, strict=True))
    save_file(state, tmp_path / "lite.safetensors")
    again = create_backbone(weights=str(tmp_path / "lite.safetensors"), device="cpu")
    assert again.digest() == lite0.digest()
    assert torch.equal(again.predict(photos(64, 64)), lite0.predict(photos(64, 64)))


def test_the_published_densenets_have_old_names_and_are_read(tmp_path):
    original = torchvision_network("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in original.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    backbone = create_backbone("densenet121", weights=tmp_path / "densenet.pth", device="cpu")
    images = photos(64, 96)
    assert relative(backbone.predict(images), original(imagenet(images))) < 1e-4


def test_googlenet_gets_the_input_that_its_published_weights_were_trained_on(tmp_path):
    original = torchvision_network("googlenet", init_weights=False, transform_input=True)
    torch.save(original.state_dict(), tmp_path / "googlenet.pth")
    backbone = create_backbone("googlenet", weights=tmp_path / "googlenet.pth", device="cpu")
    images = photos(96, 64)
    assert relative(backbone.predict(images), original(imagenet(images))) < 1e-4


def test_mnasnet_is_read_from_a_file_that_does_not_say_its_version(tmp_path):
    original = torchvision_network("mnasnet0_5")
    save_file(original.state_dict(), tmp_path / "mnasnet.safetensors")
    backbone = create_backbone("mnasnet0_5", weights=tmp_path / "mnasnet.safetensors", device="cpu")
    images = photos(96, 64)
    assert relative(backbone.predict(images), original(imagenet(images))) < 1e-4


def test_a_timm_network_is_read_from_its_authors_own_layout(tmp_path):
    model = timm.create_model("convnext_atto").eval()
    renamed = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    ]
    theirs = {}
    for name, value in model.state_dict().items():
        for ours, their in renamed:
            name = re.sub(ours, their, name)
        theirs[name] = value
    assert {"downsample_layers.1.1.weight", "stages.0.0.pwconv1.bias", "head.bias"} <= set(theirs)
    torch.save({"model": theirs}, tmp_path / "convnext.pth")
    backbone = create_backbone(
        "timm:convnext_atto", weights=tmp_path / "convnext.pth", device="cpu"
    )
    images = photos(64, 96)
    with torch.no_grad():
        assert relative(backbone.predict(images), model(imagenet(images))) < 1e-4
    assert "state_dict" not in backbone.network.pretrained_cfg


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(torchvision_network("resnet18").state_dict(), tmp_path / "resnet18.pth")
    for name in ("resnet34", "efficientnet_lite0", "timm:convnext_atto", "timm:dla46_c"):
        with pytest.raises(WeightsError, match=f"not those of '{name}'"):
            create_backbone(name, weights=tmp_path / "resnet18.pth")


def test_nan_in_a_file_is_refused_naming_the_weight(tmp_path):
    state = {k: v.clone() for k, v in torchvision_network("resnet18").state_dict().items()}
    state["layer2.0.conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match=r"'layer2\.0\.conv1\.weight'.*NaN"):
        create_backbone("resnet18", weights=tmp_path / "resnet18.pth")


def test_a_variance_below_zero_is_refused_as_damage(tmp_path):
    state = {k: v.clone() for k, v in torchvision_network("resnet18").state_dict().items()}
    state["layer2.0.bn1.running_var"][0] = -1
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="damaged"):
        create_backbone("resnet18", weights=tmp_path / "resnet18.pth", device="cpu")


def test_a_weight_that_turns_nan_is_named(tmp_path):
    backbone = create_backbone("resnet18", weights=RANDOM, device="cpu")
    backbone.check_finite()
    backbone.network.layer3[0].conv1.weight[0] = float("inf")
    with pytest.raises(WeightsError, match=r"'network\.layer3\.0\.conv1\.weight' of 'resnet18'"):
        backbone.check_finite()


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first = create_backbone("timm:convnext_atto", weights=RANDOM, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    again = create_backbone("timm:convnext_atto", weights=RANDOM, device="cpu")
    assert again.digest() == first.digest()


def test_the_digest_is_of_the_weights_as_they_were_loaded(tmp_path):
    original = torchvision_network("resnet18")
    state = original.state_dict()
    wanted = hashlib.sha256()
    for name in sorted(state):
        about = f"network.{name} {tuple(state[name].shape)} {state[name].dtype}"
        wanted.update(about.encode() + state[name].numpy().tobytes())
    torch.save(state, tmp_path / "resnet18.pth")

    def load(**options: str) -> Backbone:
        path = tmp_path / "resnet18.pth"
        return create_backbone("resnet18", weights=path, device="cpu", **options)

    assert load().digest() == wanted.hexdigest()
    assert load(layer="layer3").digest() == wanted.hexdigest()
    state["layer1.0.bn1.bias"] = state["layer1.0.bn1.bias"].clone()
    state["layer1.0.bn1.bias"][5] += 1e-6
    torch.save(state, tmp_path / "resnet18.pth")
    assert load().digest() != wanted.hexdigest()


# --- class maps from another network --------------------------------------------------------


def test_another_network_can_supply_the_class_maps(lite0):
    alone = create_backbone("resnet18", weights=RANDOM, layer="layer3", device="cpu")
    both = create_backbone(
        "resnet18", weights=RANDOM, layer="layer3", cams_from="efficientnet_lite0", device="cpu"
    )
    images = photos(96, 160)
    maps, classes = both(images), lite0(images)
    assert torch.equal(maps.logits, classes.logits)
    assert torch.equal(maps.class_source, classes.class_source)
    assert torch.equal(both.predict(images), maps.logits)
    assert torch.equal(maps.features, alone(images).features)
    assert torch.equal(both.features_only(images), maps.features)
    assert (both.n_features, both.stride, both.native_size) == (256, 16, 224)
    assert both.class_names == lite0.class_names
    top = maps.logits.topk(4).indices
    cams = class_activation_maps(maps.class_source, maps.class_weights(top), (6, 10))
    assert cams.shape == (3, 4, *maps.features.shape[2:])
    assert cams.amax((2, 3)).min() > 0.5
    assert both.digest() not in (lite0.digest(), alone.digest())


def test_convolutions_alone_take_their_class_maps_from_another_network(tmp_path, lite0):
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(init_weights=False).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        f"{layer}.{part}": 0.02 * torch.randn(shapes[f"{index}.{part}"].shape, generator=generator)
        for layer, index in CONVOLUTIONS.items()
        for part in ("weight", "bias")
    }
    path = tmp_path / "convolutions.safetensors"
    save_file(state, path)
    images = photos(96, 128)
    with pytest.raises(WeightsError, match=r"cams_from=BACKBONE"):
        create_backbone("vgg16_cam", weights=path, device="cpu")(images)
    both = create_backbone("vgg16_cam", weights=path, cams_from="efficientnet_lite0", device="cpu")
    maps = both(images)
    assert maps.features.shape == (3, 512, 6, 8)
    assert torch.equal(maps.logits, lite0(images).logits)


# --- names and devices ----------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_what_it_may_have_meant():
    with pytest.raises(SettingsError, match=r"no backbone 'resnet5O': did you mean resnet50, "):
        create_backbone("resnet5O")
    hostile = ("", "timm:", "keras:resnet50", "timm:../../x", "timm:hf-hub:evil/network")
    for name in (*hostile, "torchvision:convnext_atto"):
        with pytest.raises(SettingsError, match="no backbone"):
            create_backbone(name)


def test_an_unknown_origin_of_timms_weights_is_refused_naming_the_known_ones():
    with pytest.raises(SettingsError, match=r"'timm:resnet18\.x'.*resnet18\.a1_in1k"):
        create_backbone("timm:resnet18.x")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "", 3.7])
def test_a_device_that_cannot_be_had_is_named(device):
    with pytest.raises(SettingsError, match=f"device '{device}' cannot be had.*use cpu") as caught:
        create_backbone(device=device)
    assert len(str(caught.value)) < 400


def test_the_device_is_the_gpu_where_there_is_one():
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert create_backbone().device.type == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("name", "layer"),
    [("efficientnet_lite0", "blocks.4"), ("resnet18", "layer3"), ("timm:convnext_atto", None)],
)
def test_the_gpu_gives_what_the_cpu_gives(name, layer):
    weights = None if name in LITES else RANDOM
    images, ids = photos(96, 160), torch.tensor([[1, 2], [3, 4], [5, 6]])
    cpu, gpu = (
        create_backbone(name, weights=weights, layer=layer, device=device)
        for device in ("cpu", "cuda")
    )
    wanted, got = cpu(images), gpu(images.cuda())
    assert gpu.digest() == cpu.digest()
    assert relative(got.logits.cpu(), wanted.logits) < 1e-2
    assert relative(got.features.cpu(), wanted.features) < 1e-2
    weights = got.class_weights(ids.cuda())
    assert weights.device.type == "cuda"
    assert relative(weights.cpu(), wanted.class_weights(ids)) < 1e-2


def test_classes_have_imagenets_names_or_numbers(lite0):
    assert lite0.class_names[281] == "tabby"
    assert len(lite0.class_names) == 1000
    other = create_backbone("timm:mobilenetv3_small_100", weights=RANDOM, device="cpu")
    assert other.class_names == lite0.class_names
    more = create_backbone("timm:mobilenetv3_large_100.miil_in21k", weights=RANDOM, device="cpu")
    assert more.class_names[17] == "class 17"
    assert len(more.class_names) == more(photos(64, 64)).logits.shape[1] == 11221
