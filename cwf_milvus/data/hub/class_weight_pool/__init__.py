"""The factory of `ops.cwf.class_weight_pool`, which Towhee calls."""

from collections.abc import Sequence

from .class_weight_pool import ClassWeightPool


def class_weight_pool(
    channel_weights: bool = True,
    feature_weighting: str | None = None,
    region_levels: Sequence[int] = (),
) -> ClassWeightPool:
    """Return the operator; its arguments are those of `cwf_milvus.operators.ClassWeightPool`."""
    return ClassWeightPool(channel_weights, feature_weighting, region_levels)
