"""`cwf_milvus.operators.ClassWeightPool` as a Towhee operator."""

from cwf_milvus.towhee import ClassWeightPool

__all__ = ["ClassWeightPool"]
