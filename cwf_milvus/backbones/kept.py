"""Converted networks kept in the cache folder, so that each is built, probed and checked once."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cwf_milvus.backbones.base import Backbone
from cwf_milvus.backbones.converted import (
    SAME_MAPS,
    Converted,
    Facts,
    computes_in,
    convert,
    misfit,
)
from cwf_milvus.backbones.silent import import_openvino
from cwf_milvus.backbones.weights import OWN_NETWORKS, RANDOM, find_weights
from cwf_milvus.errors import SettingsError
from cwf_milvus.files import cache_folder, read_whole

Runtime = Literal["auto", "torch", "openvino"]
"""What runs a network. Not part of a fingerprint: descriptors agree to a cosine of .99999."""

_ABOUT, _MODEL, _WEIGHTS, _HEAD = "about.json", "network.xml", "network.bin", "head.safetensors"
_FORMAT = 2
_ABOUT_BYTES = 2**22
_MADE_BY = ("cwf-milvus", "openvino", "torch", "torchvision", "timm")


class _Refused(Exception):
    """The network is not to be run by OpenVINO; says why."""


def checked_runtime(runtime: Runtime) -> Runtime:
    """Return a runtime; raises `SettingsError` for one that there is not, or not here."""
    if runtime not in get_args(Runtime):
        raise SettingsError(f"runtime={runtime!r}: give one of {', '.join(get_args(Runtime))}")
    if runtime == "openvino" and not _is_installed():
        raise SettingsError(
            "runtime='openvino' needs OpenVINO: pip install 'cwf-milvus[openvino]', or leave it out"
        )
    return runtime


def ready_network(
    name: str,
    weights: str | Path | None,
    layer: str | None,
    runtime: Runtime,
    dtype: str = "float32",
) -> Backbone:
    """Return a network to run on a CPU, converted where that was asked for and can be.

    Converted, it computes in `dtype`; in PyTorch it is left in float32, and the caller's to wrap.
    What is kept is known by the SHA-256 of the weights' file, the name, the layer and the versions
    of all that made it. It is checked against its own digests; what is damaged is made anew.

    Args:
        name: as in `create_backbone`.
        weights: as in `create_backbone`.
        layer: as in `create_backbone`.
        runtime: as in `create_backbone`; "auto" leaves random weights and a machine without
            OpenVINO or a cache folder to PyTorch.
        dtype: "float32", or "bfloat16" for half precision.

    Raises:
        SettingsError: a name or layer that there is not, or "openvino" for a network that it
            cannot run, or in a dtype that it cannot run here.
        WeightsError: as `create_backbone`.
    """

    def build() -> Backbone:
        from cwf_milvus.backbones.building import build_network  # timm and torchvision: seconds

        return build_network(name, weights, layer)

    wanted = runtime == "openvino"
    if not wanted and (runtime == "torch" or weights == RANDOM or not _is_installed()):
        return build()
    folder = cache_folder("networks")
    if not wanted and (folder is None or not computes_in(dtype)):
        return build()
    try:
        if not computes_in(dtype):
            raise _Refused(f"this processor does not compute in {dtype}")
        with tempfile.TemporaryDirectory() as passing:
            place = (folder or Path(passing)) / _key(name, weights, layer)
            kept = _read(place, build, dtype)
            return _converted(place, build, dtype) if kept is None else kept
    except _Refused as error:
        if wanted:
            raise SettingsError(
                f"runtime='openvino' for {name!r}: {error}; use 'auto' or 'torch'"
            ) from error
        return build()


def _is_installed() -> bool:
    try:
        metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return False
    return True


def _key(name: str, weights: str | Path | None, layer: str | None) -> str:
    """Return what a converted network is known by."""
    digest = RANDOM
    if weights != RANDOM:
        if name in OWN_NETWORKS or weights is not None:
            file = find_weights(name, weights)
        else:
            from cwf_milvus.backbones.building import checkpoint_of  # as above

            file = checkpoint_of(name, weights)
        with Path(file).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    made_by = [f"{one} {metadata.version(one)}" for one in _MADE_BY]
    what = [_FORMAT, name, layer, digest, *made_by]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _read(place: Path, build: Callable[[], Backbone], dtype: str) -> Converted | None:
    """Return a network that is kept; None where there is none, or a damaged one.

    Raises:
        _Refused: it is known that it is not to be converted.
    """
    try:
        told = json.loads(read_whole(place / _ABOUT, _ABOUT_BYTES))
        about = json.loads(told["about"])
        if _sha256(told["about"].encode()) != told["sha256"]:
            return None
        if about["refused"]:
            raise _Refused(str(about["refused"]))
        files = {}
        for name in (_MODEL, _WEIGHTS, _HEAD):
            n_bytes, digest = about["files"][name]
            files[name] = read_whole(place / name, n_bytes)
            if _sha256(files[name]) != digest:
                return None
        facts = Facts(**{**about["facts"], "class_names": tuple(about["facts"]["class_names"])})
        head = load(files[_HEAD])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        SafetensorError,
        AttributeError,
    ):
        return None
    linear = (head["weight"], head["bias"]) if head else None
    return Converted(facts, place / _MODEL, linear, build, dtype)


def _converted(place: Path, build: Callable[[], Backbone], dtype: str) -> Converted:
    """Convert a network, check it, and keep it, or that it is not to be converted.

    Raises:
        _Refused: it does not convert, or its maps differ.
    """
    openvino = import_openvino()
    source = build().eval().requires_grad_(False)
    source.check_finite()
    linear = source.linear_head()
    head: dict[str, Tensor] = {}
    if linear is not None:
        head = {"weight": linear[0].detach().clone(), "bias": linear[1].detach().clone()}
    try:
        if not source.any_size:
            raise _Refused("it takes images of one size alone")
        model = convert(source)
        made = Converted(Facts.of(source), model, linear, lambda: source)
        worst = misfit(made, source)
        if worst > SAME_MAPS:
            raise _Refused(f"its maps differ from PyTorch's by {worst:.1e} of the largest value")
    except _Refused as error:
        refused = str(error)
    except (OSError, MemoryError) as error:  # of this moment, and not of the network
        raise _Refused(f"it could not be converted now ({error})") from error
    except Exception as error:  # a network of any kind meets a tracer and a compiler
        refused = f"it does not convert ({type(error).__name__}: {str(error)[:200]})"
    else:
        try:
            with tempfile.TemporaryDirectory() as passing:
                openvino.save_model(model, Path(passing) / _MODEL, compress_to_fp16=False)
                files = {name: (Path(passing) / name).read_bytes() for name in (_MODEL, _WEIGHTS)}
        except (OSError, RuntimeError):  # a full disk: converted again by the next process
            return Converted(Facts.of(source), model, linear, lambda: source, dtype)
        files[_HEAD] = save(head)
        about = {
            "refused": "",
            "facts": asdict(Facts.of(source)),
            "files": {name: (len(data), _sha256(data)) for name, data in files.items()},
        }
        _keep(place, {**files, _ABOUT: _told(about)})
        # As every later process reads it, so that all give the same vectors bit for bit.
        kept = _read(place, build, dtype)
        return kept or Converted(Facts.of(source), model, linear, lambda: source, dtype)
    warnings.warn(f"{source.name!r} is run by PyTorch, not by OpenVINO: {refused}", stacklevel=6)
    _keep(place, {_ABOUT: _told({"refused": refused})})
    raise _Refused(refused)


def _keep(place: Path, files: dict[str, bytes]) -> None:
    """Write a folder whole, in place of a damaged one; what cannot be kept is made again."""
    try:
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
        try:
            for name, data in files.items():
                (part / name).write_bytes(data)
            if place.exists() and (place.is_symlink() or not place.is_dir()):
                place.unlink()
            elif place.exists():
                shutil.rmtree(place)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError:
        return


def _told(about: dict[str, Any]) -> bytes:
    """Return what is kept of a network as a file that tells its own damage."""
    text = json.dumps(about)
    return json.dumps({"about": text, "sha256": _sha256(text.encode())}).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
