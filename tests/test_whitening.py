from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from feature_maps import real_maps, unit
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.cam import class_activation_maps
from cwf_milvus.method.pooling import class_vectors
from cwf_milvus.method.whitened import FittedWhitening
from cwf_milvus.method.whitening import ReducedDimensionWarning, Whitening

PHOTOS = ("chelsea", "coffee", "astronaut", "rocket")


def samples(n: int = 400, k: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors with a mean far from 0 and variances over two decades."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, k)) * np.geomspace(1, 0.1, k) + 2
    rows = rows @ np.linalg.qr(rng.normal(size=(k, k)))[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@cache
def real_class_vectors() -> np.ndarray:
    """120 class vectors of 1280 dimensions: 5 classes of 24 views of real photos."""
    vectors = []
    for photo in PHOTOS:
        for step in (2, 3, 4):
            real = real_maps(photo, step)
            maps = class_activation_maps(real["class_source"], real["weights"])
            vectors.append(class_vectors(real["features"], maps).flatten(0, 1))
    return torch.cat(vectors).numpy()


def reference(fit_on: np.ndarray, rows: np.ndarray, d: int, power: float, eps: float) -> np.ndarray:
    """PCA-whitening in float64 from the definition, row by row."""
    fit_on = fit_on.astype(np.float64)
    mean = fit_on.mean(axis=0)
    covariance = sum(np.outer(row - mean, row - mean) for row in fit_on) / (len(fit_on) - 1)
    eigenvalues, axes = np.linalg.eigh(covariance)
    order = np.argsort(-eigenvalues)[:d]
    eigenvalues, axes = eigenvalues[order], axes[:, order].T
    axes = np.stack([axis * np.sign(axis[np.abs(axis).argmax()]) for axis in axes])
    scale = np.maximum(eigenvalues, eps * eigenvalues[0]) ** -power
    return np.stack([unit(scale * (axes @ (row - mean))) for row in rows.astype(np.float64)])


def align(vectors: np.ndarray, to: np.ndarray) -> np.ndarray:
    return vectors * np.sign((vectors * to).sum(axis=0))


def fitted(d: int = 10, **settings: float) -> Whitening:
    return Whitening(d, **settings).fit(samples())


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_whitening_follows_its_definition(power):
    rows = samples(50, seed=1)
    expected = reference(samples(), rows, 10, power, 1e-6)
    whitened = fitted(10, power=power).transform(rows)
    np.testing.assert_allclose(whitened, expected, atol=1e-5)


def test_whitening_follows_its_definition_on_the_class_vectors_of_real_photos():
    vectors = real_class_vectors()[:, ::5]  # 256 of 1280 channels: the reference is slow
    expected = reference(vectors[:100], vectors, 16, 0.5, 1e-6)
    whitened = Whitening(16).fit(vectors[:100]).transform(vectors)
    np.testing.assert_allclose(whitened, expected, atol=1e-5)


def test_full_whitening_is_scikit_learns_pca_up_to_sign_on_the_class_vectors_of_real_photos():
    vectors = real_class_vectors().astype(np.float64)
    pca = PCA(16, whiten=True, svd_solver="full").fit(vectors)
    whitening = Whitening(16).fit(vectors)
    expected = np.stack([unit(row) for row in pca.transform(vectors)])
    whitened = whitening.transform(vectors)
    np.testing.assert_allclose(align(whitened, expected), expected, atol=1e-5)
    np.testing.assert_allclose(whitening.mean_, pca.mean_, atol=1e-6)
    np.testing.assert_allclose(whitening.explained_variance_, pca.explained_variance_, rtol=1e-5)


def test_whitened_fitting_data_has_equal_variances_and_no_correlation_before_the_l2():
    rows = samples()
    whitening = fitted(12)
    weight = whitening.components_ / np.sqrt(whitening.explained_variance_)[:, None]
    covariance = np.cov(((rows - whitening.mean_) @ weight.T).T)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-3)


def test_components_are_unit_orthogonal_by_falling_variance_with_their_largest_entry_positive():
    whitening = fitted(12)
    components = whitening.components_.astype(np.float64)
    np.testing.assert_allclose(components @ components.T, np.eye(12), atol=1e-6)
    variance = whitening.explained_variance_
    assert (np.diff(variance) <= 0).all()
    peaks = np.abs(components).argmax(axis=1)
    assert (components[np.arange(12), peaks] > 0).all()


def test_eigenvalues_are_clipped_from_below_at_a_fraction_of_the_largest():
    rows = samples()
    rows[:, 5] = rows[:, 4]  # one direction without variance
    whitening = Whitening(24, eps=0.05).fit(rows)
    assert whitening.explained_variance_[-1] < 0.05 * whitening.explained_variance_[0]
    expected = reference(rows, rows[:9], 24, 0.5, 0.05)
    # The direction without variance is arbitrary up to rounding and holds nothing.
    np.testing.assert_allclose(whitening.transform(rows[:9])[:, :23], expected[:, :23], atol=1e-5)


@pytest.mark.parametrize("cuts", [[200], [1, 2, 17], [399], list(range(1, 400, 7))])
def test_any_sequence_of_partial_fits_is_one_fit(cuts):
    rows = samples()
    streamed = Whitening(10)
    for part in np.split(rows, cuts):
        streamed.partial_fit(part)
    whole = Whitening(10).fit(rows)
    assert streamed.n_samples_ == whole.n_samples_ == 400
    np.testing.assert_allclose(streamed.mean_, whole.mean_, atol=1e-7)
    np.testing.assert_allclose(streamed.components_, whole.components_, atol=1e-5)
    np.testing.assert_allclose(streamed.transform(rows), whole.transform(rows), atol=1e-5)


def test_streaming_real_class_vectors_photo_by_photo_is_one_fit():
    vectors = real_class_vectors()
    streamed = Whitening(16)
    for part in np.split(vectors, 12):
        streamed.partial_fit(torch.from_numpy(part))
    whole = Whitening(16).fit(vectors)
    np.testing.assert_allclose(streamed.transform(vectors), whole.transform(vectors), atol=1e-5)


def test_sums_stay_exact_where_the_mean_is_far_larger_than_the_spread():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 12)) * np.arange(12, 0, -1) + 1e6
    streamed = Whitening(6)
    for part in np.split(rows, 8):
        streamed.partial_fit(part)
    variances = PCA(6, svd_solver="full").fit(rows).explained_variance_
    np.testing.assert_allclose(streamed.explained_variance_, variances, rtol=1e-5)


def test_a_partial_fit_after_the_components_were_used_goes_on_from_there():
    rows = samples()
    streamed = Whitening(10).partial_fit(rows[:200])
    before = streamed.transform(rows[:3])
    after = streamed.partial_fit(rows[200:]).transform(rows[:3])
    assert np.abs(before - after).max() > 1e-3
    np.testing.assert_allclose(after, Whitening(10).fit(rows).transform(rows[:3]), atol=1e-5)


def test_fit_forgets_what_was_fitted_before():
    rows = samples()
    again = Whitening(10).fit(samples(seed=7)).fit(rows)
    assert np.array_equal(again.transform(rows), Whitening(10).fit(rows).transform(rows))


def test_a_set_larger_than_one_chunk_is_fitted_whole():
    rows = samples(9001, 10)
    whitening = Whitening(8).fit(rows)
    expected = PCA(8, svd_solver="full").fit(rows.astype(np.float64))
    assert whitening.n_samples_ == 9001
    np.testing.assert_allclose(
        whitening.explained_variance_, expected.explained_variance_, rtol=1e-5
    )


def test_leading_dimensions_are_rows_to_fit_and_are_kept_by_transform():
    rows = samples()
    stacked = Whitening(10).fit(torch.from_numpy(rows).view(10, 40, 24))
    flat = Whitening(10).fit(rows)
    whitened = stacked.transform(rows.reshape(5, 8, 10, 24))
    assert whitened.shape == (5, 8, 10, 10)
    np.testing.assert_allclose(whitened.reshape(-1, 10), flat.transform(rows), atol=1e-5)
    assert flat.transform(rows[0]).shape == (10,)
    assert flat.transform(rows[:0]).shape == (0, 10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_gives_numpy_out_as_float32(dtype):
    whitened = fitted().transform(samples(5).astype(dtype))
    assert type(whitened) is np.ndarray
    assert whitened.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_in_gives_torch_out_as_float32_with_the_same_values(dtype):
    rows = torch.from_numpy(samples(5)).to(dtype)
    whitened = fitted().transform(rows)
    assert whitened.dtype == torch.float32
    expected = fitted().transform(rows.double().numpy())
    np.testing.assert_allclose(whitened.numpy(), expected, atol=1e-6)


def test_whitened_vectors_are_unit_and_zero_rows_stay_exactly_zero():
    rows = samples(6)
    rows[2] = 0
    whitened = fitted().transform(rows)
    lengths = np.linalg.norm(whitened, axis=1)
    np.testing.assert_allclose(lengths[[0, 1, 3, 4, 5]], 1, atol=1e-6)
    assert not whitened[2].any()


def test_zero_rows_do_not_count_in_a_fit():
    rows = samples()
    padded = np.insert(rows, [0, 100, 400], 0, axis=0)
    whitening = Whitening(10).fit(padded)
    assert whitening.n_samples_ == 400
    np.testing.assert_allclose(whitening.mean_, fitted().mean_, atol=1e-7)


def test_transform_leaves_its_input_as_it_was():
    rows = torch.from_numpy(samples(6))
    before = rows.clone()
    fitted().transform(rows)
    assert torch.equal(rows, before)


def test_too_few_samples_reduce_the_dimension_to_a_quarter_of_them_and_say_so():
    with pytest.warns(ReducedDimensionWarning, match="from 20 to 10 .* 40 samples"):
        whitening = Whitening(20).fit(samples(40))
    assert whitening.transform(samples(3)).shape == (3, 10)
    assert whitening.explained_variance_.shape == (10,)


def test_streamed_samples_count_together_before_the_dimension_is_reduced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whitening = Whitening(20).partial_fit(samples(40)).partial_fit(samples(40, seed=1))
        assert whitening.components_.shape == (20, 24)


def test_exactly_four_samples_a_dimension_are_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Whitening(10).fit(samples(40)).components_.shape == (10, 24)


def test_a_reduction_below_eight_dimensions_is_refused_with_both_numbers():
    with pytest.raises(WhiteningError, match=r"31 vectors are too few .* 20 dimensions.* 80 "):
        Whitening(20).fit(samples(31))


def test_few_samples_suffice_for_as_few_dimensions_as_they_can_carry():
    assert Whitening(4).fit(samples(16)).components_.shape == (4, 24)


def test_more_dimensions_than_the_vectors_have_become_theirs_with_a_warning():
    with pytest.warns(ReducedDimensionWarning, match="from 512 to 24 .* only 24"):
        whitening = Whitening(512).fit(samples())
    assert whitening.components_.shape == (24, 24)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_with_nan_or_infinity_are_refused_and_change_nothing(value):
    rows = samples()
    whitening = Whitening(10).partial_fit(rows)
    bad = samples(8, seed=2)
    bad[3, 7] = value
    with pytest.raises(WhiteningError, match=r"1 of 8 vectors .* NaN or infinity"):
        whitening.partial_fit(bad)
    assert whitening.n_samples_ == 400
    assert np.array_equal(whitening.transform(rows), fitted().transform(rows))


def test_equal_vectors_are_refused():
    with pytest.raises(WhiteningError, match="400 vectors to fit on are all equal"):
        Whitening(10).fit(np.repeat(samples(1), 400, axis=0))


@pytest.mark.parametrize("rows", [400, 0])
def test_nothing_but_zero_rows_or_no_row_at_all_is_refused(rows):
    with pytest.raises(WhiteningError, match="nothing to fit"):
        Whitening(10).fit(np.zeros((rows, 24)))


def test_vectors_of_another_dimension_are_refused_with_both_numbers():
    with pytest.raises(WhiteningError, match=r"25 dimensions .* for 24"):
        fitted().transform(np.ones((3, 25), dtype=np.float32))
    with pytest.raises(WhiteningError, match=r"25 dimensions .* for 24"):
        fitted().partial_fit(np.ones((3, 25), dtype=np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"dim": 2.5}, "dim=2.5"),
        ({"power": -0.1}, "power=-0.1"),
        ({"power": float("nan")}, "power=nan"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": 1.0}, "eps=1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_value(settings, message):
    with pytest.raises(WhiteningError, match=message):
        Whitening(**settings).fit(samples())


def test_transform_before_a_fit_is_scikit_learns_not_fitted_error():
    with pytest.raises(NotFittedError):
        Whitening(10).transform(samples(3))


def test_it_is_a_scikit_learn_estimator():
    whitening = fitted(10, power=0.25)
    assert clone(whitening).get_params() == {"dim": 10, "power": 0.25, "eps": 1e-6}
    with pytest.raises(NotFittedError):
        clone(whitening).transform(samples(3))
    rows = samples()
    assert np.array_equal(Whitening(10).fit_transform(rows), fitted().transform(rows))


def test_copies_transform_alike():
    whitening = fitted()
    expected = whitening.transform(samples(5))
    for other in (copy.deepcopy(whitening), pickle.loads(pickle.dumps(whitening))):
        assert np.array_equal(other.transform(samples(5)), expected)


def test_the_power_of_a_fitted_whitening_can_be_set():
    rows = samples(5)
    whitening = fitted(10, power=0.5)
    whitening.transform(rows)
    halved = whitening.set_params(power=0.25).transform(rows)
    assert np.array_equal(halved, fitted(10, power=0.25).transform(rows))


def test_threads_that_transform_at_once_all_get_the_same_vectors():
    whitening = Whitening(10).partial_fit(samples())  # not solved yet
    rows = torch.from_numpy(samples(64, seed=3))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(whitening.transform, [rows] * 32))
    expected = fitted().transform(rows)
    assert all(torch.allclose(result, expected, atol=1e-6) for result in results)


def test_a_saved_whitening_transforms_bit_for_bit_alike(tmp_path):
    vectors = real_class_vectors()
    whitening = Whitening(16, power=0.25, eps=1e-4).fit(vectors)
    whitening.save(tmp_path / "whitening.safetensors")
    loaded = Whitening.load(tmp_path / "whitening.safetensors")
    assert np.array_equal(loaded.transform(vectors), whitening.transform(vectors))
    assert loaded.get_params() == {"dim": 16, "power": 0.25, "eps": 1e-4}
    assert loaded.n_samples_ == 120
    assert loaded.n_features_in_ == 1280


def test_float16_halves_the_file_and_moves_real_vectors_by_little(tmp_path):
    vectors = real_class_vectors()
    whitening = Whitening(24).fit(vectors)
    whitening.save(tmp_path / "full")
    whitening.save(tmp_path / "half", dtype=torch.float16)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    half = Whitening.load(tmp_path / "half").transform(vectors)
    assert (half * whitening.transform(vectors)).sum(axis=1).min() > 0.9999


def test_a_loaded_whitening_can_be_fitted_anew_but_not_continued(tmp_path):
    fitted().save(tmp_path / "w")
    loaded = Whitening.load(tmp_path / "w")
    with pytest.raises(WhiteningError, match="cannot be continued"):
        loaded.partial_fit(samples())
    rows = samples(seed=5)
    assert np.array_equal(loaded.fit(rows).transform(rows), Whitening(10).fit(rows).transform(rows))


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WhiteningError, match=r"w\.safetensors"):
        Whitening.load(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(WhiteningError, match="nowhere"):
        Whitening.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("components", torch.ones(10), "shapes"),
        ("components", torch.ones(10, 23), "shapes"),
        ("components", torch.ones(0, 24), "shapes"),
        ("components", torch.ones(10, 24, dtype=torch.int32), "int32"),
        ("components", torch.full((10, 24), float("nan")), "NaN or infinity"),
        ("components", torch.full((10, 24), 1e38), "overflow"),
        ("mean", torch.full((24,), float("inf")), "mean holds NaN or infinity"),
        ("mean", torch.ones(25), "shapes"),
        ("explained_variance", torch.ones(9), "shapes"),
        ("explained_variance", torch.zeros(10), "variances"),
        ("explained_variance", -torch.ones(10), "variances"),
        ("explained_variance", torch.full((10,), float("nan")), "NaN"),
        ("n_samples", torch.tensor(0), "0 samples"),
        ("n_samples", torch.tensor([3, 4]), "shapes"),
        ("n_samples", torch.tensor(4.5), "n_samples"),
        ("power", torch.tensor(7.0), "power"),
        ("power", torch.tensor(float("nan")), "NaN"),
        ("eps", torch.tensor(-1.0), "eps"),
    ],
)
def test_a_file_with_a_wrong_shape_dtype_or_value_is_refused(tmp_path, name, value, message):
    save_file({**fitted().to_tensors(), name: value}, tmp_path / "w")
    with pytest.raises(WhiteningError, match=message):
        Whitening.load(tmp_path / "w")


def test_a_file_with_more_dimensions_than_its_vectors_have_is_refused():
    tensors = fitted().to_tensors()
    tensors |= {"components": torch.ones(25, 24), "explained_variance": torch.ones(25)}
    with pytest.raises(WhiteningError, match="d = 25 of K = 24"):
        Whitening.from_tensors(tensors)


@pytest.mark.parametrize("name", ["mean", "power"])
def test_a_file_without_one_of_the_arrays_or_with_another_is_refused(name):
    tensors = fitted().to_tensors()
    with pytest.raises(WhiteningError, match="not a whitening"):
        Whitening.from_tensors({**tensors, "more": torch.ones(1)})
    del tensors[name]
    with pytest.raises(WhiteningError, match="not a whitening"):
        Whitening.from_tensors(tensors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_vectors_on_a_gpu_stay_there_and_come_out_the_same():
    rows = torch.from_numpy(samples(64, seed=3))
    whitened = fitted().transform(rows.cuda())
    assert whitened.is_cuda
    assert torch.allclose(whitened.cpu(), fitted().transform(rows), atol=1e-5)
    on_gpu = Whitening(10).fit(torch.from_numpy(samples()).cuda())
    assert np.array_equal(on_gpu.components_, fitted().components_)


def test_a_whitening_of_which_nothing_was_loaded_says_so() -> None:
    with pytest.raises(WhiteningError, match="nothing was loaded"):
        FittedWhitening(5).transform(np.zeros((2, 7), np.float32))
