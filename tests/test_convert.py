"""The published weights of the paper's network, Keras or Caffe, turned into safetensors."""

import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from cwf_milvus.backbones import convert
from cwf_milvus.backbones import keras_file as keras_reader
from cwf_milvus.backbones.convert import convert_weights
from cwf_milvus.backbones.vgg import build_vgg16, build_vgg16_cam
from cwf_milvus.errors import SettingsError, WeightsError

h5py = pytest.importorskip("h5py")

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]
BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512,) * 4)
POOLS_BEFORE = ("conv2_1", "conv3_1", "conv4_1", "conv5_1")
BGR_MEAN = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)


def random_arrays(groups: int) -> Arrays:
    """Weights in the file's own order, (out, in, 3, 3) and for CAM_fc (out, in)."""
    generator = np.random.default_rng(groups)
    shapes = {
        f"conv{block}_{i}": (widths[i], widths[i - 1], 3, 3)
        for block, widths in enumerate(BLOCKS, 1)
        for i in range(1, len(widths))
    }
    shapes |= {"CAM_conv": (1024, 512 // groups, 3, 3), "CAM_fc": (1000, 1024)}
    arrays = {}
    for name, shape in shapes.items():
        weight = generator.standard_normal(shape, np.float32)
        weight *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        arrays[name] = weight, generator.standard_normal(shape[0], np.float32)
    return arrays


def reference_logits(arrays: Arrays, images: Tensor, *, mirrored: bool, groups: int) -> Tensor:
    """The network as its authors ran it: BGR minus the mean, and Theano mirrors each kernel."""
    x = images.flip(1) - BGR_MEAN
    for name, (weight, bias) in arrays.items():
        if name == "CAM_fc":
            return x.mean((2, 3)) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        if name in POOLS_BEFORE:
            x = F.max_pool2d(x, 2)
        kernel = torch.from_numpy(weight)
        kernel = torch.rot90(kernel, 2, (2, 3)) if mirrored else kernel
        parts = groups if name == "CAM_conv" else 1
        x = F.relu(F.conv2d(x, kernel, torch.from_numpy(bias), padding=1, groups=parts))
    raise AssertionError("no head")


def photos() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, 51, 70), generator=generator).to(torch.uint8)


# The two layouts of Keras 1


def write_named(
    path: Path, arrays: Arrays, *, suffix: str = "", backend: str | None = None
) -> None:
    """As Keras 1 saves a Sequential: every layer listed, most of them without weights."""
    with h5py.File(path, "w") as file:
        names = []
        for number, (layer, (weight, bias)) in enumerate(arrays.items(), 1):
            keras = {"conv5_1": "relu5_1", "CAM_conv": "CAM_relu", "CAM_fc": "dense_1"}
            name = keras.get(layer, f"convolution2d_{number}")
            padding = file.create_group(f"zeropadding2d_{number}")
            padding.attrs["weight_names"] = np.array([], "S1")
            group = file.create_group(name)
            group[f"{name}_W{suffix}"] = weight.T if weight.ndim == 2 else weight
            group[f"{name}_b{suffix}"] = bias
            parts = [f"{name}_W{suffix}".encode(), f"{name}_b{suffix}".encode()]
            group.attrs["weight_names"] = parts
            names += [f"zeropadding2d_{number}".encode(), name.encode()]
        file.attrs["layer_names"] = names
        if backend is not None:
            file.attrs["backend"] = backend.encode()


def write_numbered(path: Path, arrays: Arrays) -> None:
    """As the first versions of Keras saved it: layer_0, layer_1 ... with param_0, param_1."""
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 2 * len(arrays)
        for number, (weight, bias) in enumerate(arrays.values()):
            file.create_group(f"layer_{2 * number}").attrs["nb_params"] = 0
            group = file.create_group(f"layer_{2 * number + 1}")
            group.attrs["nb_params"] = 2
            group["param_0"] = weight.T if weight.ndim == 2 else weight
            group["param_1"] = bias


# Caffe: protobuf's wire format


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(array: np.ndarray, *, shape: Sequence[int] | None = None) -> bytes:
    dims = b"".join(map(varint, array.shape if shape is None else shape))
    return field(7, field(1, dims)) + field(5, array.astype("<f4").tobytes())


def blob_unpacked(array: np.ndarray) -> bytes:
    dims = b"".join(integer(1, size) for size in array.shape)
    values = b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.flat)
    return values + field(7, dims)


def blob_of_doubles(array: np.ndarray) -> bytes:
    return field(8, array.astype("<f8").tobytes()) + field(
        7, field(1, b"".join(map(varint, array.shape)))
    )


def blob_v1(array: np.ndarray) -> bytes:
    four = (1,) * (4 - array.ndim) + array.shape
    sizes = b"".join(integer(number, size) for number, size in enumerate(four, 1))
    return sizes + field(5, array.astype("<f4").tobytes())


def layer(name: str, *blobs: bytes) -> bytes:
    body = field(1, name.encode()) + field(2, b"Convolution") + field(3, b"data")
    body += b"".join(field(7, blob) for blob in blobs) + integer(10, 1)
    return field(100, body)


def layer_v1(name: str, *blobs: bytes) -> bytes:
    body = field(2, b"data") + field(3, name.encode()) + field(4, name.encode()) + integer(5, 4)
    body += b"".join(field(6, blob) for blob in blobs)
    return field(2, body + varint(7 << 3 | 5) + struct.pack("<f", 2.0))


def write_caffe(path: Path, arrays: Arrays) -> None:
    parts = [field(1, b"VGG16CAM"), layer("data")]
    for name, (weight, bias) in arrays.items():
        if name == "CAM_fc":
            parts.append(layer(name, blob_of_doubles(weight), blob_unpacked(bias)))
        else:
            parts.append(layer(name, blob(weight), blob(bias)))
        parts.append(layer(name.replace("conv", "relu")))
    path.write_bytes(b"".join(parts))


def write_caffe_v1(path: Path, arrays: Arrays) -> None:
    parts = [field(1, b"VGG16CAM"), field(3, b"data"), integer(4, 10), integer(4, 3)]
    for name, (weight, bias) in arrays.items():
        blobs = [blob_v1(weight)] if name == "CAM_fc" else [blob_v1(weight), blob_v1(bias)]
        parts += [layer_v1(name, *blobs), layer_v1(name.replace("conv", "relu"))]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: the files are of 80 MB each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("convert") / "vgg_cam_weights.h5"
    write_named(path, random_arrays(1))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def caffe_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("convert") / "vgg16CAM_train_iter_90000.caffemodel"
    write_caffe(path, random_arrays(2))
    yield path
    path.unlink()


def without_head_bias(arrays: Arrays) -> Arrays:
    weight, bias = arrays["CAM_fc"]
    return {**arrays, "CAM_fc": (weight, np.zeros_like(bias))}


@pytest.mark.parametrize(
    ("name", "write", "layout", "groups", "mirrored"),
    [
        ("weights.h5", write_named, "keras-names-theano", 1, True),
        ("weights.h5", write_numbered, "keras-numbers-theano", 1, True),
        (
            "weights.h5",
            lambda path, arrays: write_named(path, arrays, suffix=":0", backend="tensorflow"),
            "keras-names-tensorflow",
            1,
            False,
        ),
        ("net.caffemodel", write_caffe, "caffe", 2, False),
        ("net.caffemodel", write_caffe_v1, "caffe-v1", 2, False),
    ],
)
def test_a_converted_file_gives_the_logits_of_the_network_that_wrote_it(
    folder: Path,
    name: str,
    write: Callable[[Path, Arrays], None],
    layout: str,
    groups: int,
    mirrored: bool,
) -> None:
    arrays = random_arrays(groups)
    write(folder / name, arrays)
    summary = convert_weights(folder / name, folder / "new" / "vgg16_cam.safetensors")
    assert (summary["layout"], summary["groups"], summary["head"]) == (layout, groups, True)

    network = build_vgg16_cam(weights=folder / "new" / "vgg16_cam.safetensors")
    if layout == "caffe-v1":
        arrays = without_head_bias(arrays)
    wanted = reference_logits(arrays, photos(), mirrored=mirrored, groups=groups)
    assert (network.predict(photos()) - wanted).abs().max() < 1e-4 * wanted.abs().max()

    with safe_open(folder / "new" / "vgg16_cam.safetensors", "pt") as file:
        assert file.metadata() == {"layout": layout, "groups": str(groups), "input": "rgb-mean"}
        assert len(file.keys()) == summary["tensors"] == 32
    assert [path.name for path in (folder / "new").iterdir()] == ["vgg16_cam.safetensors"]


def test_theanos_convolution_is_a_correlation_with_kernels_turned_by_180_degrees() -> None:
    signal = pytest.importorskip("scipy.signal")
    generator = np.random.default_rng(0)
    image, kernel = generator.standard_normal((9, 8)), generator.standard_normal((3, 3))
    convolved = signal.convolve2d(image, kernel, mode="same")
    turned = np.ascontiguousarray(kernel[::-1, ::-1])
    correlated = F.conv2d(
        torch.from_numpy(image)[None, None], torch.from_numpy(turned)[None, None], padding=1
    )
    np.testing.assert_allclose(correlated[0, 0].numpy(), convolved, atol=1e-12)


def test_a_whole_keras_model_is_read_from_its_weights_group(folder: Path, keras_file: Path) -> None:
    with h5py.File(folder / "model.h5", "w") as file, h5py.File(keras_file) as weights:
        weights.copy(weights, file, "model_weights")
        file.attrs["model_config"] = b"{}"
    convert_weights(folder / "model.h5", folder / "whole.safetensors")
    convert_weights(keras_file, folder / "plain.safetensors")
    whole, plain = (
        build_vgg16_cam(weights=folder / f"{n}.safetensors") for n in ("whole", "plain")
    )
    assert whole.digest() == plain.digest()


@pytest.mark.parametrize("kind", ["keras", "caffe"])
def test_a_plain_vgg16_gives_convolutions_that_ask_for_a_head(folder: Path, kind: str) -> None:
    arrays = {k: v for k, v in random_arrays(1).items() if not k.startswith("CAM")}
    arrays["fc6"] = np.ones((5, 7), np.float32), np.ones(5, np.float32)
    source, target = folder / kind, folder / "vgg16.safetensors"
    (write_named if kind == "keras" else write_caffe)(source, arrays)
    summary = convert_weights(source, target)
    assert (summary["head"], summary["groups"]) == (False, None)
    for build in (build_vgg16, build_vgg16_cam):
        network = build(weights=target)
        assert network.features_only(photos()).shape == (2, 512, 3, 4)
        with pytest.raises(WeightsError, match=r"head.*missing.*cams_from"):
            network.predict(photos())


def test_nan_is_refused_by_the_name_of_its_layer(
    folder: Path, keras_file: Path, caffe_file: Path
) -> None:
    shutil.copy(keras_file, folder / "nan.h5")
    with h5py.File(folder / "nan.h5", "r+") as file:
        file["relu5_1/relu5_1_W"][3, 2, 1, 0] = np.nan
    with pytest.raises(WeightsError, match=r"weight of layer 'conv5_1'.*NaN"):
        convert_weights(folder / "nan.h5", folder / "out.safetensors")

    content = bytearray(caffe_file.read_bytes())
    floats = random_arrays(2)["conv3_2"][1].tobytes()
    place = content.index(floats)
    content[place : place + 4] = struct.pack("<f", np.inf)
    (folder / "nan.caffemodel").write_bytes(content)
    with pytest.raises(WeightsError, match=r"bias of layer 'conv3_2'.*infinity"):
        convert_weights(folder / "nan.caffemodel", folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("share", [0.0, 1e-7, 0.3, 0.999999])
def test_a_truncated_file_is_refused(
    folder: Path, keras_file: Path, caffe_file: Path, share: float
) -> None:
    for source in (keras_file, caffe_file):
        path = folder / source.name
        shutil.copy(source, path)
        with path.open("r+b") as file:
            file.truncate(int(share * source.stat().st_size))
        with pytest.raises(WeightsError, match="damaged"):
            convert_weights(path, folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


def test_a_layer_of_another_shape_is_refused_by_name(folder: Path) -> None:
    arrays = {k: v for k, v in random_arrays(1).items() if k < "conv3"}
    arrays["conv2_2"] = np.zeros((128, 128, 5, 5), np.float32), arrays["conv2_2"][1]
    for source, write in (
        (folder / "a.h5", write_numbered),
        (folder / "a.caffemodel", write_caffe),
    ):
        write(source, {k: arrays[k] for k in sorted(arrays) if k.startswith("conv")})
        with pytest.raises(WeightsError, match=r"'conv2_2' has shape \(128, 128, 5, 5\), not"):
            convert_weights(source, folder / "out.safetensors")


def test_keras_files_of_another_make_are_refused(folder: Path) -> None:
    one = {"conv1_1": random_arrays(1)["conv1_1"]}
    path, target = folder / "a.h5", folder / "out.safetensors"
    write_named(path, one)
    with pytest.raises(WeightsError, match="no layers conv1_2, conv2_1"):
        convert_weights(path, target)
    write_named(path, one, backend="plaidml")
    with pytest.raises(WeightsError, match="backend is 'plaidml'"):
        convert_weights(path, target)
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(WeightsError, match="neither layer_names nor nb_layers"):
        convert_weights(path, target)


@pytest.mark.parametrize(
    "value", [b"conv", 7, np.array([[1]]), "../../etc", -5, 10**18, h5py.Empty("f")]
)
def test_attributes_of_another_type_are_refused(folder: Path, value: object) -> None:
    for attribute in ("layer_names", "nb_layers"):
        with h5py.File(folder / "a.h5", "w") as file:
            file.attrs[attribute] = value
        with pytest.raises(WeightsError, match="damaged or no Keras"):
            convert_weights(folder / "a.h5", folder / "out.safetensors")


def test_a_keras_file_reaches_into_no_other_file(folder: Path) -> None:
    weight, bias = random_arrays(1)["conv1_1"]
    (folder / "secret").write_bytes(weight.tobytes())
    with h5py.File(folder / "other.h5", "w") as file:
        file["W"] = weight
    layout = h5py.VirtualLayout(weight.shape, weight.dtype)
    layout[:] = h5py.VirtualSource(folder / "other.h5", "W", weight.shape)

    def external(group: h5py.Group) -> None:
        group["W"] = h5py.ExternalLink(str(folder / "other.h5"), "W")

    def soft(group: h5py.Group) -> None:
        group["W"] = h5py.SoftLink("/conv/b")

    def raw(group: h5py.Group) -> None:
        place = [(str(folder / "secret"), 0, weight.nbytes)]
        group.create_dataset("W", weight.shape, weight.dtype, external=place)

    def virtual(group: h5py.Group) -> None:
        group.create_virtual_dataset("W", layout)

    for add, reason in ((external, "link"), (soft, "link"), (raw, "another"), (virtual, "another")):
        with h5py.File(folder / "a.h5", "w") as file:
            file.attrs["layer_names"] = [b"conv"]
            group = file.create_group("conv")
            group.attrs["weight_names"] = [b"W", b"b"]
            group["b"] = bias
            add(group)
        with pytest.raises(WeightsError, match=reason):
            convert_weights(folder / "a.h5", folder / "out.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no layers conv1_1"),
        (b"name: 'VGG' layer { name: 'conv1_1' }", "damaged"),
        (varint(100 << 3 | 2) + varint(2**62), "longer than what is left"),
        (varint(100 << 3 | 2) + b"\xff" * 30, "never ends"),
        (b"\x80", "ends inside a number"),
        (varint(7 << 3 | 3), "wire type 3"),
        (field(0, b""), "field 0"),
        (varint(5 << 3 | 5) + b"\x00", "longer than what is left"),
        (layer("conv1_1", blob(np.zeros(3), shape=(2**62, 2**62, 2**62))), "'conv1_1' has shape"),
        (layer("conv1_1", blob(np.zeros(3), shape=(2**64 - 1,))), "'conv1_1' has shape"),
        (layer("conv1_1", blob(np.zeros(3), shape=(9,) * 10**6)), "damaged"),
        (layer("conv1_1", blob(np.zeros(3), shape=(64, 3, 3, 3))), "holds 3 numbers"),
        (layer("conv1_1", field(7, field(1, b"\x40\x03\x03\x03")) + field(5, b"abc")), "damaged"),
        (layer("conv1_1", blob_v1(np.zeros(3))), r"has shape \(3,\)"),
        (layer("conv1_1", b""), r"has shape \(0, 0, 0, 0\)"),
    ],
)
def test_a_hostile_caffemodel_is_refused_with_the_reason(
    folder: Path, content: bytes, reason: str
) -> None:
    (folder / "a.caffemodel").write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        convert_weights(folder / "a.caffemodel", folder / "out.safetensors")


def test_two_layers_of_one_name_are_refused(folder: Path) -> None:
    one = layer("conv1_1", *map(blob, random_arrays(1)["conv1_1"]))
    (folder / "a.caffemodel").write_bytes(one + one)
    with pytest.raises(WeightsError, match="two layers 'conv1_1'"):
        convert_weights(folder / "a.caffemodel", folder / "out.safetensors")


def test_a_caffemodel_larger_than_protobuf_allows_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_MOST_BYTES", 99)
    (folder / "a.caffemodel").write_bytes(bytes(100))
    with pytest.raises(WeightsError, match="larger than 99 bytes"):
        convert_weights(folder / "a.caffemodel", folder / "out.safetensors")


def test_a_caffemodel_of_a_million_fields_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_MOST_FIELDS", 1000)
    for message in (integer(1, 1) * 1001, layer("x") * 600, field(100, integer(9, 1) * 1001)):
        (folder / "a.caffemodel").write_bytes(message)
        with pytest.raises(WeightsError, match=r"more than 1,000 fields"):
            convert_weights(folder / "a.caffemodel", folder / "out.safetensors")


def test_damage_anywhere_gives_no_other_error(folder: Path) -> None:
    arrays = {k: v for k, v in random_arrays(1).items() if k in ("conv1_1", "conv1_2")}
    generator = np.random.default_rng(7)
    for name, write in (("a.h5", write_named), ("b.h5", write_numbered), ("c", write_caffe)):
        write(folder / name, arrays)
        content = np.fromfile(folder / name, np.uint8)
        for number in range(100):
            damaged = content.copy()
            places = generator.integers(0, min(len(content), 6000), 8)
            damaged[places] = generator.integers(0, 256, 8)
            damaged.tofile(folder / "damaged")
            if name != "c" and number > 2:  # a process for each would take a minute
                with suppress(OSError, *keras_reader.DAMAGE):
                    keras_reader.read_keras(folder / "damaged", convert._SHAPES)
                continue
            with pytest.raises(WeightsError):
                convert_weights(folder / "damaged", folder / "out.safetensors")


def test_a_file_that_libhdf5_never_ends_with_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["layer_names"] = np.array(["conv1_1"], h5py.string_dtype())
    content = bytearray((folder / "a.h5").read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 24 : heap + 32] = bytes(8)  # a text of no bytes in the heap
    (folder / "a.h5").write_bytes(content)
    monkeypatch.setattr(convert, "_SECONDS", 2.0)
    with pytest.raises(WeightsError, match=r"damaged or no Keras.*takes more than 2 seconds"):
        convert_weights(folder / "a.h5", folder / "out.safetensors")


def test_a_file_that_takes_its_reader_down_is_refused(
    folder: Path, keras_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "reader.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(keras_reader, "__file__", str(folder / "reader.py"))
    with pytest.raises(WeightsError, match=r"damaged or no Keras.*took its reader down"):
        convert_weights(keras_file, folder / "out.safetensors")


def test_source_and_target_must_be_what_they_are_called(folder: Path, keras_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read.*missing\.h5"):
        convert_weights(folder / "missing.h5", folder / "out.safetensors")
    with pytest.raises(WeightsError, match="cannot read"):
        convert_weights(folder, folder / "out.safetensors")
    with pytest.raises(SettingsError, match=r"ends in \.safetensors"):
        convert_weights(keras_file, folder / "out.h5")
    (folder / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot write"):
        convert_weights(keras_file, folder / "file" / "out.safetensors")


def test_the_target_is_replaced_whole(folder: Path, keras_file: Path) -> None:
    target = folder / "out.safetensors"
    target.write_bytes(b"old")
    (folder / "bad").write_bytes(b"\xff")
    with pytest.raises(WeightsError):
        convert_weights(folder / "bad", target)
    assert target.read_bytes() == b"old"
    convert_weights(keras_file, target)
    assert target.stat().st_size > 70_000_000


def test_without_h5py_the_error_says_how_to_get_it(
    folder: Path, keras_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"pip install 'cwf-milvus\[convert\]'"):
        convert_weights(keras_file, folder / "out.safetensors")
