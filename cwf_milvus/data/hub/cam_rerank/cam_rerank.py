"""`cwf_milvus.operators.CamRerank` as a Towhee operator."""

from cwf_milvus.towhee import CamRerank

__all__ = ["CamRerank"]
