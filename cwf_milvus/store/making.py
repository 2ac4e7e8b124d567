"""Making a collection: the encoder first, then the rows, which bear its mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cwf_milvus.errors import CollectionError, MismatchError
from cwf_milvus.store.class_rows import ClassRows
from cwf_milvus.store.client import Store
from cwf_milvus.store.layout import Layout
from cwf_milvus.store.packing import Precision
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.sidecar import Sidecar

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    from cwf_milvus.encode.encoder import Encoder


def make_rows(
    store: Store,
    name: str,
    encoder: Encoder,
    layout: Layout,
    *,
    class_rows: bool,
    index: Mapping[str, Any],
    exist_ok: bool,
) -> bool:
    """Make a collection with its encoder; False where there is one and `exist_ok`.

    Raises:
        CollectionError: it is there already, or class rows of an earlier one are.
        StoreError: Milvus refused.
        WhiteningError: the encoder has not been fitted.
    """
    if store.call("has_collection", name):
        if exist_ok:
            return False
        raise CollectionError(
            f"the collection {name!r} is in {store.uri} already: open it, or give exist_ok=True"
        )
    about = {"precision": layout.precision, "class_rows": class_rows, "index": dict(index)}
    if class_rows:
        ClassRows(store, name, layout.dim).must_be_free()
    mark = Sidecar.create(store, name, encoder, **about)
    try:
        store.create(name, layout.schema(), "descriptor", index, mark=mark)  # now it is
    except CollectionError:  # another made it meanwhile
        Sidecar.discard(store, name, f"{mark}/")
        if not exist_ok:
            raise
        return False
    return True


def check_made_alike(there: PhotoRows, *, class_rows: bool, precision: Precision | None) -> None:
    """Raise `MismatchError` for a collection that was made otherwise than is asked for now."""
    here = {"class_rows": there.class_rows is not None, "precision": there.layout.precision}
    for option, asked in (("class_rows", class_rows), ("precision", precision)):
        if asked is not None and here[option] != asked:
            raise MismatchError(
                f"the collection {there.name!r} was made with {option}={here[option]!r}, "
                f"{option}={asked!r} was asked for"
            )


def remake_index(store: Store, collection: str, vector: str) -> None:
    """Make the index of a vector field anew, of the same kind.

    Raises:
        StoreError: Milvus failed; opening the collection makes the index that lacks.
    """
    old = store.index(collection, vector)
    kind = {"index_type": old.get("index_type", "FLAT"), "params": old.get("params") or {}}
    store.call("release_collection", collection)
    for name in store.call("list_indexes", collection):
        if store.call("describe_index", collection, name).get("field_name") == vector:
            store.call("drop_index", collection, name)
    store.ensure_index(collection, vector, kind)
    store.load(collection)
