"""A folder that has another name now: which uris its photos get."""

from __future__ import annotations

import os

from cwf_milvus.errors import CollectionError, quoted
from cwf_milvus.store.names import prefixes
from cwf_milvus.store.photo_rows import PhotoRows


def relocated(
    collection: PhotoRows, old: str | os.PathLike[str], new: str | os.PathLike[str]
) -> dict[str, str]:
    """Return old uri to new, of a photo or of all that are stored under a folder.

    Raises:
        CollectionError: nothing is stored under the old name, or another photo has the new one.
    """
    (uri,), ends = collection.named(old), list(zip(prefixes(old), prefixes(new), strict=False))
    pairs = {uri: ends[0][1].rstrip("/")} if uri in collection.known([uri]) else {}
    for uri in collection.under(old):
        begin, end = next(pair for pair in ends if uri.startswith(pair[0]))
        pairs[uri] = end + uri.removeprefix(begin)
    if not pairs:
        raise CollectionError(
            f"nothing is stored of {quoted(os.fspath(old))} in {collection.name!r}: give the name "
            "that it was indexed under"
        )
    taken = sorted(collection.known(list(pairs.values())).keys() - pairs.keys())
    if taken:
        raise CollectionError(
            f"{quoted(taken[0])} is stored already ({len(taken)} of {len(pairs)} are): remove "
            "these first, or give another new name"
        )
    return pairs
