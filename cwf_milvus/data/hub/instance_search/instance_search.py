"""`cwf_milvus.operators.InstanceSearch` as a Towhee operator."""

from cwf_milvus.towhee import InstanceSearch

__all__ = ["InstanceSearch"]
