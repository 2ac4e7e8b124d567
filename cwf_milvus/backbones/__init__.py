"""A classifier seen as the paper's first equation sees it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwf_milvus.backbones.base import Backbone as Backbone
    from cwf_milvus.backbones.base import FeatureMaps as FeatureMaps
    from cwf_milvus.backbones.registry import BackboneInfo as BackboneInfo
    from cwf_milvus.backbones.registry import create_backbone as create_backbone
    from cwf_milvus.backbones.registry import list_backbones as list_backbones

_PLACES = {
    "Backbone": "base",
    "BackboneInfo": "registry",
    "FeatureMaps": "base",
    "create_backbone": "registry",
    "list_backbones": "registry",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: torch takes seconds, `alone` needs none."""
    if name in _PLACES:
        return getattr(import_module(f"cwf_milvus.backbones.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'cwf_milvus.backbones' has no attribute {name!r}")
