"""A classifier as Eq. 1 of the paper sees it: features, class maps and the weights between."""

from cwf_milvus.backbones.base import Backbone, FeatureMaps
from cwf_milvus.backbones.registry import BackboneInfo, create_backbone, list_backbones

__all__ = ["Backbone", "BackboneInfo", "FeatureMaps", "create_backbone", "list_backbones"]
