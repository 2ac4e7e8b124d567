"""Which collections of ours a Milvus holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cwf_milvus.errors import CollectionError
from cwf_milvus.store.client import Store
from cwf_milvus.store.sidecar import Sidecar


@dataclass(frozen=True)
class Present:
    """A collection that is there.

    Attributes:
        name: its name.
        photos: how many it holds; None where its encoder is damaged or of a newer version.
        made_with: the network and the dimensions of its vectors, or what is wrong.
    """

    name: str
    photos: int | None
    made_with: str


def present(uri: str | Path, *, token: str | None = None) -> list[Present]:
    """Return the collections that cwf-milvus made, by name; loads none into memory.

    Args:
        uri: as in `InstanceCollection.open`; nothing is made where there is none.
        token: for a server.

    Raises:
        StoreError: Milvus cannot be reached, or refuses.
        CollectionError: there is no such ``.db``.
    """
    store = Store(uri, token=token)
    try:
        names = set(store.call("list_collections"))
        return [_looked_at(store, one) for one in sorted(names) if f"{one}_encoder" in names]
    finally:
        store.close()


def _looked_at(store: Store, name: str) -> Present:
    try:
        settings = Sidecar(store, name).manifest["settings"]
    except CollectionError as error:
        return Present(name, None, str(error))
    stored = store.call("get_collection_stats", name)
    made_with = f"{settings['backbone']}, {settings['dim']} dimensions"
    return Present(name, int(stored["row_count"]), made_with)
