"""PCA-whitening: exact, streamed, guarded against too few samples, saved as plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.pooling import l2_normalize

Vectors = TypeVar("Vectors", np.ndarray, Tensor)

SAMPLES_PER_DIMENSION = 4
FEWEST_DIMENSIONS = 8
_ROWS_AT_ONCE = 4096
_TENSORS = ("mean", "components", "explained_variance", "n_samples", "power", "eps")


class ReducedDimensionWarning(UserWarning):
    """A whitening has fewer dimensions than were asked for."""


class _Solution(NamedTuple):
    mean: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray


class Whitening(TransformerMixin, BaseEstimator):
    """PCA-whitening of unit vectors: centre, rotate, scale by the eigenvalues, l2-normalise.

    Each principal component is divided by ``max(eigenvalue, eps * largest) ** power``. The fit is
    exact, from float64 sums that hold K x K numbers however many samples pass through, and is the
    same for one `fit` and for any sequence of `partial_fit`. Signs are scikit-learn's: the largest
    entry of each component is positive.

    Fitted from as few samples as dimensions, a whitening destroys what it whitens. So d needs at
    least 4 samples a dimension: with fewer, d becomes a quarter of the samples, with a
    `ReducedDimensionWarning`.

    Args:
        dim: d, the dimensions to keep.
        power: exponent of the eigenvalue: 0.5 whitens fully (the paper), 0.25 half, 0 only rotates;
            may be set on a fitted whitening, as may eps.
        eps: eigenvalues count as at least this fraction of the largest.

    Attributes:
        mean_: of shape (K,), float32, as all three.
        components_: of shape (d, K), by falling variance.
        explained_variance_: of shape (d,), the eigenvalues, not yet clipped.
        n_samples_: rows fitted on, all-zero ones not counted.
        n_features_in_: K.

    Example:
        >>> whitening = Whitening(dim=128).fit(class_vectors)
        >>> whitened = whitening.transform(class_vectors)  # doctest: +SKIP
    """

    n_samples_: int
    n_features_in_: int

    def __init__(self, dim: int = 512, *, power: float = 0.5, eps: float = 1e-6) -> None:
        self.dim = dim
        self.power = power
        self.eps = eps

    def fit(self, X: Vectors, y: None = None) -> Whitening:
        """Fit to vectors of shape (..., K), forgetting earlier ones; all-zero rows do not count.

        Raises:
            WhiteningError: NaN or infinity, none or too few samples, no variance, or a setting
                that cannot work.
        """
        for name in ("_mean", "_scatter", "_solution", "n_samples_", "n_features_in_"):
            self.__dict__.pop(name, None)
        self.partial_fit(X)
        if not self.n_samples_:
            raise WhiteningError("nothing to fit a whitening on: no vector, or none but zeros")
        self._solve()
        return self

    def partial_fit(self, X: Vectors, y: None = None) -> Whitening:
        """Add vectors of shape (..., K) to the fit; the components follow when they are asked for.

        Raises:
            WhiteningError: NaN or infinity, another K than before, a whitening that was loaded
                (its sums are not kept), or a setting that cannot work.
        """
        self._check_settings()
        if "_solution" in self.__dict__ and "_scatter" not in self.__dict__:
            raise WhiteningError(
                "a loaded whitening cannot be continued, as its sums are not stored: use fit"
            )
        rows = X.reshape(-1, X.shape[-1])
        chunks = [slice(at, at + _ROWS_AT_ONCE) for at in range(0, len(rows), _ROWS_AT_ONCE)]
        for chunk in chunks:
            _check_finite(_float64(rows[chunk]))
        if "_scatter" not in self.__dict__:
            self.n_samples_, self.n_features_in_ = 0, int(rows.shape[1])
            self._mean = np.zeros(self.n_features_in_)
            self._scatter = np.zeros((self.n_features_in_, self.n_features_in_))
        self._check_width(rows.shape[1])
        for chunk in chunks:
            self._accumulate(_float64(rows[chunk]))
        return self

    def transform(self, X: Vectors) -> Vectors:
        """Whiten vectors; safe to call from several threads.

        Args:
            X: of shape (..., K), numpy or torch on any device.

        Returns:
            Unit vectors of shape (..., d), float32, of the same kind and on the same device; an
            all-zero row stays all zero.

        Raises:
            WhiteningError: X has another K than the whitening was fitted on.
            sklearn.exceptions.NotFittedError: nothing was fitted or loaded yet.
        """
        self._solve()
        self._check_width(X.shape[-1])
        if isinstance(X, np.ndarray):
            return self._transform(torch.from_numpy(np.asarray(X, dtype=np.float32))).numpy()
        return self._transform(X.float())

    @property
    def mean_(self) -> np.ndarray:
        """Mean of the fitted rows, of shape (K,)."""
        return self._solve().mean

    @property
    def components_(self) -> np.ndarray:
        """Principal axes, of shape (d, K)."""
        return self._solve().components

    @property
    def explained_variance_(self) -> np.ndarray:
        """Variance along each axis, of shape (d,)."""
        return self._solve().explained_variance

    def to_tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return all that `transform` needs, by name.

        Args:
            dtype: of the components, nearly all of the size; float16 halves it.
        """
        mean, components, variance = self._solve()
        return {
            "mean": torch.from_numpy(mean),
            "components": torch.from_numpy(components).to(dtype),
            "explained_variance": torch.from_numpy(variance),
            "n_samples": torch.tensor(self.n_samples_, dtype=torch.int64),
            "power": torch.tensor(self.power, dtype=torch.float64),
            "eps": torch.tensor(self.eps, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Whitening:
        """Rebuild a whitening from `to_tensors`; float32 ones transform bit for bit alike.

        Raises:
            WhiteningError: a name, shape, dtype or value that no whitening has.
        """
        if set(tensors) != set(_TENSORS):
            raise WhiteningError(
                f"not a whitening: it holds {sorted(tensors)}, not {sorted(_TENSORS)}"
            )
        mean, components, variance, *scalars = (tensors[name] for name in _TENSORS)
        shapes = [tuple(tensor.shape) for tensor in (mean, components, variance, *scalars)]
        expected = [components.shape[1:], components.shape, components.shape[:1], (), (), ()]
        if components.ndim != 2 or not components.numel() or shapes != [*map(tuple, expected)]:
            raise WhiteningError(
                f"damaged whitening: shapes {dict(zip(_TENSORS, shapes, strict=True))} do not fit"
                " together as (K,), (d, K), (d,) and three scalars"
            )
        for name, tensor in tensors.items():
            if tensor.is_floating_point() != (name != "n_samples"):
                raise WhiteningError(f"damaged whitening: {name} is of {tensor.dtype}")
            if not tensor.double().isfinite().all():
                raise WhiteningError(f"damaged whitening: {name} holds NaN or infinity")
        d, k = components.shape
        n_samples = int(scalars[0])
        if d > k or n_samples < 1 or (variance < 0).any() or not (variance > 0).any():
            raise WhiteningError(
                f"damaged whitening: d = {d} of K = {k} from {n_samples} samples, with variances "
                f"from {float(variance.min())} to {float(variance.max())}"
            )
        whitening = cls(d, power=float(scalars[1]), eps=float(scalars[2]))
        whitening._check_settings()
        whitening.n_samples_, whitening.n_features_in_ = n_samples, k
        whitening._solution = _Solution(
            *(tensor.detach().cpu().float().numpy() for tensor in (mean, components, variance))
        )
        if not all(part.isfinite().all() for part in whitening._map_on(torch.device("cpu"))):
            raise WhiteningError("damaged whitening: its numbers overflow float32")
        return whitening

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the whitening as safetensors; `dtype` as in `to_tensors`."""
        save_file(self.to_tensors(dtype), path)

    @classmethod
    def load(cls, path: str | Path) -> Whitening:
        """Read a whitening that `save` wrote. Nothing is unpickled.

        Raises:
            WhiteningError: no such file, not safetensors, or not a whitening.
        """
        try:
            return cls.from_tensors(load_file(path))
        except (OSError, SafetensorError) as error:
            raise WhiteningError(
                f"cannot read a whitening from {str(path)!r}: {error}. Give a file that "
                "Whitening.save wrote"
            ) from error

    def __sklearn_is_fitted__(self) -> bool:
        return "_solution" in self.__dict__ or getattr(self, "n_samples_", 0) > 0

    def __getstate__(self) -> dict[str, object]:
        state = dict(super().__getstate__())
        state.pop("_maps", None)
        return state

    def _check_settings(self) -> None:
        if not isinstance(self.dim, int | np.integer) or self.dim < 1:
            raise WhiteningError(f"dim={self.dim!r}: give a whole number of at least 1")
        if not 0 <= self.power <= 1:
            raise WhiteningError(f"power={self.power!r}: give a number from 0 to 1")
        if not 0 < self.eps < 1:
            raise WhiteningError(f"eps={self.eps!r}: give a fraction between 0 and 1")

    def _check_width(self, width: int) -> None:
        if width != self.n_features_in_:
            raise WhiteningError(
                f"vectors of {width} dimensions met a whitening for {self.n_features_in_}: "
                "was it fitted on another network or layer?"
            )

    def _accumulate(self, rows: np.ndarray) -> None:
        """Merge the mean and scatter of `rows` (n, K) into the running ones (Chan et al. 1979)."""
        rows = rows[rows.any(axis=1)]
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        shift = mean - self._mean
        total = self.n_samples_ + len(rows)
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift * (self.n_samples_ * len(rows) / total))
        self._mean = self._mean + shift * (len(rows) / total)
        self.n_samples_ = total
        self.__dict__.pop("_solution", None)
        self.__dict__.pop("_maps", None)

    def _solve(self) -> _Solution:
        """Find the components, once after each change of the sums."""
        check_is_fitted(self)
        solution: _Solution | None = self.__dict__.get("_solution")
        if solution is not None:
            return solution
        d = self._affordable_dim()
        eigenvalues, eigenvectors = np.linalg.eigh(self._scatter / max(self.n_samples_ - 1, 1))
        variance = eigenvalues[::-1][:d].clip(min=0)
        components = eigenvectors.T[::-1][:d]
        # Of equal vectors only rounding is left of the scatter.
        if variance[0] <= np.finfo(np.float64).eps * np.square(self._mean).sum():
            raise WhiteningError(
                f"the {self.n_samples_} vectors to fit on are all equal: fit on different photos"
            )
        peaks = np.abs(components).argmax(axis=1)
        components = components * np.sign(components[np.arange(d), peaks])[:, None]
        # In one assignment, so that threads see all of it or nothing.
        self._solution = _Solution(
            self._mean.astype(np.float32),
            np.ascontiguousarray(components, dtype=np.float32),
            variance.astype(np.float32),
        )
        return self._solution

    def _affordable_dim(self) -> int:
        n, k = self.n_samples_, self.n_features_in_
        d = min(self.dim, k, n // SAMPLES_PER_DIMENSION)
        if d == self.dim:
            return d
        if d == n // SAMPLES_PER_DIMENSION < min(k, FEWEST_DIMENSIONS):
            raise WhiteningError(
                f"{n} vectors are too few to fit a whitening of {self.dim} dimensions: give at "
                f"least {SAMPLES_PER_DIMENSION * min(self.dim, k)} "
                f"({SAMPLES_PER_DIMENSION} a dimension), or go without whitening"
            )
        reason = (
            f"its vectors have only {k}"
            if d == k
            else f"{n} samples are fewer than {SAMPLES_PER_DIMENSION} a dimension"
        )
        warnings.warn(
            f"whitening reduced from {self.dim} to {d} dimensions: {reason}",
            ReducedDimensionWarning,
            stacklevel=4,
        )
        return d

    def _transform(self, x: Tensor) -> Tensor:
        weight, offset = self._map_on(x.device)
        rows = x.reshape(-1, x.shape[-1])
        whitened = l2_normalize(torch.addmm(offset, rows, weight))
        whitened *= torch.linalg.vector_norm(rows, dim=1, keepdim=True) > 0
        return whitened.reshape(*x.shape[:-1], weight.shape[1])

    def _map_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return W (K, d) and -mean @ W (d,): centring, rotation and scale as one affine map."""
        maps: dict[object, tuple[Tensor, Tensor]] = self.__dict__.setdefault("_maps", {})
        key = device, self.power, self.eps
        if key not in maps:
            mean, components, variance = (part.astype(np.float64) for part in self._solve())
            floor = self.eps * variance.max()
            weight = components.T * np.maximum(variance, floor) ** -self.power
            maps[key] = (
                torch.from_numpy(weight).float().to(device),
                torch.from_numpy(-mean @ weight).float().to(device),
            )
        return maps[key]


def _float64(rows: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(rows, Tensor):
        rows = rows.detach().double().cpu().numpy()
    return np.asarray(rows, dtype=np.float64)


def _check_finite(rows: np.ndarray) -> None:
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise WhiteningError(
            f"{bad} of {len(rows)} vectors to fit on hold NaN or infinity: find the photos or "
            "weights that give them, and leave them out"
        )
