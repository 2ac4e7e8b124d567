import pytest
import torch

from cwf_milvus.backbones import create_backbone, list_backbones
from cwf_milvus.backbones.decomposeme import DecomposedConvolution, DecomposeMe, build_decomposeme
from cwf_milvus.errors import WeightsError
from cwf_milvus.method import pooling


def test_a_decomposed_convolution_is_a_rank_one_convolution_where_nothing_is_clamped():
    torch.manual_seed(0)
    pair = DecomposedConvolution(1, 1, 3).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.abs_()
        images = torch.rand(1, 1, 9, 11, dtype=torch.float64)
        column, row = pair[0].weight[0, 0, :, 0], pair[2].weight[0, 0, 0]
        full = torch.nn.functional.conv2d(images, torch.outer(column, row)[None, None], padding=1)
        # the first bias passes through the row, but for what the border's zeros cut off
        bias = pair[0].bias * row.sum() + pair[2].bias
        assert torch.allclose(pair(images)[..., 1:-1], (full + bias)[..., 1:-1])


def test_its_class_maps_are_those_of_a_linear_head_at_stride_32(tmp_path):
    backbone = build_decomposeme(weights="random")
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        maps = backbone(images)
    assert backbone.stride == 32
    assert backbone.linear
    assert maps.features.shape == (2, 512, 3, 4)
    assert pooling.raw_sum(maps.features).any()
    ids = maps.logits.topk(3).indices
    weights = maps.class_weights(ids)
    means = maps.class_source.mean((2, 3))
    bias = backbone.network.classifier.bias[ids]
    assert torch.allclose(
        (weights @ means[..., None])[..., 0] + bias, maps.logits.gather(1, ids), atol=1e-4
    )


def test_it_loads_a_checkpoint_of_its_own_and_refuses_to_run_without_one(tmp_path):
    network = DecomposeMe()
    file = tmp_path / "own.pt"
    torch.save(network.state_dict(), file)
    loaded = build_decomposeme(weights=file)
    own = network.features[0][0].weight
    assert torch.equal(loaded.network.features[0][0].weight, own)
    with pytest.raises(WeightsError):
        build_decomposeme(weights=tmp_path / "none.pt")


def test_it_is_a_backbone_by_name():
    assert create_backbone("decomposeme", weights="random").name == "decomposeme"
    (info,) = [info for info in list_backbones() if info.name == "decomposeme"]
    assert "random weights only" in info.measured
