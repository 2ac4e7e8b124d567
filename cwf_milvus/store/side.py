"""Side collections: what a collection keeps in Milvus beside its rows, under ``<name>_SUFFIX``."""

from __future__ import annotations

from typing import ClassVar

from pymilvus import CollectionSchema

from cwf_milvus.store.client import Store


class SideCollection:
    """One of them; to be subclassed, and named in `store.refusals.SIDES`.

    Args:
        store: the connection.
        collection: the main collection's name.

    Attributes:
        suffix: what its name ends in.
        vector: its vector field, without which Milvus has no collection.
    """

    suffix: ClassVar[str]
    vector: ClassVar[str] = "vector"

    def __init__(self, store: Store, collection: str) -> None:
        self.store = store
        self.collection = collection
        self.name = f"{collection}_{self.suffix}"

    def schema(self) -> CollectionSchema:
        """Return its fields."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Tell whether it is there."""
        return bool(self.store.call("has_collection", self.name))

    def create(self) -> None:
        """Load it, made where there is none; what another made meanwhile is taken as it is.

        Raises:
            StoreError: Milvus refused.
        """
        self.store.ensure(self.name, self.schema(), self.vector, {"index_type": "FLAT"})

    def count(self) -> int:
        """Return the number of its rows."""
        return self.store.count(self.name)

    def drop(self) -> bool:
        """Drop it; returns whether it was there."""
        if not self.exists():
            return False
        self.store.call("drop_collection", self.name)
        return True

    def verify(self) -> list[str]:
        """Return what is wrong with it, a line each; [] where all is well."""
        raise NotImplementedError
