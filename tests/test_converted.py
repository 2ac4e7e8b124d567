"""Networks run by OpenVINO, and the folder that they are kept in."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_encoders import CHELSEA, COFFEE, ROCKET, SMALL, small

from cwf_milvus.backbones import create_backbone, kept
from cwf_milvus.backbones.converted import Converted
from cwf_milvus.backbones.pooled import PooledClassifier
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.files import cache_folder

if importlib.util.find_spec("openvino") is None:  # imported plainly, it reports on its use
    pytest.skip("needs the extra `openvino`", allow_module_level=True)
TINY = "timm:test_resnet"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder for this test alone."""
    monkeypatch.setenv("CWF_MILVUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of weights: networks with random ones are left to PyTorch."""
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return file


def made(checkpoint, runtime="auto"):
    return create_backbone(TINY, weights=checkpoint, runtime=runtime, device="cpu")


def test_the_default_network_gives_the_same_vectors_by_both_runtimes():
    photos = [CHELSEA, COFFEE, ROCKET]
    one, other = (small(runtime=one, whitening=None) for one in ("openvino", "torch"))
    assert isinstance(one.backbone, Converted)
    assert one.fingerprint == other.fingerprint
    for ours, theirs in zip(one.encode(photos), other.encode(photos), strict=True):
        assert ours.class_ids.tolist() == theirs.class_ids.tolist()
        assert float(ours.descriptor @ theirs.descriptor) > 0.99999
        cosines = (ours.region_vectors * theirs.region_vectors).sum(1)
        assert cosines.min() > 0.99999


def test_a_photo_is_the_same_bit_for_bit_alone_and_in_a_batch(checkpoint):
    network = made(checkpoint)
    images = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8)
    assert torch.equal(network(images).features[1:2], network(images[1:2]).features)


def test_a_network_is_converted_once(own_cache, checkpoint, monkeypatch):
    first = made(checkpoint)
    assert isinstance(first, Converted)
    monkeypatch.setattr(kept, "convert", lambda source: pytest.fail("converted again"))
    again = made(checkpoint)
    images = torch.rand(1, 3, 96, 96) * 255
    assert torch.equal(first(images).logits, again(images).logits)
    assert again.digest() == first.digest() == made(checkpoint, "torch").digest()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("about.json", b"[" * 9000),
        ("about.json", b'{"refused": "", "files": {}}'),
        ("about.json", b'{"about": "{}", "sha256": ""}'),
        ("network.bin", b""),
        ("network.xml", b"<net"),
        ("head.safetensors", b"{}"),
    ],
)
def test_a_damaged_file_is_made_anew(own_cache, checkpoint, file, content):
    made(checkpoint)
    (place,) = own_cache.iterdir()
    whole = {name: (place / name).read_bytes() for name in ("about.json", "network.bin")}
    (place / file).write_bytes(content)
    assert isinstance(made(checkpoint), Converted)
    assert (place / "network.bin").read_bytes() == whole["network.bin"]


def test_facts_that_were_changed_are_made_anew(own_cache, checkpoint):
    stride = made(checkpoint).stride
    (place,) = own_cache.iterdir()
    about = (place / "about.json").read_text()
    (place / "about.json").write_text(about.replace(f'"stride\\": {stride}', '"stride\\": 7'))
    assert (place / "about.json").read_text() != about
    assert made(checkpoint).stride == stride
    assert f'"stride\\": {stride}' in (place / "about.json").read_text()


@pytest.mark.parametrize("file", ["about.json", "network.bin"])
@pytest.mark.parametrize("what", ["pipe", "device", "endless"])
def test_what_is_no_file_in_the_cache_is_never_waited_for(own_cache, checkpoint, file, what):
    made(checkpoint)
    (place,) = own_cache.iterdir()
    if what == "endless":
        os.truncate(place / file, 2**40)
    else:
        (place / file).unlink()
        os.mkfifo(place / file) if what == "pipe" else (place / file).symlink_to("/dev/zero")
    assert isinstance(made(checkpoint), Converted)
    assert (place / file).is_file()
    assert (place / file).stat().st_size < 2**24


def test_a_damaged_compilation_is_made_anew(own_cache, checkpoint):
    images = torch.rand(1, 3, 96, 96) * 255
    before = made(checkpoint)(images).logits
    (place,) = own_cache.iterdir()
    for blob in (place / "compiled").iterdir():
        blob.write_bytes(blob.read_bytes()[:1000])
    assert torch.equal(made(checkpoint)(images).logits, before)


def test_a_compilation_with_another_number_is_made_anew(own_cache, checkpoint):
    images = torch.rand(1, 3, 96, 96) * 255
    before = made(checkpoint)(images).logits
    (place,) = own_cache.iterdir()
    (blob,) = (place / "compiled").iterdir()
    whole = blob.read_bytes()
    for at in range(len(whole) // 2, len(whole) // 2 + 4096, 64):  # of the weights
        whole = whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :]
    blob.write_bytes(whole)
    assert torch.equal(made(checkpoint)(images).logits, before)
    (blob,) = (place / "compiled").iterdir()
    assert blob.read_bytes() != whole


def test_a_folder_that_others_may_write_is_not_read(own_cache, checkpoint):
    made(checkpoint)
    own_cache.chmod(0o777)
    assert cache_folder("networks") is None
    assert isinstance(made(checkpoint), PooledClassifier)


def test_maps_that_differ_leave_the_network_to_pytorch_with_a_word(
    own_cache, checkpoint, monkeypatch
):
    monkeypatch.setattr(kept, "misfit", lambda one, other: 0.5)
    with pytest.warns(UserWarning, match=r"run by PyTorch, not by OpenVINO.*5\.0e-01"):
        assert isinstance(made(checkpoint), PooledClassifier)
    with warnings.catch_warnings():  # once: what was found is kept
        warnings.simplefilter("error")
        assert isinstance(made(checkpoint), PooledClassifier)
    with pytest.raises(SettingsError, match="its maps differ"):
        made(checkpoint, "openvino")


def test_random_weights_stay_with_pytorch_unless_asked_for_otherwise(own_cache):
    assert isinstance(create_backbone(TINY, weights="random", runtime="auto"), PooledClassifier)
    network = create_backbone(TINY, weights="random", runtime="openvino")
    assert isinstance(network, Converted)


def test_class_weights_that_are_gradients_come_from_pytorchs_head():
    name = "timm:test_convnext"
    images = torch.rand(1, 3, 96, 128) * 255
    ids = torch.tensor([[3, 7]])
    one = create_backbone(name, weights="random", runtime="openvino")(images)
    other = create_backbone(name, weights="random")(images)
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        one.class_weights(ids), other.class_weights(ids), rtol=1e-3, atol=1e-5
    )


def test_a_copy_runs_in_pytorch(checkpoint):
    network = made(checkpoint)
    images = torch.rand(1, 3, 96, 96) * 255
    torch.testing.assert_close(
        copy.deepcopy(network)(images).features, network(images).features, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("runtime", ["onnx", None, ""])
def test_an_unknown_runtime_is_refused(runtime):
    with pytest.raises(SettingsError, match="give one of auto, torch, openvino"):
        Encoder("timm:test_resnet", weights="random", runtime=runtime, **SMALL)


def test_a_machine_without_openvino_runs_pytorch_and_says_how_to_get_it(checkpoint, monkeypatch):
    monkeypatch.setattr(kept, "_is_installed", lambda: False)
    assert isinstance(made(checkpoint), PooledClassifier)
    with pytest.raises(SettingsError, match=r"pip install 'cwf-milvus\[openvino\]'"):
        made(checkpoint, "openvino")


def test_the_class_names_of_an_encoder_are_kept_and_damaged_ones_are_not_read(own_cache):
    from cwf_milvus.encode.class_names import keep_class_names, kept_class_names

    fingerprint = "ab" * 32
    keep_class_names(fingerprint, ["a cat", "a dog"])
    assert kept_class_names(fingerprint) == ("a cat", "a dog")
    file = own_cache.parent / "class-names" / f"{fingerprint}.json"
    cut = file.read_bytes().replace(b', "a dog"', b"")
    for damaged in (cut, b"", b"{}", b"[1, 2]", json.dumps(["x"]).encode()[:-1], b"[" * 100_000):
        file.write_bytes(damaged)
        assert kept_class_names(fingerprint) is None
    file.unlink()
    os.mkfifo(file)
    assert kept_class_names(fingerprint) is None
    assert kept_class_names("../" + fingerprint[3:]) is None
    assert kept_class_names("") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_runs_in_pytorch_and_never_hangs(checkpoint):
    network = made(checkpoint)
    images = torch.rand(1, 3, 96, 96) * 255
    expected = network(images).features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: that is what is tried
        child = os.fork()
    if not child:
        same = torch.allclose(network(images).features, expected, rtol=1e-3, atol=1e-4)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_FORKED = """
import os, sys, warnings
import torch
from cwf_milvus.backbones import create_backbone
network = create_backbone("timm:test_resnet", weights=sys.argv[1], runtime="openvino", device="cpu")
network(torch.rand(2, 3, 96, 96) * 255)
warnings.simplefilter("ignore")
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    if sys.argv[2] == "raise":
        raise ValueError("as any program may")
    del network
    sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(("how", "status"), [("raise", "1"), ("exit", "3")])
def test_a_forked_process_that_ends_as_programs_do_ends(checkpoint, how, status):
    forked = [sys.executable, "-c", _FORKED, str(checkpoint), how]
    ended = subprocess.run(forked, capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout.split() == [status], ended.stderr


_WATCHED = """
import os, sys

def heard(event, arguments):
    if event in ("os.fork", "socket.connect", "socket.getaddrinfo"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(7)

sys.addaudithook(heard)
from cwf_milvus.backbones import create_backbone
network = create_backbone("timm:test_resnet", weights=sys.argv[1], runtime="openvino", device="cpu")
assert type(network).__name__ == "Converted" and "openvino" in sys.modules
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.parametrize("time", ["converted", "read"])
def test_openvino_tells_nobody_that_it_is_used(checkpoint, tmp_path_factory, time):
    home = tmp_path_factory.getbasetemp() / "telemetry"
    home.mkdir(exist_ok=True)
    environ = {**os.environ, "HOME": str(home), "CWF_MILVUS_CACHE": str(home / "cache")}
    environ.pop("CI", None)  # under which it would be silent by itself
    watched = [sys.executable, "-c", _WATCHED, str(checkpoint)]
    ended = subprocess.run(watched, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (home / "intel").exists()  # where it keeps a number of this user
