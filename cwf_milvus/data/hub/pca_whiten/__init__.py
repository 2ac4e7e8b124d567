"""The factory of `ops.cwf.pca_whiten`, which Towhee calls."""

from typing import Any

from .pca_whiten import PcaWhiten


def pca_whiten(
    source: Any,
    aggregate: bool = True,
) -> PcaWhiten:
    """Return the operator; its arguments are those of `cwf_milvus.operators.PcaWhiten`."""
    return PcaWhiten(source, aggregate)
