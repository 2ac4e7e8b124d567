"""A classifier seen as the paper's first equation sees it."""

from cwf_milvus.backbones.base import Backbone, FeatureMaps
from cwf_milvus.backbones.registry import BackboneInfo, create_backbone, list_backbones

__all__ = ["Backbone", "BackboneInfo", "FeatureMaps", "create_backbone", "list_backbones"]
