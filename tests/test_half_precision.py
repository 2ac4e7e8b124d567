"""Networks in half precision, and photos resized where the network runs: settings of their own."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import CHELSEA, COFFEE, crops, small, tiny

from cwf_milvus.backbones import create_backbone
from cwf_milvus.backbones.converted import Converted, computes_in
from cwf_milvus.backbones.half import HalfPrecision, check_dtype
from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.settings import EncoderSettings, fingerprinted
from cwf_milvus.errors import MismatchError, SettingsError

PHOTOS = [CHELSEA, COFFEE]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CWF_MILVUS_CACHE", str(folder))
        yield folder / "networks"


def cosines(one: Encoder, other: Encoder) -> list[float]:
    made = [encoder.encode(PHOTOS) for encoder in (one, other)]
    return [float(a.descriptor @ b.descriptor) for a, b in zip(*made, strict=True)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_descriptors_under_another_fingerprint(
    dtype: str,
) -> None:
    usual = small(whitening=None, runtime="torch")
    half = small(whitening=None, runtime="torch", network_dtype=dtype)
    assert isinstance(half.backbone, HalfPrecision)
    assert half.weights_digest == usual.weights_digest
    assert half.fingerprint != usual.fingerprint
    near = cosines(half, usual)
    assert min(near) > 0.98
    assert max(near) < 1 - 1e-6  # it does compute in another precision
    assert all(value.dtype == np.float32 for value in [e.descriptor for e in half.encode(PHOTOS)])


@pytest.mark.parametrize(
    "setting", [{"network_dtype": "bfloat16"}, {"resize_on": "device"}], ids=["dtype", "resize"]
)
def test_both_settings_are_kept_and_a_collection_refuses_another_encoder(
    setting: dict[str, str], tmp_path: Path
) -> None:
    encoder = tiny(dim=8, **setting).fit(crops(8))
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    assert again.settings == encoder.settings
    assert again.fingerprint == encoder.fingerprint
    assert cosines(again, encoder) == pytest.approx([1, 1])
    place = tmp_path / "photos.db"
    with InstanceCollection.create(place, "photos", encoder) as photos:
        photos.add([CHELSEA, COFFEE], progress=False)
    with InstanceCollection.open(place, "photos") as photos:
        assert photos.encoder.settings == encoder.settings
        assert photos.search(CHELSEA, limit=1, rerank="none")[0].score == pytest.approx(1, abs=1e-3)
    other = tiny(dim=8).fit(crops(8))
    with pytest.raises(MismatchError, match="fingerprint"):
        InstanceCollection.open(place, "photos", encoder=other)


def test_settings_as_they_were_have_the_fingerprint_that_they_had(tmp_path: Path) -> None:
    told = fingerprinted(EncoderSettings(keypoints=0))
    assert not {"keypoints", "network_dtype", "resize_on"} & told.keys()
    with tarfile.open(Path(__file__).parent / "data" / "collection-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (place,) = tmp_path.glob("**/*.db")
    with InstanceCollection.open(place, "photos") as photos:
        settings = (
            photos.encoder.settings
        )  # and its fingerprint is the stored one, or it is refused
        assert (settings.network_dtype, settings.resize_on) == ("float32", "host")


def test_photos_resized_there_are_nearly_those_resized_here() -> None:
    here, there = (
        small(whitening=None, runtime="torch"),
        small(whitening=None, runtime="torch", resize_on="device"),
    )
    assert there.fingerprint != here.fingerprint
    prepared = [encoder.prepare(encoder.read(COFFEE)) for encoder in (here, there)]
    assert prepared[0].grid == prepared[1].grid
    views = [
        encoder.views([one])[0].float()
        for encoder, one in zip((here, there), prepared, strict=True)
    ]
    apart = (views[0] - views[1]).abs()
    assert float(apart.max()) <= 4
    assert float((apart <= 1).float().mean()) > 0.99
    assert min(cosines(here, there)) > 0.999


def test_a_query_with_a_box_is_resized_there_too() -> None:
    here, there = (
        small(whitening=None, runtime="torch"),
        small(whitening=None, runtime="torch", resize_on="device"),
    )
    a, b = (encoder.encode_query(CHELSEA, (90, 5, 355, 275)) for encoder in (here, there))
    assert float(a.descriptor @ b.descriptor) > 0.999


@pytest.mark.parametrize("name", ["double", "bf16", ""])
def test_a_dtype_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="network_dtype"):
        Encoder(network_dtype=name)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="network_dtype"):
        check_dtype(name, torch.device("cpu"))


def test_openvino_computes_in_bfloat16_where_the_processor_does() -> None:
    pytest.importorskip("openvino", reason="pip install 'cwf-milvus[openvino]'")
    wanted = {"network_dtype": "bfloat16", "runtime": "openvino"}
    if not computes_in("bfloat16"):
        with pytest.raises(SettingsError, match="does not compute in bfloat16"):
            small(whitening=None, **wanted)
        assert isinstance(small(whitening=None, network_dtype="bfloat16").backbone, HalfPrecision)
        return
    half = small(whitening=None, **wanted)
    assert isinstance(half.backbone, Converted)
    assert (
        half.fingerprint
        == small(whitening=None, runtime="torch", network_dtype="bfloat16").fingerprint
    )
    near = cosines(half, small(whitening=None))
    assert min(near) > 0.98
    assert max(near) < 1 - 1e-6
    kept = small(whitening=None, **wanted)  # read from the cache folder
    assert cosines(half, kept) == [pytest.approx(1, abs=1e-6)] * 2
    alone = create_backbone(runtime="auto", network_dtype="bfloat16", device="cpu")
    assert isinstance(alone, Converted)


def test_openvino_has_no_float16_on_a_processor() -> None:
    pytest.importorskip("openvino", reason="pip install 'cwf-milvus[openvino]'")
    with pytest.raises(SettingsError, match="does not compute in float16"):
        small(whitening=None, network_dtype="float16", runtime="openvino")
    assert isinstance(small(whitening=None, network_dtype="float16").backbone, HalfPrecision)


def test_the_command_line_makes_such_a_collection_and_goes_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import PIL.Image

    for name, photo in (("a", CHELSEA), ("b", COFFEE)):
        PIL.Image.fromarray(photo).save(tmp_path / f"{name}.png")
    index = ["index", str(tmp_path), "--uri", str(tmp_path / "p.db"), "--quiet"]
    made = [*index, "--backbone", "timm:test_resnet", "--weights", "random", "--no-whitening"]
    half = ["--network-dtype", "bfloat16", "--resize-on", "device", "--image-size", "160"]
    assert main([*made, *half]) == 0
    assert main([*made, *half]) == 0
    assert main([*index, "--network-dtype", "float32"]) != 0
    assert "network_dtype='bfloat16'" in capsys.readouterr().err
