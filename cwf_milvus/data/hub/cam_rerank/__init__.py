"""The factory of `ops.cwf.cam_rerank`, which Towhee calls."""

from collections.abc import Sequence

from .cam_rerank import CamRerank


def cam_rerank(
    uri: str,
    collection: str,
    method: str = "auto",
    expand: int | str = "auto",
    output_fields: Sequence[str] = (),
    device: str | None = None,
) -> CamRerank:
    """Return the operator; its arguments are those of `cwf_milvus.operators.CamRerank`."""
    return CamRerank(uri, collection, method, expand, output_fields, device)
