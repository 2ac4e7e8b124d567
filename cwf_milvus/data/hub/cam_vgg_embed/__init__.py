"""The factory of `ops.cwf.cam_vgg_embed`, which Towhee calls."""

from typing import Unpack

from cwf_milvus.encode.settings import FurtherSettings

from .cam_vgg_embed import CamVggEmbed


def cam_vgg_embed(
    model_name: str = "vgg16",
    layer: str | None = None,
    n_classes: int = 64,
    weights: str | None = None,
    device: str | None = None,
    image_size: int | None = None,
    **settings: Unpack[FurtherSettings],
) -> CamVggEmbed:
    """Return the operator; its arguments are those of `cwf_milvus.operators.CamVggEmbed`."""
    return CamVggEmbed(model_name, layer, n_classes, weights, device, image_size, **settings)
