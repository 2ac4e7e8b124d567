"""What a collection knows of a run's photos: same, changed, or moved here from another name.

A photo is known by the SHA-256 of its bytes. Where a row's own file is gone, or holds another photo
now, and the row's content is met under another name, the photo was moved or renamed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from cwf_milvus.errors import ImageError
from cwf_milvus.index.sharding import Shard
from cwf_milvus.photos.limits import READING
from cwf_milvus.photos.sources import is_gone, local_path, read_bytes, size_of
from cwf_milvus.store.moves import MovableRows
from cwf_milvus.store.verification import damaged_rows

_LOOKUP = 256  # photos that are asked for in one call
_ASIDE = "moving:"  # begins the uri that a row has between two names that changed places


class Standing:
    """What becomes of the photos of a run without looking at them; moves those that were moved.

    Args:
        collection: whose rows are held against the files.
        items: (uri, source) of the run's photos.
        workers: threads that read.
        part: the part of all photos that `items` are; None for all. In a part, photos at new names
            alone take over rows: which of the others changed places is seen by nobody.

    Attributes:
        known: uri to content of the photos that are stored under the uri that they have now.
        same: those of them with the stored bytes, whose rows are whole.
        damaged: those whose rows are not, as far as nothing else is to be done about them.
        moved: those of the same that had another uri before this run.

    Raises:
        StoreError: Milvus failed.
    """

    def __init__(
        self,
        collection: MovableRows,
        items: Sequence[tuple[str, object]],
        workers: int,
        part: Shard | None = None,
    ) -> None:
        collection.end_moves(None if part is None else part.has)
        self.known: dict[str, str] = {}
        self.same: set[str] = set()
        self.damaged: set[str] = set()
        self.moved: set[str] = set()
        if not collection.count():
            return
        for start in range(0, len(items), _LOOKUP):
            some = items[start : start + _LOOKUP]
            self.known |= collection.known([uri for uri, _ in some])
        files = {uri: source for uri, source in items if isinstance(source, str)}
        with ThreadPoolExecutor(workers, thread_name_prefix="cwf-hash") as pool:
            here = _contents(pool, {uri: f for uri, f in files.items() if uri in self.known})
            alike = {uri for uri, content in here.items() if content == self.known[uri]}
            self.damaged = damaged_rows(collection, {*alike, *(self.known.keys() - files.keys())})
            self.same = alike - self.damaged
            changed = here.keys() - alike if part is None else set()
            new = {
                uri: file
                for uri, file in files.items()
                if uri not in self.known and local_path(file) is not None
            }
            if not new and not changed:
                return
            few = len(new) + len(changed) <= _LOOKUP
            contents = {uri: here[uri] for uri in changed} | (_contents(pool, new) if few else {})
            rows = collection.alike(contents.values()) if few else collection.uris()
            free = self._free(collection, rows, changed, {uri for uri, _ in items})
            if not free:
                return
            here = contents if few else contents | _contents(pool, new)
        pairs = _paired(here, free)
        _move(collection, pairs)
        for old in pairs:
            self.known.pop(old, None)
        self.moved = set(pairs.values())
        self.known |= {uri: here[uri] for uri in self.moved}
        self.same |= self.moved

    def _free(
        self,
        collection: MovableRows,
        rows: Iterable[str],
        changed: Iterable[str],
        here: set[str],
    ) -> dict[str, str]:
        """Return uri to content of those of the rows whose photo is not where it was."""
        gone = [uri for uri in rows if uri not in here and (uri.startswith(_ASIDE) or is_gone(uri))]
        found = {uri: self.known[uri] for uri in changed}
        for start in range(0, len(gone), _LOOKUP):
            found |= collection.known(gone[start : start + _LOOKUP])
        return found


def content_of(source: str) -> str:
    """Return the SHA-256 of a file's bytes, in hex; "" for one that cannot be read."""
    try:
        with READING.held(size_of(source)):
            return hashlib.sha256(read_bytes(source)).hexdigest()
    except ImageError:  # reading it again says why
        return ""


def _contents(pool: ThreadPoolExecutor, files: Mapping[str, str]) -> dict[str, str]:
    found = zip(files, pool.map(content_of, files.values()), strict=True)
    return {uri: content for uri, content in found if content}


def _paired(here: Mapping[str, str], free: Mapping[str, str]) -> dict[str, str]:
    """Return old uri to new; of several rows with one content, the one with the file's name."""
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for uri, content in free.items():
        rows[content].append(uri)
    pairs: dict[str, str] = {}
    for uri, content in here.items():
        old = rows[content]
        if old:
            alike = [one for one in old if PurePath(one).name == PurePath(uri).name]
            chosen = (alike or old)[0]
            old.remove(chosen)
            pairs[chosen] = uri
    return pairs


def _move(collection: MovableRows, pairs: Mapping[str, str]) -> None:
    """Move rows in an order in which none is overwritten before it has moved."""
    left = dict(pairs)
    while left:
        ready = {old: new for old, new in left.items() if new not in left}
        if not ready:  # names that changed places in a ring: one steps aside
            old, new = next(iter(left.items()))
            aside = _ASIDE + hashlib.sha256(old.encode()).hexdigest()
            collection.move({old: aside})
            del left[old]
            left[aside] = new
            continue
        collection.move(ready)
        for old in ready:
            del left[old]
