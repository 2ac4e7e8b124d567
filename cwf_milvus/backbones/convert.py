"""The published weights of the paper's network, Keras or Caffe, turned into safetensors.

Both are VGG-16 with ``CAM_conv`` and ``CAM_fc``; files with no such head give the convolutions
alone. What changes on the way:

- **Kernels** of a Theano Keras are turned by 180 degrees. Theano convolves, so it reads kernels
  mirrored; TensorFlow, Caffe and PyTorch correlate. Keras's own ``convert_kernel`` does the same
  between its backends (https://github.com/keras-team/keras/issues/3015).
- **Input channels** of conv1_1 go from Caffe's BGR to RGB, and the file carries ``mean`` and
  ``std``, so that a network loads it without knowing where it came from. The mean cannot go into
  conv1_1's bias: zero padding happens after it is subtracted.
- **Dense** weights of Keras, (inputs, outputs), are transposed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cwf_milvus.backbones import keras_file
from cwf_milvus.backbones.keras_file import DAMAGE, Pair, Shape, checked_shape
from cwf_milvus.backbones.vgg import CAFFE_INPUT, CONVOLUTIONS
from cwf_milvus.errors import SettingsError, WeightsError
from cwf_milvus.files import write_whole

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_SHAPES: dict[str, list[Shape]] = {
    **{
        name: [(outputs, inputs, 3, 3)]
        for name, inputs, outputs in zip(CONVOLUTIONS, _CHANNELS[:-1], _CHANNELS[1:], strict=True)
    },
    "CAM_conv": [(1024, 512, 3, 3), (1024, 256, 3, 3)],
    "CAM_fc": [(1000, 1024)],
}
"""The shapes that each layer's weights may have; nothing of another shape is read."""

_MOST_BYTES = 2**31 - 1  # protobuf's own limit
_SECONDS = 30.0  # that reading a Keras file may take
_MOST_FIELDS = 10**6  # of a Caffe model; numbers are packed, a blob in one
_MOST_DIM_BYTES = 512


def convert_weights(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Turn a Keras 1 ``.h5`` or a Caffe ``.caffemodel`` into a file for ``vgg16_cam``.

    The target appears whole or not at all.

    Args:
        source: the published file. The Keras one is in Theano order, kernels (out, in, 3, 3), saved
            by name or, as by the first Keras versions, by number; reading it needs h5py.
        target: the ``.safetensors`` file to write; one that is there is replaced.

    Returns:
        ``layout`` of the source; ``head``, whether it had one; ``groups`` of CAM_conv (None
        without a head); ``tensors``, how many were written; ``target``.

    Raises:
        WeightsError: the source cannot be read, is damaged, is not this network, or holds NaN.
        SettingsError: the target is no ``.safetensors``.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix != ".safetensors":
        raise SettingsError(f"target {str(target)!r}: name a file that ends in .safetensors")
    try:
        with source.open("rb") as file:
            is_keras = file.read(len(_HDF5)) == _HDF5
        layout, layers = (_read_keras if is_keras else _read_caffe)(source)
    except OSError as error:
        raise WeightsError(
            f"cannot read {str(source)!r}, or it is damaged: {str(error)[:300]}; fetch it again"
        ) from error
    except DAMAGE as error:
        kind = "Keras .h5" if is_keras else "Caffe .caffemodel"
        raise WeightsError(
            f"{str(source)!r} is damaged or no {kind} of the paper's network: {str(error)[:300]}"
        ) from error

    state = _state(layers, source)
    groups = 512 // layers["CAM_conv"][0].shape[1] if "CAM_conv" in layers else None
    _save(state, target, {"layout": layout, "groups": str(groups or "none"), "input": "rgb-mean"})
    return {
        "layout": layout,
        "head": groups is not None,
        "groups": groups,
        "tensors": len(state),
        "target": str(target),
    }


def _state(layers: Mapping[str, Pair], source: Path) -> dict[str, Tensor]:
    """Name the arrays as the network does, refuse NaN, and turn BGR into RGB."""
    state = dict(CAFFE_INPUT)
    for layer, pair in layers.items():
        name = f"features.{CONVOLUTIONS[layer]}" if layer in CONVOLUTIONS else layer
        for part, array in zip(("weight", "bias"), pair, strict=True):
            with np.errstate(over="ignore"):  # doubles beyond float32 are refused as infinite
                tensor = torch.from_numpy(np.array(array, np.float32, order="C"))
            if not torch.isfinite(tensor).all():
                raise WeightsError(
                    f"the {part} of layer {layer!r} in {str(source)!r} holds NaN or infinity: "
                    "the file is damaged; fetch it again"
                )
            state[f"{name}.{part}"] = tensor
    state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    return state


def _save(state: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda part: save_file(state, part, metadata))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {str(target)!r}: {error}") from error


def _complete(layers: dict[str, Pair]) -> dict[str, Pair]:
    """Return the layers, all 13 convolutions and the whole head or none of it, else ValueError."""
    missing = [name for name in _SHAPES if name not in layers]
    if missing and missing != ["CAM_conv", "CAM_fc"]:
        raise ValueError(f"it has no layers {', '.join(missing)}")
    return layers


# Keras: HDF5


def _read_keras(path: Path) -> tuple[str, dict[str, Pair]]:
    """Read a Keras file, in a process of its own: libhdf5 may hang or crash on a damaged one."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise WeightsError(
            "reading a Keras .h5 needs h5py: pip install 'cwf-milvus[convert]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="cwf-milvus-") as folder:
        arrays = Path(folder) / "layers.npz"
        command = [sys.executable, "-P", keras_file.__file__, str(path), str(arrays)]
        try:
            done = subprocess.run(
                command, input=json.dumps(_SHAPES).encode(), capture_output=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"reading it takes more than {_SECONDS:g} seconds") from None
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ValueError(f"it took its reader down ({last[:200] or done.returncode})")
        told = json.loads(done.stdout)
        if "error" in told:
            raise (OSError if told["is_os"] else ValueError)(told["error"])
        with np.load(arrays, allow_pickle=False) as kept:
            layers = {
                name: (kept[f"{name}.weight"], kept[f"{name}.bias"]) for name in told["layers"]
            }
    return str(told["layout"]), _complete(layers)


# Caffe: protobuf's wire format, https://protobuf.dev/programming-guides/encoding, with the field
# numbers of NetParameter, LayerParameter, V1LayerParameter, BlobProto and BlobShape in caffe.proto.


def _read_caffe(path: Path) -> tuple[str, dict[str, Pair]]:
    """Read a Caffe model by its layers' names, of the new kind or of V1."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES} bytes, more than Caffe can write")
    layout = "caffe"
    layers: dict[str, Pair] = {}
    seen = count()
    for number, net_field in _fields(memoryview(path.read_bytes()), seen):
        if number not in (2, 100) or not isinstance(net_field, memoryview):
            continue
        name_field, blob_field = (1, 7) if number == 100 else (4, 6)
        name, blobs = "", []
        for field, value in _fields(net_field, seen):
            if field == name_field and isinstance(value, memoryview):
                name = value[:256].tobytes().decode("utf8", "replace")
            elif field == blob_field and isinstance(value, memoryview):
                blobs.append(value)
        if name not in _SHAPES or not blobs:
            continue
        if name in layers:
            raise ValueError(f"it has two layers {name!r}")
        weight = _blob(blobs[0], name, "weight", seen)
        # The head may have been trained without a bias.
        bias = _blob(blobs[1], name, "bias", seen) if len(blobs) > 1 else np.zeros(len(weight))
        layers[name] = weight, bias
        layout = "caffe" if number == 100 else "caffe-v1"
    return layout, _complete(layers)


def _blob(message: memoryview, layer: str, part: str, seen: Iterator[int]) -> np.ndarray:
    """Read a BlobProto: its shape, new or of four numbers, and its floats or doubles."""
    shape: list[int] = []
    four = {1: 0, 2: 0, 3: 0, 4: 0}
    floats, doubles = bytearray(), bytearray()
    for field, value in _fields(message, seen):
        if field in four and isinstance(value, int):
            four[field] = value
        elif field == 5 and isinstance(value, memoryview):
            floats += value
        elif field == 8 and isinstance(value, memoryview):
            doubles += value
        elif field == 7 and isinstance(value, memoryview):
            shape = _dims(value)
    sizes = shape or list(four.values())
    while len(sizes) > 1 and sizes[0] == 1:
        sizes = sizes[1:]  # V1 wrote (1, 1, 1, outputs) for a bias
    expected = checked_shape(_SHAPES, tuple(sizes), layer, part)
    array = np.frombuffer(doubles, "<f8") if doubles else np.frombuffer(floats, "<f4")
    if array.size != np.prod(expected):
        raise ValueError(f"the {part} of layer {layer!r} holds {array.size} numbers for {expected}")
    return array.reshape(expected)


def _fields(
    message: memoryview, seen: Iterator[int] | None = None
) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: an int, or the bytes of all other kinds.

    `seen` counts them in all.
    """
    at = 0
    seen = count() if seen is None else seen
    while at < len(message):
        if next(seen) >= _MOST_FIELDS:
            raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}, which Caffe never writes")
        if number == 0 or size > len(message) - at:
            raise ValueError(f"field {number} is longer than what is left of the file")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read an integer of up to ten bytes; return it and the place behind it."""
    value = 0
    for place in range(min(10, len(message) - at)):
        byte = message[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it ends inside a number, or a number never ends")


def _dims(shape: memoryview) -> list[int]:
    """Read a BlobShape, packed or not. More dimensions than any layer has are not read."""
    dims: list[int] = []
    for number, value in _fields(shape[:_MOST_DIM_BYTES]):
        at = 0
        if number == 1 and isinstance(value, int):
            dims.append(value)
        while number == 1 and isinstance(value, memoryview) and at < len(value):
            dim, at = _varint(value, at)
            dims.append(dim)
    return dims
