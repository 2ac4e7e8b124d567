"""PCA-whitening: exact, streamed, guarded against too few samples, saved as plain arrays."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.whitened import FittedWhitening, Solution, Vectors

SAMPLES_PER_DIMENSION = 4
FEWEST_DIMENSIONS = 8
_ROWS_AT_ONCE = 4096


class ReducedDimensionWarning(UserWarning):
    """A whitening has fewer dimensions than were asked for."""


class Whitening(TransformerMixin, FittedWhitening, BaseEstimator):
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

    def _solve(self) -> Solution:
        """Find the components, once after each change of the sums."""
        check_is_fitted(self)
        solution: Solution | None = self.__dict__.get("_solution")
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
        self._solution = Solution(
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
