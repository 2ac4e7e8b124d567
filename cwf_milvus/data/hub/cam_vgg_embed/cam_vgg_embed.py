"""`cwf_milvus.operators.CamVggEmbed` as a Towhee operator."""

from cwf_milvus.towhee import CamVggEmbed

__all__ = ["CamVggEmbed"]
