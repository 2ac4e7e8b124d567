"""A classifier cut at its pooling gives X, G, w and logits that are the whole network's own."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from cwf_milvus.backbones import create_backbone, layers
from cwf_milvus.backbones.layers import fold_norms
from cwf_milvus.backbones.pooled import PooledClassifier, Split
from cwf_milvus.backbones.weights import RANDOM, seeded
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.method.cam import class_activation_maps

# Networks, and the module whose output's mean over the cells their head sees.
SOURCES = {
    "resnet50": "layer4",
    "mobilenet_v3_small": "features",
    "torchvision:convnext_tiny": "features",
    "torchvision:swin_t": "norm",
    "timm:convnext_atto": "stages",
    "timm:mobilenetv3_small_100": "blocks",
    "timm:swin_tiny_patch4_window7_224": "norm",
    "timm:vit_medium_patch16_gap_240": "norm",
}
LINEAR = ["resnet50", "densenet161", "shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet"]


@lru_cache(maxsize=1)
def backbone_of(name: str) -> PooledClassifier:
    backbone = create_backbone(name, weights=RANDOM, device="cpu")
    assert isinstance(backbone, PooledClassifier)
    return backbone


def original_of(name: str) -> nn.Module:
    """The library's own network, with the same random weights."""
    library, _, network = name.rpartition(":")
    options = {}
    if "vit" in name:
        options = {"dynamic_img_size": True}
    elif "timm:swin" in name:
        options = {"strict_img_size": False}
    elif network in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "transform_input": True}
    with seeded():
        if library == "timm":
            model = timm.create_model(network, **options)
        else:
            model = torchvision.models.get_model(network, weights=None, **options)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """ResNet-18 whose norms do something, and its checkpoint."""
    network = original_of("resnet18")
    with seeded():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(std=0.1)
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network, path


def noise(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator)
    return images.to(torch.uint8)


def normalised(backbone: PooledClassifier, images: Tensor) -> Tensor:
    return (images - backbone.mean) / backbone.std


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert wanted.abs().max() > 0
    return float((got - wanted).abs().max() / wanted.abs().max())


# --- class weights --------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(96, 160), (224, 128)])
@pytest.mark.parametrize("name", SOURCES)
def test_class_weights_equal_autograd_through_the_whole_network(name, height, width):
    backbone, original = backbone_of(name), original_of(name)
    images, ids = noise(2, height, width), torch.tensor([[3, 999, 17], [400, 3, 5]])
    leaves: list[Tensor] = []

    def start_here(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[0] * 1  # so that the next layer may work in place

    original.get_submodule(SOURCES[name]).register_forward_hook(start_here)
    logits = original(normalised(backbone, images))
    maps = backbone(images)
    source = leaves[0].detach()
    cells = maps.class_source.shape[2:]

    def as_maps(values: Tensor) -> Tensor:
        """(B, M, H', W') of what a transformer has as (B, H'W', M) or (B, H', W', M)."""
        if values.ndim == 3:
            return values.transpose(1, 2).unflatten(2, cells)
        return (
            values if values.shape[1] == maps.class_source.shape[1] else values.permute(0, 3, 1, 2)
        )

    assert relative(maps.logits, logits.detach()) < 1e-4
    assert relative(maps.class_source, as_maps(source)) < 1e-4
    assert torch.equal(maps.features, maps.class_source.clamp(min=0))
    wanted = torch.empty(2, 3, maps.class_source.shape[1])
    for b, n in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        (slope,) = torch.autograd.grad(logits[b, ids[b, n]], leaves[0], retain_graph=True)
        wanted[b, n] = as_maps(slope)[b].mean((1, 2))
    weights = maps.class_weights(ids)
    if backbone.linear:  # w itself, of which each cell has its share
        weights = weights / (cells[0] * cells[1])
    assert relative(weights, wanted) < 1e-4


@pytest.mark.parametrize("name", LINEAR)
def test_logits_are_the_mean_class_maps_and_the_bias(name):
    backbone, original = backbone_of(name), original_of(name)
    images = noise(2, 96, 160)
    maps = backbone(images)
    assert backbone.linear
    assert relative(maps.logits, original(normalised(backbone, images))) < 1e-4
    every = torch.arange(1000).expand(2, 1000)
    class_maps = torch.einsum("bnm,bmhw->bnhw", maps.class_weights(every), maps.class_source)
    bias = [part for part in original.modules() if isinstance(part, nn.Linear)][-1].bias
    assert relative(class_maps.mean((2, 3)) + bias, maps.logits) < 1e-5
    assert maps.features.shape == (2, backbone.n_features, 3, 5)
    assert maps.features.min() >= 0


@pytest.mark.parametrize("real", [True, False], ids=["real weights", "random weights"])
def test_gradients_give_the_maps_of_the_linear_head(real):
    linear = create_backbone(weights=None if real else RANDOM, device="cpu")
    gradient = PooledClassifier(
        linear.name,
        linear.network,
        linear._split,
        mean=[127.0] * 3,
        std=[128.0] * 3,
        native_size=224,
        class_names=linear.class_names,
        gradient=True,
    )
    assert linear.linear
    assert not gradient.linear
    photo = torch.tensor(data.chelsea()).permute(2, 0, 1)[None].float()
    images = F.interpolate(photo, (160, 224), mode="bilinear", antialias=True)
    wanted, got = linear(images), gradient(images)
    top = wanted.logits.topk(16).indices
    weights = wanted.class_weights(top)
    cells = wanted.class_source.shape[2] * wanted.class_source.shape[3]
    assert relative(got.class_weights(top) * cells, weights) < 1e-4
    class_maps = class_activation_maps(wanted.class_source, weights)
    assert class_maps.amax((2, 3)).max() == 1
    by_gradient = class_activation_maps(got.class_source, got.class_weights(top))
    assert (by_gradient - class_maps).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["timm:convnext_atto", "mobilenet_v3_small"])
def test_class_weights_can_be_had_in_inference_mode(name):
    backbone, images, ids = backbone_of(name), noise(1, 64, 96), torch.tensor([[1, 2]])
    wanted = backbone(images).class_weights(ids)
    with torch.inference_mode():
        got = backbone(images).class_weights(ids.clone())
    assert relative(got, wanted) < 1e-5
    assert not got.requires_grad


def test_signed_features_are_clamped_and_the_class_source_is_not():
    maps = backbone_of("timm:convnext_atto")(noise(1, 96, 128))
    assert maps.class_source.min() < 0
    assert maps.features.min() == 0
    assert maps.features.max() > 0


# --- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "channels", "stride"),
    [
        ("layer3", 256, 16),
        ("maxpool", 64, 4),
        ("layer4.1.bn2", 512, 32),  # into which the block's sum is written in place
        ("layer4.1.conv2", 512, 32),  # into which a norm could have been folded
    ],
)
def test_an_earlier_layer_gives_what_it_gives_in_the_whole_network(resnet, layer, channels, stride):
    original, path = resnet
    backbone = create_backbone("resnet18", weights=path, layer=layer, device="cpu")
    assert (backbone.n_features, backbone.stride) == (channels, stride)
    images = noise(2, 96, 160)
    seen: list[Tensor] = []
    module = original.get_submodule(layer)
    handle = module.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    logits = original(normalised(backbone, images))
    handle.remove()
    maps = backbone(images)
    assert maps.features.shape == (2, channels, 96 // stride, 160 // stride)
    assert relative(maps.features, seen[0].clamp(min=0)) < 1e-4
    assert relative(maps.logits, logits) < 1e-4
    assert maps.class_source.shape == (2, 512, 3, 5)


def test_no_hook_is_added_and_no_map_is_kept_by_running(resnet):
    backbone = create_backbone("resnet18", weights=resnet[1], layer="layer3", device="cpu")

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in backbone.modules())

    before = hooks()
    for _ in range(3):
        backbone(noise(1, 64, 64))
    assert hooks() == before == 2  # X and G

    assert layers._running.kept is None


@pytest.mark.parametrize(
    ("name", "layer", "channels", "stride"),
    [("timm:swin_tiny_patch4_window7_224", "layers.2", 384, 16), ("swin_t", "features.3", 192, 8)],
)
def test_a_layer_with_its_channels_last_is_turned(name, layer, channels, stride):
    backbone = create_backbone(name, weights=RANDOM, layer=layer, device="cpu")
    assert (backbone.n_features, backbone.stride) == (channels, stride)
    features = backbone.features_only(noise(1, 96, 160))
    assert features.shape == (1, channels, 96 // stride, 160 // stride)


@pytest.mark.parametrize("layer", ["fc", "avgpool"])
def test_a_layer_without_maps_is_refused(resnet, layer):
    with pytest.raises(SettingsError, match=rf"layer '{layer}' of 'resnet18'.*\(B, K, H, W\)"):
        create_backbone("resnet18", weights=resnet[1], layer=layer, device="cpu")


def test_a_layer_of_tokens_is_refused():
    name = "timm:vit_medium_patch16_gap_240"
    with pytest.raises(SettingsError, match=r"layer 'blocks\.3'.*\(B, K, H, W\)"):
        create_backbone(name, weights=RANDOM, layer="blocks.3", device="cpu")


def test_a_layer_that_there_is_not_is_refused_naming_some_that_there_are(resnet):
    for layer in ("layer9", ""):
        with pytest.raises(SettingsError, match=rf"layer '{layer}' of 'resnet18'.*avgpool, fc"):
            create_backbone("resnet18", weights=resnet[1], layer=layer, device="cpu")


@pytest.mark.parametrize(
    ("name", "channels", "stride", "side"),
    [("inception_v3", 2048, 32, 299), ("timm:convmixer_1024_20_ks9_p14", 1024, 14, 224)],
)
def test_the_stride_is_the_true_one_where_the_grid_is_cut_short(name, channels, stride, side):
    backbone = create_backbone(name, weights=RANDOM, device="cpu")
    assert (backbone.n_features, backbone.stride) == (channels, stride)
    assert backbone.native_size == side


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("vit_b_32", "alexnet", "squeezenet1_1"),
        *("timm:vit_tiny_patch16_224", "timm:mixer_s32_224", "timm:resmlp_12_224"),
    ],
)
def test_a_network_that_does_not_average_its_maps_is_refused(name):
    with pytest.raises(SettingsError, match=f"classes of '{name}'.*average.*another network"):
        create_backbone(name, weights=RANDOM, device="cpu")


def test_a_network_without_classes_is_refused():
    with pytest.raises(SettingsError, match="without classes"):
        create_backbone("timm:convnext_tiny.dinov3_lvd1689m", weights=RANDOM, device="cpu")


class Small(nn.Module):
    """Convolution, norm, ReLU, mean, linear; it takes images of one size alone if told so."""

    def __init__(self, side: int | None = None, raw: float = 0) -> None:
        super().__init__()
        self.side = side
        self.raw = raw  # the share of the convolution's own output in the maps
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.fill_(0.5)
        self.norm.running_var.fill_(3)
        self.fc = nn.Linear(8, 5)

    def maps(self, images: Tensor) -> Tensor:
        if self.side and images.shape[2:] != (self.side, self.side):
            raise ValueError("wrong size")
        convolved = self.conv(images)
        return self.norm(convolved).relu() + self.raw * convolved

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.maps(images).mean((2, 3)))


def small(network: Small) -> PooledClassifier:
    return PooledClassifier(
        "small",
        network,
        Split(lambda net, images: net.maps(images), lambda net, pooled: net.fc(pooled), "fc"),
        mean=[100.0] * 3,
        std=[50.0] * 3,
        native_size=32,
        class_names=tuple("abcde"),
    )


def test_a_network_of_one_size_alone_says_so():
    backbone = small(Small(side=32))
    assert backbone.stride == 2
    assert backbone(noise(1, 32, 32)).features.shape == (1, 8, 16, 16)
    with pytest.raises(ImageError, match=r"'small' takes images of 32x32 pixels alone, not 64x32"):
        backbone(noise(1, 32, 64))


# --- folded norms ---------------------------------------------------------------------------


def test_norms_are_folded_where_that_changes_nothing():
    for raw, norms in ((0.0, 0), (0.5, 1)):
        network = Small(raw=raw)
        images = noise(2, 48, 64)
        with torch.no_grad():
            maps = network.eval().maps((images - 100.0) / 50)
        backbone = small(network)
        assert sum(isinstance(part, nn.BatchNorm2d) for part in backbone.modules()) == norms
        assert relative(backbone(images).class_source, maps) < 1e-5


def test_folding_leaves_the_network_that_it_is_given_as_it_was(resnet):
    network = copy.deepcopy(resnet[0])
    images = torch.randn(1, 3, 64, 64)
    folded = fold_norms(network, images)
    assert all(
        torch.equal(value, network.state_dict()[name])
        for name, value in resnet[0].state_dict().items()
    )
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert relative(folded(images), network(images)) < 1e-4


# --- threads and copies ---------------------------------------------------------------------


def test_passes_in_several_threads_give_each_its_own_maps(resnet):
    backbone = create_backbone("resnet18", weights=resnet[1], layer="layer2", device="cpu")
    batches = [noise(1, 64, 32 * n) for n in (1, 2, 3, 4)] * 8
    wanted = [backbone(images) for images in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(backbone, batches))
    for got, alone in zip(found, wanted, strict=True):
        assert relative(got.features, alone.features) < 1e-5
        assert relative(got.class_source, alone.class_source) < 1e-5
        assert relative(got.logits, alone.logits) < 1e-5


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer3"), ("timm:convnext_atto", None), ("efficientnet_lite0", "blocks.2")],
)
def test_a_copy_runs_its_own_weights(name, layer):
    backbone = create_backbone(name, weights=RANDOM, layer=layer, device="cpu")
    images, ids = noise(1, 64, 96), torch.tensor([[3, 5]])
    before = backbone(images)
    weights = before.class_weights(ids)
    twin = copy.deepcopy(backbone)
    for parameter in backbone.parameters():
        parameter.zero_()
    after = twin(images)
    assert torch.equal(after.features, before.features)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.class_weights(ids), weights)
    assert backbone(images).logits.abs().max() == 0


def test_another_memory_format_or_number_type_changes_neither_digest_nor_answer(resnet):
    backbone = create_backbone("resnet18", weights=resnet[1], layer="layer3", device="cpu")
    images = noise(1, 64, 96)
    wanted, digest = backbone(images), backbone.digest()
    backbone.to(memory_format=torch.contiguous_format)
    assert relative(backbone(images).features, wanted.features) < 1e-4
    backbone.double()
    assert relative(backbone(images).features.float(), wanted.features) < 1e-4
    assert backbone.digest() == digest
