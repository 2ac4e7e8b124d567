"""Certainty: the chance that a hit shows the thing, from its score and the keypoints that agree.

``certainty = 1 / (1 + exp(-(bias + weight · log(score + .025 · log(1 + inliers)))))``: logistic
regression on one number, the squared late interaction raised by the inliers of spatial
verification. Of hits for which no keypoints were looked for the score alone decides, by a curve of
its own.
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

_OF_INLIERS = 0.025  # docs/certainty.md
_LOWEST = 1e-4


@dataclass(frozen=True)
class Curve:
    """A logistic curve of the logarithm of the evidence.

    Attributes:
        bias: of the curve.
        weight: of the logarithm; above 0, so that a better hit is never less certain.
        threshold: the certainty from which PRECISION of the hits are right.
    """

    bias: float
    weight: float
    threshold: float

    def __post_init__(self) -> None:
        """Raise `SettingsError` for numbers that are no such curve."""
        for name, value in vars(self).items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not -99 < value < 99
            ):
                raise SettingsError(f"{name}={value!r:.40} is no number between -99 and 99")
        if self.weight <= 0 or not 0 <= self.threshold <= 1:
            raise SettingsError(
                f"weight={self.weight} is not above 0, or threshold={self.threshold} no certainty"
            )

    def at(self, logarithms: np.ndarray) -> np.ndarray:
        """Return the certainty at logarithms of the evidence, of any shape."""
        # In this form nothing overflows.
        return np.asarray((1 + np.tanh((self.bias + self.weight * logarithms) / 2)) / 2)


@dataclass(frozen=True)
class CertaintyModel:
    """What turns scores and inliers into certainty.

    Attributes:
        origin: what it was fitted on, in words.
        score_alone: for hits for which no keypoints were looked for.
        verified: for hits for which they were; None where there were none to fit it on.
    """

    origin: str
    score_alone: Curve
    verified: Curve | None = None

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
            origin = values.pop("origin")
            if not isinstance(origin, str):
                raise TypeError(f"origin is a {type(origin).__name__}")
            alone = Curve(**values.pop("score_alone"))
            verified = values.pop("verified")
            if values:
                raise ValueError(f"unknown fields {', '.join(values)}")
            # It is shown on terminals, so it must not steer them.
            shown = "".join(filter(str.isprintable, origin))
            return cls(shown, alone, None if verified is None else Curve(**verified))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = "".join(filter(str.isprintable, str(error)))[:200]
            raise SettingsError(
                f"{name} is damaged ({what}): fit it anew with `cwf-milvus calibrate`"
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

    All hits weigh alike: weights for the rarer kind would shift the chance.

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
    alone = _fitted(_evidence(scores, None), right)
    verified = None
    if inliers is not None:
        looked_for = ~np.isnan(inliers)
        if _are_enough(right[looked_for]):
            verified = _fitted(_evidence(scores, inliers)[looked_for], right[looked_for])
    return CertaintyModel(origin, alone, verified)


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
    found = model.score_alone.at(_evidence(scores, None))
    thresholds = np.full(found.shape, model.score_alone.threshold)
    if model.verified is not None and inliers is not None:
        looked_for = ~np.isnan(inliers)
        found[looked_for] = model.verified.at(_evidence(scores, inliers)[looked_for])
        thresholds[looked_for] = model.verified.threshold
    return found, thresholds


def _evidence(scores: np.ndarray, inliers: np.ndarray | None) -> np.ndarray:
    """Return ``log(score + .025 · log(1 + inliers))``, or ``log score``."""
    agreeing = 0.0 if inliers is None else _OF_INLIERS * np.log1p(inliers)
    return np.asarray(np.log(np.maximum(np.asarray(scores, np.float64) + agreeing, _LOWEST)))


def _are_enough(right: np.ndarray) -> bool:
    return bool(min(right.sum(), (~right).sum()) >= FEWEST)


def _fitted(logarithms: np.ndarray, right: np.ndarray) -> Curve:
    from sklearn.linear_model import LogisticRegression  # takes a second, and few fit

    fitted = LogisticRegression().fit(logarithms[:, None], right)
    bias, weight = float(fitted.intercept_[0]), float(fitted.coef_[0, 0])
    if weight <= 0:
        raise SettingsError(
            "the right hits score no higher than the wrong ones: check the ground truth"
        )
    threshold, _ = threshold_at(Curve(bias, weight, 1).at(logarithms), right)
    # Below .5 the thing would be told to be there where it is likelier not.
    return Curve(bias, weight, max(0.5, threshold))
