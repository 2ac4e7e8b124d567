"""The arrays of a Keras file, by h5py; run as a program, in a process that may be lost.

libhdf5 goes round for ever on some damaged files, in C, where no signal ends it but a kill. Only
numpy and h5py are imported here, so that the process starts at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Pair = tuple[np.ndarray, np.ndarray]
Shapes = Mapping[str, Sequence[Sequence[int]]]

# What h5py raises on files whose parts are not what they should be, and the readers below.
DAMAGE = (
    *(ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError),
    MemoryError,
)
_MOST_LAYERS = 1000
_CONVOLUTIONS = 13  # before the head


def checked_shape(shapes: Shapes, shape: Shape, layer: str, part: str) -> Shape:
    """Return a shape that the layer may have, or raise ValueError naming the layer.

    Args:
        shapes: those that each layer's weights may have.
        shape: the one found.
        layer: its name.
        part: "weight" or "bias".
    """
    weights = [tuple(one) for one in shapes[layer]]
    allowed = weights if part == "weight" else [weights[0][:1]]
    if shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"the {part} of layer {layer!r} has shape {shape}, not {wanted}")
    return shape


def read_keras(path: str | Path, shapes: Shapes) -> tuple[str, dict[str, Pair]]:
    """Read a Keras file; the layers are known by their order, as Keras itself loads them.

    Args:
        path: the file.
        shapes: of the 13 convolutions in their order, then of the head's layers; the last of
            them is dense.

    Returns:
        Its layout in words, and weight and bias by layer.

    Raises:
        OSError: it cannot be read.
        Exception: one of `DAMAGE`, where its parts are not what they should be.
    """
    import h5py

    with h5py.File(path, "r") as file:
        whole_model = "layer_names" not in file.attrs and "model_weights" in file
        root = _member(file, "model_weights") if whole_model else file
        if "layer_names" in root.attrs:
            layout, weights = "keras-names", _named(root)
        elif "nb_layers" in root.attrs:
            layout, weights = "keras-numbers", _numbered(root)
        else:
            raise ValueError("it has neither layer_names nor nb_layers")
        backend = _text(root.attrs.get("backend", "theano"))
        if backend not in ("theano", "tensorflow", "cntk"):
            raise ValueError(f"its backend is {backend!r}, whose kernels cannot be told")
        weights = [pair for pair in weights if pair]
        has_head = len(weights) > _CONVOLUTIONS and len(weights[_CONVOLUTIONS][0].shape) == 4
        names = list(shapes) if has_head else list(shapes)[:_CONVOLUTIONS]
        if has_head and len(weights) != len(names):
            raise ValueError(f"it has {len(weights)} layers with weights, not {len(names)}")
        layers = {}
        for name, pair in zip(names, weights, strict=False):
            if len(pair) != 2:
                raise ValueError(f"layer {name!r} has {len(pair)} arrays, not a weight and a bias")
            dense = name == list(shapes)[-1]
            kernel = _array(pair[0], shapes, name, "weight", transposed=dense)
            if backend == "theano" and not dense:
                kernel = kernel[:, :, ::-1, ::-1]
            layers[name] = kernel, _array(pair[1], shapes, name, "bias")
    return f"{layout}-{backend}", layers


def _named(root: Any) -> list[list[Any]]:
    """Datasets of each layer of a file that lists ``layer_names`` and ``weight_names``."""
    groups = [_member(root, _text(name)) for name in root.attrs["layer_names"][:_MOST_LAYERS]]
    return [[_member(g, _text(name)) for name in g.attrs["weight_names"][:99]] for g in groups]


def _numbered(root: Any) -> list[list[Any]]:
    """Datasets of each layer of a file that counts them: layer_0/param_0, layer_0/param_1 ..."""
    count = min(int(root.attrs["nb_layers"]), _MOST_LAYERS)
    groups = [_member(root, f"layer_{number}") for number in range(count)]
    counts = [min(int(group.attrs.get("nb_params", 0)), 99) for group in groups]
    return [
        [_member(group, f"param_{number}") for number in range(count)]
        for group, count in zip(groups, counts, strict=True)
    ]


def _text(value: Any) -> str:
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def _member(group: Any, name: str) -> Any:
    """Follow a path inside the file. A link to another file is never followed."""
    import h5py

    for step in filter(None, name.split("/")):
        if not isinstance(group, h5py.Group) or step not in group:
            raise ValueError(f"{name!r} is missing")
        if not isinstance(group.get(step, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is a link, which is not followed")
        group = group[step]
    return group


def _array(
    dataset: Any, shapes: Shapes, layer: str, part: str, *, transposed: bool = False
) -> np.ndarray:
    """Read a dataset whose shape has been checked, and whose bytes lie in this very file."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
        raise ValueError(f"the {part} of layer {layer!r} is no array of floats")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the {part} of layer {layer!r} lies in another file, which is not read")
    shape = dataset.shape[::-1] if transposed else dataset.shape
    checked_shape(shapes, shape, layer, part)
    return dataset[()].T if transposed else dataset[()]


def main(source: str, target: str) -> None:
    """Write a file's arrays as ``.npz``, and say on the standard output what came of it."""
    try:
        layout, layers = read_keras(source, json.load(sys.stdin))
        parts = {
            f"{name}.{part}": array
            for name, pair in layers.items()
            for part, array in zip(("weight", "bias"), pair, strict=True)
        }
        np.savez(target, **parts)  # type: ignore[arg-type]
        told: dict[str, Any] = {"layout": layout, "layers": list(layers)}
    except (OSError, *DAMAGE) as error:
        told = {"error": str(error), "is_os": isinstance(error, OSError)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
