"""`cwf_milvus.operators.PcaWhiten` as a Towhee operator."""

from cwf_milvus.towhee import PcaWhiten

__all__ = ["PcaWhiten"]
