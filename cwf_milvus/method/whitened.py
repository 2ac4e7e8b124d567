"""A fitted whitening: PCA's axes and eigenvalues, applied; `method.whitening` fits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.pooling import l2_normalize

Vectors = TypeVar("Vectors", np.ndarray, Tensor)

_TENSORS = ("mean", "components", "explained_variance", "n_samples", "power", "eps")


class Solution(NamedTuple):
    """What a fit found, in float32; see `FittedWhitening`."""

    mean: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray


class FittedWhitening:
    """PCA-whitening of unit vectors: centre, rotate, scale by the eigenvalues, l2-normalise.

    Each principal component is divided by ``max(eigenvalue, eps * largest) ** power``. This much
    needs no scikit-learn, whose import takes as long as torch's.

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
    """

    n_samples_: int
    n_features_in_: int
    _solution: Solution

    def __init__(self, dim: int = 512, *, power: float = 0.5, eps: float = 1e-6) -> None:
        self.dim = dim
        self.power = power
        self.eps = eps

    def transform(self, X: Vectors) -> Vectors:
        """Whiten vectors; safe to call from several threads.

        Args:
            X: of shape (..., K), numpy or torch on any device.

        Returns:
            Unit vectors of shape (..., d), float32, of the same kind and on the same device; an
            all-zero row stays all zero.

        Raises:
            WhiteningError: X has another K than the whitening was fitted on, or nothing was loaded.
            sklearn.exceptions.NotFittedError: of a `Whitening`: nothing was fitted or loaded yet.
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
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
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
            if not tensor.isfinite().all():
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
        whitening._solution = Solution(
            *(tensor.detach().cpu().float().numpy() for tensor in (mean, components, variance))
        )
        if whitening._may_overflow() and not all(
            part.isfinite().all() for part in whitening._map_on(torch.device("cpu"))
        ):
            raise WhiteningError("damaged whitening: its numbers overflow float32")
        return whitening

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = dict(super().__getstate__())  # type: ignore[call-overload]
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

    def _solve(self) -> Solution:
        """Return the components."""
        solution: Solution | None = self.__dict__.get("_solution")
        if solution is None:
            raise WhiteningError(
                "nothing was loaded: make this by from_tensors, or fit a Whitening"
            )
        return solution

    def _may_overflow(self) -> bool:
        """Tell whether the map's numbers are not far below the largest float32, by bounds alone."""
        mean, components, variance = self._solve()
        with np.errstate(all="ignore"):
            floor = self.eps * float(variance.max())
            scale = max(float(variance.min()), floor) ** -self.power if floor > 0 else np.inf
            largest = float(np.abs(components).max()) * scale
            bound = largest * max(1.0, float(np.abs(mean).sum(dtype=np.float64)))
        return not bound < float(np.finfo(np.float32).max) / 2

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
