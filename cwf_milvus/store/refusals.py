"""Names, indexes, and whether an encoder and a collection were made for each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cwf_milvus.errors import CollectionError, MismatchError, SettingsError
from cwf_milvus.store.client import METRIC, TOP_K, Store
from cwf_milvus.store.layout import Layout

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    from cwf_milvus.encode.encoder import Encoder

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_FLAT = {"index_type": "FLAT"}
SIDES = ("encoder", "ledger", "classes", "augmented", "graph")
"""What the names of side collections end in: the `suffix` of each `SideCollection`."""


def check_name(name: str) -> None:
    """Raise `SettingsError` for a name that a collection cannot have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingsError(
            f"collection name {name!r}: use letters, digits and underscores, no digit first, at "
            "most 201 of them"
        )
    if name.endswith(tuple(f"_{suffix}" for suffix in SIDES)):
        raise SettingsError(
            f"collection name {name!r}: names ending in {', '.join(f'_{one}' for one in SIDES)} "
            "are those of a collection's own side collections"
        )


def check_exists(store: Store, name: str) -> None:
    """Raise `CollectionError` for a collection that is not there; names those that are."""
    if store.call("has_collection", name):
        return
    names = store.call("list_collections")
    ours = sorted(n for n in names if f"{n}_encoder" in names)
    raise CollectionError(
        f"there is no collection {name!r} in {store.uri}; there "
        + (f"are: {', '.join(ours)}" if ours else "is none made by cwf-milvus: create one first")
    )


def checked_index(index: Mapping[str, Any] | None, is_lite: bool) -> dict[str, Any]:
    """Return the index to make, FLAT for None.

    Raises:
        SettingsError: no type, another metric, or, on Milvus Lite, another type than FLAT.
    """
    kind = dict(index or _FLAT)
    if "index_type" not in kind or kind.get("metric_type", METRIC) != METRIC:
        raise SettingsError(f"index={kind!r}: name an index_type; the metric is {METRIC}")
    if is_lite and kind["index_type"] != "FLAT":
        raise SettingsError(
            f"index={kind!r}: on Milvus Lite only FLAT, which is exact; its HNSW took minutes to "
            "build and found less"
        )
    return kind


def check_schema(store: Store, name: str, layout: Layout) -> None:
    """Raise `MismatchError` where a collection in Milvus is not as its encoder's vectors need."""
    found = store.call("describe_collection", name)
    dims = {
        field["name"]: int(field["params"]["dim"])
        for field in found["fields"]
        if "dim" in field.get("params", {})
    }
    if dims.get("descriptor") != layout.dim:
        raise MismatchError(
            f"the collection {name!r} has descriptors of {dims.get('descriptor')} numbers, its "
            f"encoder gives {layout.dim}"
        )
    missing = set(layout.fields) - layout.beside - {field["name"] for field in found["fields"]}
    if missing:
        raise MismatchError(
            f"the collection {name!r} lacks the fields {', '.join(sorted(missing))}, which its "
            "encoder's vectors need"
        )
    metric = store.index(name, "descriptor").get("metric_type")
    if metric != METRIC:
        raise MismatchError(
            f"the collection {name!r} is indexed with the metric {metric}, its encoder's "
            f"descriptors need {METRIC}"
        )


def checked_descriptors(descriptors: np.ndarray, dim: int, name: str) -> np.ndarray:
    """Return queries' descriptors as Milvus takes them, float32 of shape (Q, d).

    Args:
        descriptors: of shape (Q, d) or (d,).
        dim: d.
        name: the collection's.

    Raises:
        MismatchError: descriptors of another dimension.
        SettingsError: numbers that are not finite, or more queries than Milvus takes.
    """
    data = np.atleast_2d(np.asarray(descriptors, np.float32))
    if data.ndim != 2 or data.shape[1] != dim:
        raise MismatchError(
            f"descriptors of shape {np.shape(descriptors)}: the collection {name!r} holds "
            f"{dim} numbers each"
        )
    if not np.isfinite(data).all():
        raise SettingsError("a query's descriptor has numbers that are not finite")
    if len(data) > TOP_K:
        raise SettingsError(f"{len(data)} queries in one call: Milvus takes {TOP_K}")
    return data


def check_encoder(encoder: Encoder, manifest: Mapping[str, Any], name: str) -> None:
    """Raise `MismatchError` for an encoder that a collection was not made with.

    Args:
        encoder: the encoder.
        manifest: what the collection says of its own.
        name: the collection's name.
    """
    if encoder.fingerprint == manifest["fingerprint"]:
        return
    now, then = _plain(encoder.settings.to_dict()), _plain(manifest["settings"])
    differ = [
        f"{key}={now.get(key)!r} (the collection: {then.get(key)!r})"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
    raise MismatchError(
        f"the encoder's fingerprint is {encoder.fingerprint}, the collection {name!r} was made "
        f"with {manifest['fingerprint']}; "
        + (", ".join(differ) or "their settings are equal, their weights or whitening are not")
        + ": open it without an encoder to use its own"
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }
