"""Certainty: the chance that a hit shows the thing, from its score and the keypoints that agree.

Logistic regression on the logarithm of the squared late interaction and on the inliers of spatial
verification; where no keypoints are stored, on the score alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from cwf_milvus.errors import SettingsError

FIRST_HITS: Final = 60
"""Hits of a query that a model is fitted on: as many as are verified."""

PRECISION: Final = 0.95
"""Share of right ones among the hits at or above a threshold."""

FEWEST: Final = 10
"""Right hits, and wrong ones, below which nothing can be fitted."""

_LOWEST_SCORE = 1e-4
_MANY_INLIERS = 40
_TERMS = ("log score", "log(1 + inliers)", "min(inliers, 40) / 40")


@dataclass(frozen=True)
class Curve:
    """``certainty = 1 / (1 + exp(-(bias + weights · terms)))``.

    Attributes:
        bias: of the logistic curve.
        weights: of log score, log(1 + inliers) and min(inliers, 40) / 40, or of log score alone;
            none is negative, so that a better hit is never less certain.
        threshold: the certainty at or above which PRECISION of the hits are right.
    """

    bias: float
    weights: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        """Raise `SettingsError` for numbers that are no such curve."""
        numbers = (self.bias, *self.weights, self.threshold)
        if len(self.weights) not in (1, len(_TERMS)) or not all(map(_is_number, numbers)):
            raise SettingsError(
                f"{len(self.weights)} weights, or one that is no number below a million"
            )
        if min(self.weights) < 0 or not 0 <= self.threshold <= 1:
            raise SettingsError("a negative weight, or a threshold that is not from 0 to 1")

    def at(self, terms: np.ndarray) -> np.ndarray:
        """Return the certainty of terms of shape (n, weights)."""
        # The tangent saturates where exp would overflow.
        linear = self.bias + terms @ np.asarray(self.weights)
        return np.asarray((1 + np.tanh(linear / 2)) / 2)


@dataclass(frozen=True)
class CertaintyModel:
    """What turns scores and inliers into certainty.

    Attributes:
        origin: what it was fitted on, in words.
        score_alone: for hits of which no keypoints were looked for.
        verified: for hits of which they were; None where there were none to fit it on.
    """

    origin: str
    score_alone: Curve
    verified: Curve | None = None

    def __post_init__(self) -> None:
        """Raise `SettingsError` for curves of the wrong terms."""
        of_all = len(_TERMS) if self.verified is None else len(self.verified.weights)
        if len(self.score_alone.weights) != 1 or of_all != len(_TERMS):
            raise SettingsError("a curve with the weights of another")

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, name: str = "the certainty model") -> CertaintyModel:
        """Read `to_json` back.

        Raises:
            SettingsError: it is damaged; names it, in one line.
        """
        try:
            values = json.loads(text)
            alone, verified = values["score_alone"], values["verified"]
            origin = values["origin"]
            if not isinstance(origin, str) or set(values) != {"origin", "score_alone", "verified"}:
                raise ValueError("other fields than origin, score_alone and verified")
            return cls(
                "".join(filter(str.isprintable, origin)),  # it is shown on terminals
                _curve(alone),
                None if verified is None else _curve(verified),
            )
        except (ValueError, KeyError, TypeError, RecursionError, SettingsError) as error:
            raise SettingsError(
                f"{name} is damaged ({type(error).__name__}: {str(error)[:200]}): fit it anew with "
                "`cwf-milvus calibrate`"
            ) from error


def certainties(
    scores: np.ndarray, inliers: np.ndarray | None, model: CertaintyModel
) -> np.ndarray:
    """Return the chance that each hit shows the thing, from 0 to 1.

    Args:
        scores: squared late interaction, of shape (H,); NaN where it is not known.
        inliers: of shape (H,), NaN where none were looked for; None for none of any hit.
        model: what it is told by.

    Returns:
        Of shape (H,), NaN where the score is.
    """
    return _told(scores, inliers, model)[0]


def is_found(scores: np.ndarray, inliers: np.ndarray | None, model: CertaintyModel) -> bool:
    """Return whether the certainty of any hit is at or above its threshold; as `certainties`."""
    found, thresholds = _told(scores, inliers, model)
    return bool((found >= thresholds).any())


def fit_certainty(
    scores: np.ndarray, inliers: np.ndarray | None, right: np.ndarray, origin: str
) -> CertaintyModel:
    """Fit a model on hits of which it is known whether they are right.

    Hits are not weighed: weights for the rarer kind would shift the chance. A term whose weight
    would be negative is left out.

    Args:
        scores: squared late interaction, of shape (n,).
        inliers: of shape (n,), NaN where none were looked for; None for none of any hit.
        right: of shape (n,), bool.
        origin: what the hits are, in words.

    Raises:
        SettingsError: fewer than 10 hits that are right, or that are wrong, or scores that do not
            tell them apart.
    """
    right = np.asarray(right, bool)
    if not _are_enough(right):
        raise SettingsError(
            f"{right.sum()} right and {(~right).sum()} wrong hits: at least {FEWEST} of each are "
            "needed to fit certainty; give more queries"
        )
    terms = _terms(np.asarray(scores, np.float64), inliers)
    looked_for = ~np.isnan(terms).any(axis=1) & (inliers is not None)
    return CertaintyModel(
        origin,
        _fitted(terms[:, :1], right),
        _fitted(terms[looked_for], right[looked_for]) if _are_enough(right[looked_for]) else None,
    )


def threshold_at(
    certainty: np.ndarray, right: np.ndarray, precision: float = PRECISION
) -> tuple[float, float]:
    """Return the lowest threshold with a precision, and the share of right hits at or above it.

    Args:
        certainty: of shape (n,).
        right: of shape (n,), bool.
        precision: share of right ones among the hits at or above the threshold.

    Returns:
        1 and 0 where no threshold has it.
    """
    order = np.argsort(-certainty, kind="stable")
    ranked, hits = certainty[order], np.cumsum(right[order])
    last_of_equals = np.append(ranked[1:] < ranked[:-1], True)
    enough = np.flatnonzero((hits >= precision * np.arange(1, len(hits) + 1)) & last_of_equals)
    if not len(enough) or not hits[enough[-1]]:
        return 1.0, 0.0
    return float(ranked[enough[-1]]), float(hits[enough[-1]] / hits[-1])


def _told(
    scores: np.ndarray, inliers: np.ndarray | None, model: CertaintyModel
) -> tuple[np.ndarray, np.ndarray]:
    """Return the certainty of each hit, and the threshold that counts for it."""
    scores = np.asarray(scores, np.float64)
    terms = _terms(scores, inliers)
    found = model.score_alone.at(terms[:, :1])
    thresholds = np.full(len(scores), model.score_alone.threshold)
    if model.verified is not None and inliers is not None:
        looked_for = ~np.isnan(terms).any(axis=1)
        found[looked_for] = model.verified.at(terms[looked_for])
        thresholds[looked_for] = model.verified.threshold
    return found, thresholds


def _terms(scores: np.ndarray, inliers: np.ndarray | None) -> np.ndarray:
    """Return the terms of each hit, of shape (H, 3), or (H, 1) without inliers."""
    logarithms = np.log(np.maximum(scores, _LOWEST_SCORE))
    if inliers is None:
        return logarithms[:, None]
    counts = np.asarray(inliers, np.float64)
    return np.stack(
        [logarithms, np.log1p(counts), np.minimum(counts, _MANY_INLIERS) / _MANY_INLIERS], axis=1
    )


def _are_enough(right: np.ndarray) -> bool:
    return min(right.sum(), (~right).sum()) >= FEWEST


def _fitted(terms: np.ndarray, right: np.ndarray) -> Curve:
    from sklearn.linear_model import LogisticRegression  # takes a second, and few fit

    kept = list(range(terms.shape[1]))
    while kept:
        fitted = LogisticRegression(max_iter=1000).fit(terms[:, kept], right)
        found = fitted.coef_[0]
        if found.min() >= 0:
            break
        del kept[int(found.argmin())]
    if not kept:
        raise SettingsError(
            "the right hits score no higher than the wrong ones: check the ground truth"
        )
    weights = np.zeros(terms.shape[1])
    weights[kept] = found
    bias = float(fitted.intercept_[0])
    curve = Curve(bias, tuple(map(float, weights)), 1.0)
    threshold, _ = threshold_at(curve.at(terms), right)
    # Below .5 the thing would be told to be there where it is likelier not.
    return Curve(bias, curve.weights, max(0.5, threshold))


def _curve(values: dict[str, object]) -> Curve:
    weights = values["weights"]
    if not isinstance(weights, list) or set(values) != {"bias", "weights", "threshold"}:
        raise ValueError("other fields than bias, weights and threshold")
    return Curve(values["bias"], tuple(weights), values["threshold"])  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
