"""Stages that take a query and its hits, and give better hits (docs/reranking.md)."""

from cwf_milvus.rerank.anywhere import Reranker
from cwf_milvus.rerank.base import Context, Stage
from cwf_milvus.rerank.cam_regions import Cam
from cwf_milvus.rerank.late_interaction import Interaction, late_interaction
from cwf_milvus.rerank.local import Classes, Regions
from cwf_milvus.rerank.online import ClassMatched, Online

__all__ = [
    "Cam",
    "ClassMatched",
    "Classes",
    "Context",
    "Interaction",
    "Online",
    "Regions",
    "Reranker",
    "Stage",
    "late_interaction",
]
