"""An encoder as a whole: its fingerprint; kept, restored bit for bit, and refused when changed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from small_encoders import (
    CHELSEA,
    COFFEE,
    HUBBLE,
    alike,
    crops,
    network_built_once,
    small,
    tiny,
    with_settings,
)

from cwf_milvus.backbones.weights import find_weights, load_state_dict
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.saved import SETTINGS_FILE, WHITENING_FILE
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import CwfError, MismatchError, SettingsError, WeightsError


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    with network_built_once():
        yield


@pytest.fixture(scope="module")
def bare() -> Encoder:
    """The default network without a whitening."""
    return small(whitening=None)


@pytest.fixture(scope="module")
def fitted() -> Encoder:
    """A tiny network with a whitening of its own."""
    return tiny(dim=24).fit(crops(12))


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default network's checkpoint with one layer's weights changed."""
    state = dict(load_state_dict(find_weights("efficientnet_lite0")))
    name = next(name for name, value in state.items() if value.ndim == 4)
    state[name] = state[name] + 0.001
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


# --- the fingerprint -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"n_classes": 15},
        {"n_pooled": 15},
        {"classes": (3, 4)},
        {"descriptor": "both"},
        {"class_share": 0.9},
        {"cam_regions": True},
        {"dim": 23},
        {"class_whiten_power": 0.5},
        {"region_whiten_power": 0.4},
    ],
)
def test_a_setting_after_pooling_changes_the_fingerprint(fitted, change):
    assert with_settings(fitted, **change).fingerprint != fitted.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 192},
        {"class_image_size": 128},
        {"class_image_size": None},
        {"resize": "shortest"},
        {"feature_weighting": "crow"},
        {"region_levels": (1, 2)},
        {"region_channel_weights": False},
        {"n_fit_classes": 1},
        {"paper_compat": True},
    ],
)
def test_a_setting_before_pooling_changes_the_fingerprint(change):
    assert tiny(whitening=None, **change).fingerprint != tiny(whitening=None).fingerprint


def test_network_weights_and_whitening_are_in_the_fingerprint(fitted, bare, other_weights):
    others = [
        fitted,
        tiny(dim=24).fit(crops(13)),
        tiny(whitening=None),
        bare,
        small(whitening=None, weights=other_weights),
    ]
    assert len({encoder.fingerprint for encoder in others}) == 5


def test_what_cannot_change_a_vector_is_not_in_the_fingerprint(fitted, other_weights, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(other_weights.read_bytes())
    a = small(whitening=None, weights=other_weights, batch_size=3)
    b = small(whitening=None, weights=moved, device="cpu")
    assert a.fingerprint == b.fingerprint
    assert len(a.fingerprint) == len(hashlib.sha256().hexdigest())
    assert int(a.fingerprint, 16)


# --- kept and restored ---------------------------------------------------------------------------


def test_a_restored_encoder_gives_the_same_vectors_bit_for_bit(fitted, tmp_path):
    restored = [Encoder.from_state(fitted.state()), Encoder.load(fitted.save(tmp_path / "a/b"))]
    restored.append(Encoder.from_state(restored[0].state()))
    queries = [(CHELSEA, None), (COFFEE, (50, 60, 300, 333)), (HUBBLE, None)]
    expected = fitted.encode_queries(queries)
    for encoder in restored:
        assert encoder.fingerprint == fitted.fingerprint
        assert encoder.settings == fitted.settings
        assert encoder.whitening_origin == "fitted on 12 photos"
        assert all(map(alike, encoder.encode_queries(queries), expected))


@pytest.mark.parametrize(
    "settings",
    [
        {"class_image_size": None, "resize": "shortest", "cam_regions": True},
        {"classes": (9, 5, 7), "region_levels": (1, 4), "descriptor": "both"},
        {"n_classes": sys.maxsize, "feature_weighting": "crow"},
    ],
)
def test_an_encoder_without_whitening_is_restored_too(settings):
    encoder = tiny(whitening=None, **settings)
    state = encoder.state()
    assert list(state) == [SETTINGS_FILE]
    restored = Encoder.from_state(state)
    assert restored.fingerprint == encoder.fingerprint
    assert alike(restored.encode([CHELSEA])[0], encoder.encode([CHELSEA])[0])


def test_a_saved_encoder_is_json_and_safetensors_and_replaces_what_was_there(fitted, tmp_path):
    assert fitted.save(tmp_path) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == [SETTINGS_FILE, WHITENING_FILE]
    about = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert about["fingerprint"] == fitted.fingerprint
    assert about["settings"]["dim"] == 24
    assert Whitenings.from_file(tmp_path).dim == 24
    bare = tiny(whitening=None)
    bare.save(tmp_path)
    assert Encoder.load(tmp_path).fingerprint == bare.fingerprint


def test_restoring_takes_a_batch_size_and_a_device(fitted, tmp_path):
    restored = Encoder.load(fitted.save(tmp_path), batch_size=5, device="cpu")
    assert (restored.batch_size, restored.device.type) == (5, "cpu")


def test_weights_from_a_file_are_found_again_from_another_folder(
    other_weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(other_weights.parent)
    encoder = small(whitening=None, weights=other_weights.name)
    state = encoder.state()
    monkeypatch.chdir(tmp_path)
    assert Encoder.from_state(state).fingerprint == encoder.fingerprint


def test_weights_that_are_gone_are_named_and_may_be_given(other_weights, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(other_weights.read_bytes())
    encoder = small(whitening=None, weights=moved)
    moved.unlink()
    with pytest.raises(WeightsError, match=r"moved\.safetensors"):
        Encoder.from_state(encoder.state(), device="cpu")
    restored = Encoder.from_state(encoder.state(), weights=other_weights)
    assert restored.fingerprint == encoder.fingerprint


def test_other_weights_are_refused_with_both_digests(bare, other_weights):
    with pytest.raises(MismatchError) as caught:
        Encoder.from_state(bare.state(), weights=other_weights)
    theirs = small(whitening=None, weights=other_weights)
    for encoder in (bare, theirs):
        assert encoder.backbone.digest() in str(caught.value)
    assert "pass the original weights with weights=FILE" in str(caught.value)


def test_a_folder_without_an_encoder_or_that_cannot_be_written_is_refused(fitted, tmp_path):
    with pytest.raises(SettingsError, match=r"no encoder in .*: settings\.json is missing"):
        Encoder.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot write the encoder to"):
        fitted.save(tmp_path / "file")


# --- a state from strangers ----------------------------------------------------------------------


def changed(state: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    about = json.loads(state[SETTINGS_FILE])
    for name, value in changes.items():
        if name in about["settings"] and name != "weights":
            about["settings"][name] = value
        else:
            about[name] = value
    return {**state, SETTINGS_FILE: json.dumps(about).encode()}


def test_a_state_without_settings_or_with_damaged_ones_is_refused(fitted):
    whole = fitted.state()
    for data in (b"", b"{", b"\xff", b"[]", b"null", b"{}", b'"settings"', b"[" * 100_000):
        with pytest.raises(SettingsError, match="not the state of an encoder"):
            Encoder.from_state({**whole, SETTINGS_FILE: data})
    with pytest.raises(SettingsError, match="not the state of an encoder"):
        Encoder.from_state({WHITENING_FILE: whole[WHITENING_FILE]})
    for changes in ({"settings": 5}, {"settings": [["dim", 5, 6]]}, {"weights": ["a"]}):
        with pytest.raises(SettingsError, match="not the state of an encoder"):
            Encoder.from_state(changed(whole, **changes))


@pytest.mark.parametrize("key", ["whitening", "weights", "device", "batch_size", "cls", "self", ""])
def test_a_state_cannot_smuggle_in_other_arguments(fitted, key):
    about = json.loads(fitted.state()[SETTINGS_FILE])
    about["settings"][key] = "x"
    with pytest.raises(SettingsError, match="unknown setting"):
        Encoder.from_state({**fitted.state(), SETTINGS_FILE: json.dumps(about).encode()})


def test_a_newer_format_asks_for_an_update(fitted):
    with pytest.raises(SettingsError, match="of format 2, this version reads 1: update"):
        Encoder.from_state(changed(fitted.state(), format=2))


def test_a_changed_setting_is_noticed_by_the_fingerprint(fitted):
    with pytest.raises(MismatchError, match="settings or whitening were changed") as caught:
        Encoder.from_state(changed(fitted.state(), n_classes=15))
    assert fitted.fingerprint in str(caught.value)


def test_a_whitening_that_is_lost_or_exchanged_is_noticed(fitted):
    state = fitted.state()
    with pytest.raises(CwfError):
        Encoder.from_state({SETTINGS_FILE: state[SETTINGS_FILE]})
    other = tiny(dim=24).fit(crops(13)).state()
    with pytest.raises(MismatchError, match="settings or whitening were changed"):
        Encoder.from_state({**state, WHITENING_FILE: other[WHITENING_FILE]})


def test_a_changed_state_gives_an_error_of_ours_or_the_same_encoder(fitted):
    rng = np.random.default_rng(0)
    state = fitted.state()
    outcomes = Counter[str]()
    for i in range(150):
        name = (SETTINGS_FILE, WHITENING_FILE)[i % 2]
        broken = np.frombuffer(state[name], np.uint8).copy()
        end = min(len(broken), 1200)
        broken[rng.integers(0, end, 1 + i % 3)] = rng.integers(0, 256, 1 + i % 3)
        try:
            encoder = Encoder.from_state({**state, name: broken.tobytes()})
        except CwfError as error:
            outcomes[type(error).__name__] += 1
        else:
            assert encoder.fingerprint == fitted.fingerprint
            outcomes["restored"] += 1
    assert outcomes["SettingsError"] > 20
    assert outcomes["WhiteningError"] > 20


def test_hostile_values_of_any_setting_are_refused(fitted):
    hostile = [None, True, -1, 10**30, 1e300, "x", "../../x", [], [[]], {}, [10**30], [-1]]
    state = fitted.state()
    for name, kept in json.loads(state[SETTINGS_FILE])["settings"].items():
        for value in hostile:
            if value != kept:
                with pytest.raises(CwfError):
                    Encoder.from_state(changed(state, **{name: value}))
