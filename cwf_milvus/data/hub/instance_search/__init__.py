"""The factory of `ops.cwf.instance_search`, which Towhee calls."""

from collections.abc import Sequence

from .instance_search import InstanceSearch


def instance_search(
    uri: str,
    collection: str,
    limit: int = 10,
    filter: str | None = None,
    output_fields: Sequence[str] = (),
    device: str | None = None,
    rerank: str | Sequence[str] | None = "auto",
    expand: str | int | tuple[str, int] | None = "auto",
    candidates: int = 200,
    augmented: bool = False,
    max_pixels: int | None = None,
) -> InstanceSearch:
    """Return the operator; its arguments are those of `cwf_milvus.operators.InstanceSearch`."""
    return InstanceSearch(
        *(uri, collection, limit, filter, output_fields, device),
        rerank=rerank,
        expand=expand,
        candidates=candidates,
        augmented=augmented,
        max_pixels=max_pixels,
    )
