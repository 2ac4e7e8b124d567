"""The photos behind the rows: which are gone from where they were, and which are others now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cwf_milvus.index.indexing import worker_count
from cwf_milvus.index.moved import content_of
from cwf_milvus.photos.sources import is_gone, is_local
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.verification import Originals

_AT_ONCE = 256  # photos whose content is asked for in one call


def look_at_originals(collection: PhotoRows) -> Originals:
    """Read the local file of every row, and compare its bytes with those that were stored.

    Photos of urls, and those that were given as bytes or arrays, are counted and not looked at.

    Raises:
        StoreError: Milvus failed.
    """
    found = Originals()
    uris = collection.uris()
    with ThreadPoolExecutor(worker_count(), thread_name_prefix="cwf-hash") as pool:
        while part := list(islice(uris, _AT_ONCE)):
            stored = collection.known([uri for uri in part if is_local(uri)])
            found.not_local += len(part) - len(stored)
            gone = [uri for uri in stored if is_gone(uri)]
            found.gone += gone
            there = [uri for uri in stored if uri not in set(gone)]
            for uri, content in zip(there, pool.map(content_of, there), strict=True):
                if not content:
                    found.unreadable.append(uri)
                elif content != stored[uri]:
                    found.changed.append(uri)
    return found
