"""`cwf_milvus.operators.InstanceInsert` as a Towhee operator."""

from cwf_milvus.towhee import InstanceInsert

__all__ = ["InstanceInsert"]
