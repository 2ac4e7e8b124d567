"""The pair of whitenings that an encoder has: kept, checked against its settings, cut, refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from cwf_milvus.encode.settings import EncoderSettings, default_settings
from cwf_milvus.encode.whitenings import Whitenings, fit_conditions
from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.pooling import l2_normalize
from cwf_milvus.method.whitening import Whitening

K, D = 24, 12
SETTINGS = EncoderSettings(dim=D)


def vectors(seed: int, n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.abs(rng.normal(size=(n, K)) @ rng.normal(size=(K, K)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def whitenings() -> Whitenings:
    fitted = [Whitening(D).fit(vectors(seed)) for seed in (0, 1)]
    return Whitenings(fitted[0], fitted[1], "fitted on 25 photos", fit_conditions(SETTINGS))


@pytest.fixture(scope="module")
def used(whitenings: Whitenings) -> Whitenings:
    return whitenings.used_at(SETTINGS)


# --- kept ----------------------------------------------------------------------------------------


def test_a_pair_comes_back_from_bytes_and_whitens_bit_for_bit_alike(used):
    restored = Whitenings.from_bytes(used.to_bytes()).used_at(SETTINGS)
    for kind in ("classes", "regions"):
        rows = vectors(7)
        found = getattr(restored, kind).transform(rows)
        assert np.array_equal(found, getattr(used, kind).transform(rows))
    assert restored.digest == used.digest
    assert restored.origin == "fitted on 25 photos"
    assert restored.fitted_at == fit_conditions(SETTINGS)
    restored.check_fits(SETTINGS)


def test_components_are_kept_in_float16_and_lose_next_to_nothing(whitenings, used):
    tensors = load(used.to_bytes())
    assert tensors["classes.components"].dtype == torch.float16
    rows = vectors(7)
    exact = Whitening.from_tensors(whitenings.classes.to_tensors())
    exact.power = SETTINGS.class_whiten_power
    assert np.abs(exact.transform(rows) - used.classes.transform(rows)).max() < 2e-3


def test_the_digest_tells_apart_arrays_dimensions_and_powers_but_not_origins(whitenings, used):
    others = [
        whitenings.used_at(replace(SETTINGS, dim=D - 1)),
        whitenings.used_at(replace(SETTINGS, class_whiten_power=0.5)),
        whitenings.used_at(replace(SETTINGS, region_whiten_power=0.25)),
        replace(whitenings, regions=whitenings.classes).used_at(SETTINGS),
        replace(whitenings, classes=Whitening(D).fit(vectors(2))).used_at(SETTINGS),
    ]
    assert len({used.digest, *(other.digest for other in others)}) == 6
    assert replace(used, origin="found in the street").digest == used.digest


def test_a_pair_is_read_from_its_file_or_from_the_folder_of_an_encoder(used, tmp_path):
    file = tmp_path / "whitening.safetensors"
    file.write_bytes(used.to_bytes())
    for source in (file, str(file), tmp_path):
        assert Whitenings.from_file(source).digest == used.digest
    with pytest.raises(WhiteningError, match="No such file") as caught:
        Whitenings.from_file(tmp_path / "gone")
    assert repr(str(tmp_path / "gone")) in str(caught.value)


# --- used ----------------------------------------------------------------------------------------


def test_each_kind_of_vector_is_whitened_by_its_own_with_its_own_power(whitenings):
    settings = replace(SETTINGS, class_whiten_power=0.1, region_whiten_power=0.4)
    used = whitenings.used_at(settings)
    assert (used.classes.power, used.regions.power) == (0.1, 0.4)
    rows = vectors(7).astype(np.float64)
    for kind, power in (("classes", 0.1), ("regions", 0.4)):
        fitted = getattr(whitenings, kind)
        rotated = (rows - fitted.mean_) @ fitted.components_.T.astype(np.float16)
        expected = rotated / fitted.explained_variance_**power
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(getattr(used, kind).transform(vectors(7)) - expected).max() < 1e-5


def test_fewer_dimensions_are_a_cut_of_the_leading_ones(whitenings, used):
    cut = whitenings.used_at(replace(SETTINGS, dim=5))
    assert cut.dim == 5
    rows = vectors(7)
    leading = l2_normalize(torch.from_numpy(used.regions.transform(rows)[:, :5]))
    assert np.abs(cut.regions.transform(rows) - leading.numpy()).max() < 1e-5


def test_more_dimensions_than_it_has_are_refused_with_both_numbers(whitenings):
    with pytest.raises(WhiteningError, match=r"dim=13 asked .* of 12 dimensions: .* at most 12"):
        whitenings.check_fits(replace(SETTINGS, dim=13))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", "vgg16"),
        ("layer", "blocks"),
        ("cams_from", "resnet50"),
        ("image_size", 512),
        ("class_image_size", None),
        ("resize", "shortest"),
        ("feature_weighting", "crow"),
        ("region_levels", (1, 2)),
        ("region_channel_weights", False),
        ("n_fit_classes", 1),
        ("paper_compat", True),
    ],
)
def test_a_pair_fitted_on_other_vectors_is_refused_with_both_values(whitenings, name, value):
    with pytest.raises(WhiteningError) as caught:
        whitenings.check_fits(replace(SETTINGS, **{name: value}))
    message = str(caught.value)
    assert f"fitted at {name}={getattr(SETTINGS, name)!r}" in message
    assert f"the encoder has {name}={value!r}" in message
    assert "fitted on 25 photos" in message
    assert "Encoder.fit(photos)" in message


def test_what_comes_after_pooling_may_differ_from_the_fit(whitenings):
    whitenings.check_fits(
        replace(SETTINGS, n_classes=3, n_pooled=1, descriptor="regions", class_whiten_power=0)
    )


# --- the one that ships --------------------------------------------------------------------------


def test_a_whitening_ships_for_the_default_network_at_its_default_settings():
    default = Whitenings.default("efficientnet_lite0")
    default.check_fits(default_settings("efficientnet_lite0"))
    assert default.classes.components_.shape == default.regions.components_.shape
    assert default.classes.n_features_in_ == 1280
    assert min(default.classes.n_samples_, default.regions.n_samples_) >= 4 * default.dim
    assert len(default.to_bytes()) < 6_000_000


def test_a_network_without_one_says_what_to_do_instead():
    with pytest.raises(WhiteningError, match="no whitening ships for 'resnet50'") as caught:
        Whitenings.default("resnet50")
    assert "Encoder.fit(photos)" in str(caught.value)
    assert "whitening=None" in str(caught.value)


# --- hostile bytes -------------------------------------------------------------------------------


def rewritten(used: Whitenings, **changes: torch.Tensor | None) -> bytes:
    tensors = load(used.to_bytes())
    for name, tensor in changes.items():
        kind, _, part = name.partition("_")
        tensors.pop(f"{kind}.{part}")
        if tensor is not None:
            tensors[f"{kind}.{part}"] = tensor
    meta = {"origin": used.origin, "fitted_at": json.dumps(dict(used.fitted_at))}
    return save(tensors, meta)


def refusal(data: bytes) -> str:
    with pytest.raises(WhiteningError) as caught:
        Whitenings.from_bytes(data, name="w.safetensors")
    return str(caught.value)


def test_bytes_that_are_no_whitening_are_refused_by_name(used):
    whole = used.to_bytes()
    for data in (b"", b"x" * 100, b"\xff" * 8, whole[:-1], whole[:500], whole + b"x"):
        assert refusal(data).startswith("w.safetensors is no whitening of cwf-milvus")
    tensors = load(whole)
    for meta in (None, {"origin": "x"}, {"fitted_at": "{}"}):
        assert "is no whitening" in refusal(save(tensors, meta))
    for fitted_at in ("[]", "5", "null", "{", "[" * 100_000):
        assert "is no whitening" in refusal(save(tensors, {"origin": "", "fitted_at": fitted_at}))


def test_parts_that_are_missing_too_many_or_do_not_fit_together_are_refused(used):
    assert "it holds" in refusal(rewritten(used, classes_mean=None))
    assert "damaged whitening: shapes" in refusal(rewritten(used, regions_mean=torch.zeros(K + 1)))
    nan = torch.full((K,), torch.nan)
    assert "mean holds NaN" in refusal(rewritten(used, regions_mean=nan))
    power = torch.tensor(7.0, dtype=torch.float64)
    assert "power=7.0" in refusal(rewritten(used, classes_power=power))
    half = {
        "regions_components": torch.zeros(D // 2, K, dtype=torch.float16),
        "regions_explained_variance": torch.ones(D // 2),
    }
    assert "shapes of its two parts differ" in refusal(rewritten(used, **half))


def test_what_says_nothing_of_its_settings_fits_no_encoder(used):
    data = save(load(used.to_bytes()), {"origin": "unknown", "fitted_at": "{}"})
    with pytest.raises(WhiteningError, match="fitted at backbone=None, the encoder has backbone="):
        Whitenings.from_bytes(data).check_fits(SETTINGS)


def test_the_origin_cannot_steer_a_terminal(used):
    data = replace(used, origin="my\x1b[2J pho\u202etos\n\x07").to_bytes()
    assert Whitenings.from_bytes(data).origin == "my[2J photos"


def test_changed_bytes_raise_nothing_but_whitening_errors_and_never_give_nan(used):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(used.to_bytes(), np.uint8)
    read = 0
    for i in range(400):
        broken = whole.copy()
        end = len(whole) if i % 2 else 1000  # every other time the header alone
        broken[rng.integers(0, end, 3)] = rng.integers(0, 256, 3)
        try:
            found = Whitenings.from_bytes(broken.tobytes()).used_at(SETTINGS)
        except WhiteningError:
            continue
        read += 1
        assert np.isfinite(found.classes.transform(vectors(7, 4))).all()
    assert 0 < read < 400
