"""Stages that take a query and its hits, and give better hits (docs/reranking.md)."""

from cwf_milvus.method.late_interaction import Interaction, late_interaction
from cwf_milvus.search.online import ClassMatched, Online
from cwf_milvus.search.reranker import Reranker
from cwf_milvus.search.seen_again import Cam
from cwf_milvus.search.spatial import Spatial
from cwf_milvus.search.stage import Context, Stage
from cwf_milvus.search.stored import Classes, Regions

__all__ = [
    "Cam",
    "ClassMatched",
    "Classes",
    "Context",
    "Interaction",
    "Online",
    "Regions",
    "Reranker",
    "Spatial",
    "Stage",
    "late_interaction",
]
