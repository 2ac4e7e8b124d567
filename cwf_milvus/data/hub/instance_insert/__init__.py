"""The factory of `ops.cwf.instance_insert`, which Towhee calls."""

from .instance_insert import InstanceInsert


def instance_insert(
    uri: str,
    collection: str,
    encoder: str = "efficientnet_lite0",
    device: str | None = None,
) -> InstanceInsert:
    """Return the operator; its arguments are those of `cwf_milvus.operators.InstanceInsert`."""
    return InstanceInsert(uri, collection, encoder, device)
