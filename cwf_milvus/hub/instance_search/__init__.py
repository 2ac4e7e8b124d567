"""The factory of `ops.cwf.instance_search`, which Towhee calls."""

from collections.abc import Sequence
from typing import Any

from .instance_search import InstanceSearch


def instance_search(
    uri: str,
    collection: str,
    limit: int = 10,
    filter: str | None = None,
    output_fields: Sequence[str] = (),
    device: str | None = None,
    **options: Any,
) -> InstanceSearch:
    """Return the operator; its arguments are those of `cwf_milvus.operators.InstanceSearch`."""
    return InstanceSearch(uri, collection, limit, filter, output_fields, device, **options)
