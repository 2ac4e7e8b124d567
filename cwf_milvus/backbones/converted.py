"""A network run by OpenVINO: half of PyTorch's time on a CPU, with the same maps."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cwf_milvus.backbones.base import Backbone, Head
from cwf_milvus.backbones.half import HalfPrecision
from cwf_milvus.backbones.silent import import_openvino
from cwf_milvus.files import read_whole, write_whole

if TYPE_CHECKING:
    import openvino

SAME_MAPS = 1e-3
"""Of the largest value: by how much converted maps may differ from PyTorch's."""

_COMPILED = "compiled"  # a folder that is OpenVINO's own, by processor and options
_COMPILED_BYTES = 8 * 2**30
_LEAST = 32  # pixels a side; smaller images are PyTorch's, which says what is wrong with them
_HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names
_PROBES = ((2, 160, 224), (1, 96, 320), (1, 224, 224))  # images, height, width: no two alike


@dataclass(frozen=True)
class Facts:
    """What is known of a network without building it; attributes as in `Backbone`.

    Attributes:
        weights: SHA-256 of its weights, in hex.
    """

    name: str
    n_features: int
    stride: int
    native_size: int
    class_names: tuple[str, ...]
    weights: str

    @classmethod
    def of(cls, source: Backbone) -> Facts:
        """Return those of a network."""
        return cls(
            source.name,
            source.n_features,
            source.stride,
            source.native_size,
            tuple(source.class_names),
            source.digest(),
        )


class Converted(Backbone):
    """A network whose maps OpenVINO makes; its head stays in PyTorch.

    Each image is a pass of its own, on one of as many streams as torch has threads: a photo's maps
    depend on no other photo of its batch. Callers in several threads share the streams.

    Args:
        facts: of the network.
        model: the converted network, in float32, from `convert`, or its file, beside which what
            OpenVINO compiled is kept: read, it saves half a second.
        head: W (C, M) and b (C,) of a linear head; None for another, which `source` has.
        source: builds the network in PyTorch, for other heads, for images of less than 32 pixels a
            side, and for a forked process, which OpenVINO's threads do not reach.
        dtype: what the maps are computed in: "float32", or "bfloat16", which the processor must
            have (`computes_in`).
    """

    def __init__(
        self,
        facts: Facts,
        model: openvino.Model | Path,
        head: tuple[Tensor, Tensor] | None,
        source: Callable[[], Backbone],
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.name, self.n_features = facts.name, facts.n_features
        self.stride, self.native_size = facts.stride, facts.native_size
        self.class_names = facts.class_names
        self._weights = facts.weights
        self._linear = head
        self._build = source
        self._process = os.getpid()
        self._dtype = dtype
        self._streams: _Streams | None = _Streams(model, _HINTS[dtype])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or another process needs: there PyTorch runs the network."""
        return {**self.__dict__, "_streams": None, "_build": None, "source": self.source}

    @cached_property
    def source(self) -> Backbone:
        """The network in PyTorch, built when it is first needed."""
        source = self._build().eval().requires_grad_(False)
        return source if self._dtype == "float32" else HalfPrecision(source, self._dtype)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def digest(self) -> str:
        """SHA-256 of the weights that were converted; see `Backbone.digest`."""
        return self._weights

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return X and G; see `Backbone.maps`."""
        streams = self._streams
        if streams is None or os.getpid() != self._process or min(images.shape[-2:]) < _LEAST:
            return self.source.maps(images)
        features, class_source = streams.run(images)
        # Most networks have one for both: kept once, as PyTorch does.
        return features, features if torch.equal(features, class_source) else class_source

    def head(self, class_source: Tensor) -> Head:
        """Return the logits and class weights; see `Backbone.head`."""
        if self._linear is None:
            return self.source.head(class_source)
        weight, bias = self._linear
        logits = nn.functional.linear(class_source.mean((2, 3)), weight, bias)
        return logits, lambda class_ids: weight[class_ids]


class _Streams:
    """A compiled network, and the threads that run it, an infer request each."""

    def __init__(self, model: openvino.Model | Path, precision: str) -> None:
        openvino = import_openvino()
        n_streams = max(1, torch.get_num_threads())
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": n_streams,
            "INFERENCE_NUM_THREADS": n_streams,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,  # others may be on these cores
        }
        if isinstance(model, Path):
            kept = model.with_name(_COMPILED)
            whole = _whole(kept)
            try:
                self._compiled = openvino.Core().compile_model(
                    str(model), "CPU", {**options, "CACHE_DIR": str(kept)}
                )
            except RuntimeError:  # damaged
                shutil.rmtree(kept, ignore_errors=True)
                self._compiled = openvino.Core().compile_model(str(model), "CPU", options)
            _note(kept, whole)
        else:
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._threads = ThreadPoolExecutor(n_streams, thread_name_prefix="openvino")
        self._own = threading.local()
        self._requests: list[Any] = []
        _LIVE.add(self)

    def run(self, images: Tensor) -> list[Tensor]:
        """Return both maps of images (B, 3, h, w)."""
        batch = images.detach().to(torch.float32).contiguous()
        made = list(self._threads.map(self._run_one, batch.split(1)))
        return [torch.cat(maps) for maps in zip(*made, strict=True)]

    def _run_one(self, image: Tensor) -> list[Tensor]:
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
            self._requests.append(request)
        request.infer([image.numpy()], share_inputs=True)
        return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in (0, 1)]

    def never_free(self) -> None:
        """Hold what is OpenVINO's for ever: in a fork, freeing it waits for threads not there."""
        for one in (self._compiled, *self._requests):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _whole(kept: Path) -> set[str]:
    """Return the files of a folder of compilations that are as they were written.

    One of another is removed with all: OpenVINO would compute with what it finds.
    """
    try:
        known = json.loads(read_whole(kept.with_suffix(".json"), 2**20))
        whole = {name for name, digest in known.items() if _digest(kept / name) == digest}
        damaged = {file.name for file in kept.iterdir()} - whole
    except (OSError, ValueError, AttributeError, RecursionError):
        whole, damaged = set(), {""}
    if damaged:
        shutil.rmtree(kept, ignore_errors=True)
        return set()
    return whole


def _note(kept: Path, whole: set[str]) -> None:
    with suppress(OSError, ValueError):  # what is not noted is compiled again
        found = sorted(kept.iterdir())
        if {file.name for file in found} != whole:
            digests = {file.name: _digest(file) for file in found}
            write_whole(kept.with_suffix(".json"), json.dumps(digests).encode())


def _digest(file: Path) -> str:
    return hashlib.sha256(read_whole(file, _COMPILED_BYTES)).hexdigest()


_LIVE: weakref.WeakSet[_Streams] = weakref.WeakSet()


def _leave_in_fork() -> None:
    for streams in list(_LIVE):
        streams.never_free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_in_fork)


def computes_in(dtype: str) -> bool:
    """Tell whether OpenVINO computes in a dtype on this processor without imitating it."""
    if dtype == "float32":
        return True
    able = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return dtype == "bfloat16" and "BF16" in able


def convert(source: Backbone) -> openvino.Model:
    """Convert the maps of a network in PyTorch, for images of any size.

    By OpenVINO's front end itself: its `convert_model` reports on its use to its makers.
    """
    openvino = import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.rand(_PROBES[0][0], 3, *_PROBES[0][1:]) * 255
    front_end = FrontEndManager().load_by_framework(framework="pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing, which `misfit` checks
        decoder = TorchScriptPythonDecoder(_Maps(source), example_input=(example,))
        model = front_end.convert(front_end.load(decoder))
    (images,) = model.inputs
    images.get_node().set_element_type(openvino.Type.f32)
    images.get_node().set_partial_shape(openvino.PartialShape([1, 3, -1, -1]))
    model.validate_nodes_and_infer_types()
    return model


@torch.no_grad()
def misfit(converted: Backbone, source: Backbone) -> float:
    """Return by how much maps and logits of two networks differ, in shares of the largest value."""
    worst = 0.0
    for n, height, width in _PROBES:
        generator = torch.Generator().manual_seed(height)
        images = torch.rand((n, 3, height, width), generator=generator) * 255
        one, other = converted(images), source(images)
        for name in ("features", "class_source", "logits"):
            here, there = getattr(one, name), getattr(other, name)
            if here.shape != there.shape:
                return float("inf")
            scale = float(there.abs().max()) or 1.0
            worst = max(worst, float((here - there).abs().max()) / scale)
    return worst


class _Maps(nn.Module):
    """The part that is converted."""

    def __init__(self, source: Backbone) -> None:
        super().__init__()
        self.source = source

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.source.maps(images)
