"""Instance search for Milvus with class-weighted convolutional features.

From a box on a query photo to a ranked, explained answer, with no training: Jimenez, Alvarez and
Giro-i-Nieto, "Class-Weighted Convolutional Features for Visual Instance Search", BMVC 2017.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cwf_milvus.answers.answer import Hits as Hits
    from cwf_milvus.answers.hits import Hit as Hit
    from cwf_milvus.collection import InstanceCollection as InstanceCollection
    from cwf_milvus.encode.encoder import Encoder as Encoder
    from cwf_milvus.encode.encoding import Encoding as Encoding
    from cwf_milvus.photos.box import Box as Box
    from cwf_milvus.photos.images import load_image as load_image

_PLACES = {
    "Box": "photos.box",
    "Encoder": "encode.encoder",
    "Encoding": "encode.encoding",
    "Hit": "answers.hits",
    "Hits": "answers.answer",
    "InstanceCollection": "collection",
    "load_image": "photos.images",
}

__all__ = ["__version__", *sorted(_PLACES)]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: torch alone takes seconds."""
    if name in _PLACES:
        return getattr(import_module(f"cwf_milvus.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'cwf_milvus' has no attribute {name!r}")


def _formerly(path: str, now: str) -> None:
    """Let a module be imported by the path that it had; nothing is loaded until it is used."""

    def found(name: str) -> Any:
        if name.startswith("__"):  # `inspect` asks every module, in the middle of imports too
            raise AttributeError(name)
        return getattr(import_module(now), name)

    alias = ModuleType(path)
    alias.__getattr__ = found  # type: ignore[method-assign]
    sys.modules[path] = alias


_formerly("cwf_milvus.images", "cwf_milvus.photos.images")  # where 0.1.0 had load_image
