"""Connecting to Milvus, Lite or a server, with its limits kept and its errors in our words."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pymilvus import CollectionSchema, MilvusClient

from cwf_milvus.errors import CollectionError, FilterError, SettingsError, StoreError
from cwf_milvus.store.answers import MILVUS_ERRORS, advice, is_released, is_unreachable, words_of
from cwf_milvus.store.filters import is_storable, one_of, quoted
from cwf_milvus.store.lite import (
    CONNECT_SECONDS,
    checked_path,
    embedded_rows,
    open_lite,
    release_lite,
)
from cwf_milvus.store.server import checked_address, until_answered

TOP_K = 16_384  # a server's limit on the rows of an answer, and on the queries of a call
MESSAGE_BYTES = 48 * 2**20  # a server takes and gives 64 MiB
LOAD_SECONDS = 600.0
METRIC = "IP"
_AT_ONCE = 1000  # primary keys named in one call
_MARK = "cwf_milvus.mark"  # the property of a collection that says which creation made it
_creating = threading.RLock()  # Milvus Lite looks whether there is one and makes it in two steps
_Row = dict[str, Any]


class Store:
    """A connection to one Milvus.

    Args:
        uri: a path ending in ``.db`` (Milvus Lite), or ``http(s)://host:port``.
        token: for a server; in no message.
        timeout: seconds that one call to a server may take; an attribute, to be changed at will.
        make: make the ``.db`` and its parent folders where they are missing.

    Raises:
        StoreError: it cannot be reached or opened; says why, where that is known.
        CollectionError: there is no such ``.db``, and `make` is false.
    """

    wait: float = 0.0
    """Seconds that a call waits on for a server, after `timeout`; of all connections, or of one."""

    def __init__(
        self,
        uri: str | Path,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        make: bool = False,
    ) -> None:
        self.is_lite = not str(uri).startswith(("http://", "https://"))
        self.uri = str(uri) if self.is_lite else checked_address(str(uri))
        self._secrets = [token] if token else []
        self.timeout = LOAD_SECONDS if self.is_lite else timeout
        self._broken: str | None = None
        self._process = os.getpid()
        self._lite_path: str | None = None
        self._client: MilvusClient | None = None
        if self.is_lite:
            self._lite_path = checked_path(uri, make)
            self._client = open_lite(self._lite_path, self.uri)
            return
        try:
            self._client = MilvusClient(
                str(uri),
                token=token or "",
                timeout=CONNECT_SECONDS,
                dedicated=True,
                grpc_options={"grpc.max_reconnect_backoff_ms": 2000},  # it may come back soon
            )
        except (*MILVUS_ERRORS, ValueError) as error:
            raise self._failure("connecting", error) from error

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def close(self) -> None:
        """Close the connection; the last one to a ``.db`` lets another process open it."""
        client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            client.close()
            if self._lite_path is not None:
                release_lite(self._lite_path)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the `MilvusClient`, with a time limit.

        A collection that somebody released is loaded, and asked once again.

        Raises:
            StoreError: Milvus refused, failed or did not answer in time.
        """
        if self._process != os.getpid():
            raise StoreError(
                f"the connection to {self.uri} was opened in another process, of which this one is "
                "a fork: open the collection here anew"
            )
        if self._client is None:
            raise StoreError(f"the connection to {self.uri} is closed: open the collection again")
        client, called = self._client, getattr(self._client, method)

        def ask(timeout: float) -> Any:
            try:
                return called(*args, **{**options, "timeout": timeout})
            except MILVUS_ERRORS as error:
                if not args or not is_released(words_of(error)):
                    raise
                client.load_collection(args[0], timeout=LOAD_SECONDS)
                return called(*args, **{**options, "timeout": timeout})

        try:
            return until_answered(
                ask,
                self.uri,
                timeout=options.get("timeout", self.timeout),
                wait=0.0 if self.is_lite else self.wait,
            )
        except (*MILVUS_ERRORS, OSError) as error:
            raise self._failure(method.replace("_", " "), error) from error

    def create(
        self,
        collection: str,
        schema: CollectionSchema,
        vector: str,
        index: Mapping[str, Any],
        *,
        mark: str | None = None,
    ) -> None:
        """Create a collection with an index for inner products, and load it.

        Of two programs that create one name at once, one makes it and the other is refused: the
        one that finds its own mark in the collection has made it. A server takes a second creation
        that is alike for the first one's, without a word.

        Args:
            collection: its name.
            schema: its fields.
            vector: the field to index.
            index: `index_type` and its parameters.
            mark: what this creation is known by; None for a new one.

        Raises:
            CollectionError: it is there already; nothing of it is touched.
            StoreError: Milvus refused; nothing of what this call made is left.
        """
        mark = mark or new_mark()
        try:
            with _creating:
                self.call(
                    "create_collection",
                    collection,
                    schema=schema,
                    consistency_level="Strong",
                    properties={_MARK: mark},
                )
            self._check_made(collection, mark)
            self.ensure_index(collection, vector, index)
            self.load(collection)
        except StoreError:
            self._check_made(collection, mark)
            with contextlib.suppress(StoreError):
                self.call("drop_collection", collection)
            raise

    def ensure(
        self, collection: str, schema: CollectionSchema, vector: str, index: Mapping[str, Any]
    ) -> None:
        """Load a collection, made by `create` where there is none; for those that are shared.

        Raises:
            StoreError: Milvus refused.
        """
        if not self.call("has_collection", collection):
            with contextlib.suppress(CollectionError):  # made meanwhile by another
                return self.create(collection, schema, vector, index)
        self.ensure_index(collection, vector, index)
        return self.load(collection)

    def ensure_index(self, collection: str, vector: str, index: Mapping[str, Any]) -> None:
        """Index a vector field for inner products unless it is, as after a killed creation."""
        params = MilvusClient.prepare_index_params()
        params.add_index(vector, **{"metric_type": METRIC, **index})
        with _creating:
            if not self.index(collection, vector):
                # pymilvus would sleep half a second for an index of nothing
                self.call("create_index", collection, params, sync=False)

    @property
    def place(self) -> str:
        """Which Milvus this is: the real path of a ``.db``, or an address."""
        return self._lite_path or self.uri

    def name_of(self, collection: str) -> str:
        """Return the name of a collection that may be named by an alias."""
        about = self.call("describe_collection", collection)
        return str(about.get("collection_name") or collection)

    def mark_of(self, collection: str) -> str:
        """Return what the creation of a collection is known by; "" for one without a mark."""
        about = self.call("describe_collection", collection)
        return str(dict(about.get("properties") or {}).get(_MARK, ""))

    def _check_made(self, collection: str, mark: str) -> None:
        """Raise `CollectionError` for a collection that is there and that another call made."""
        if self.call("has_collection", collection) and self.mark_of(collection) != mark:
            raise CollectionError(
                f"the collection {collection!r} is in {self.uri} already: open it, or give "
                "exist_ok=True"
            )

    def load(self, collection: str) -> None:
        """Load a collection, which must be done before anything is read from it."""
        self.call("load_collection", collection, timeout=LOAD_SECONDS)

    def index(self, collection: str, field: str) -> dict[str, Any]:
        """Return how a vector field is indexed, `metric_type` among it; {} for no index."""
        for name in self.call("list_indexes", collection):
            found = self.call("describe_index", collection, name)
            if found and found.get("field_name") == field:
                return dict(found)
        return {}

    def write(self, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Upsert rows whose primary keys differ, in one call: all of them or none.

        Raises:
            StoreError: Milvus failed; on Lite nothing is written from then on.
        """
        if self._broken:
            raise StoreError(
                f"an earlier write to {self.uri} failed half-way ({self._broken}): close the "
                "collection, open it again, and go on from there"
            )
        # Lite's upsert would keep fields of the old row that the new one lacks; its insert
        # replaces the row, as a server's upsert does.
        method = "insert" if self.is_lite else "upsert"
        try:
            self.call(method, collection, list(rows))
        except StoreError as error:
            if self.is_lite:  # what follows a torn record in its log would be lost unseen
                self._broken = words_of(error.__cause__ or error)
            raise

    def fetch(
        self,
        collection: str,
        key: str,
        ids: Sequence[str],
        fields: Sequence[str],
        *,
        row_bytes: int = 1024,
        consistency: str = "Strong",
        filter: str | None = None,
    ) -> dict[str, _Row]:
        """Return the rows with these primary keys, by key; missing ones are left out.

        Args:
            collection: its name.
            key: the primary key's field.
            ids: keys; ones that Milvus cannot hold are missing.
            fields: what to fetch of a row.
            row_bytes: about how large a row of these fields is.
            consistency: "Strong" sees every write before the call, "Session" our own.
            filter: what else a row must be, in Milvus' filter language.
        """
        also = f"({filter}) and " if filter and filter.strip() else ""
        found: dict[str, _Row] = {}
        asked = [one for one in dict.fromkeys(ids) if is_storable(one)]
        at_once = max(1, min(_AT_ONCE, MESSAGE_BYTES // row_bytes))
        for start in range(0, len(asked), at_once):
            rows = self.call(
                "query",
                collection,
                filter=also + one_of(key, asked[start : start + at_once]),
                output_fields=[key, *fields],
                consistency_level=consistency,
            )
            found.update((row[key], row) for row in rows)
        return found

    def fetch_vectors(
        self,
        collection: str,
        key: str,
        ids: Sequence[str],
        fields: Sequence[str],
        *,
        row_bytes: int,
    ) -> dict[str, _Row]:
        """Return rows as `fetch` does; those of Milvus Lite in a quarter of the time.

        They have every write of ours before the call.

        Args:
            collection: its name.
            key: the primary key's field.
            ids: keys; ones that Milvus cannot hold are missing.
            fields: texts and float vectors alone, which `embedded_rows` gives as `fetch` does.
            row_bytes: about how large a row of these fields is.

        Raises:
            StoreError: Milvus failed, or the connection is closed.
        """
        if self._lite_path is not None and self._client is not None:
            asked = [one for one in dict.fromkeys(ids) if is_storable(one)]
            rows = embedded_rows(self._lite_path, collection, asked, [key, *fields])
            if rows is not None:
                return {row[key]: row for row in rows}
        return self.fetch(collection, key, ids, fields, row_bytes=row_bytes, consistency="Session")

    def scan(self, collection: str, key: str, fields: Sequence[str] = ()) -> Iterator[_Row]:
        """Yield every row of a collection in the order of its primary keys.

        pymilvus' own query_iterator fails on keys with quotes in them.
        """
        after = ""
        while True:
            rows = self.call(
                "query",
                collection,
                filter=after,
                output_fields=[key, *fields],
                limit=TOP_K,
                iterator="True",  # asks for the order of the keys
            )
            if not rows:
                return
            yield from rows
            after = f"{key} > {quoted(rows[-1][key])}"

    def delete(self, collection: str, key: str, values: Sequence[str]) -> None:
        """Delete the rows whose field `key` has one of these values."""
        asked = [one for one in dict.fromkeys(values) if is_storable(one)]
        for start in range(0, len(asked), _AT_ONCE):
            self.call("delete", collection, filter=one_of(key, asked[start : start + _AT_ONCE]))

    def count(self, collection: str) -> int:
        """Return the number of rows."""
        rows = self.call(
            "query",
            collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(rows[0]["count(*)"])

    def search(self, collection: str, filter: str | None, **options: Any) -> Any:
        """Call `MilvusClient.search` with the user's filter, consistent with our own writes.

        Raises:
            FilterError: the filter was refused; quotes it, and Milvus' words.
            StoreError: Milvus failed for another reason.
        """
        if filter is not None and not isinstance(filter, str):
            raise FilterError(f"filter={filter!r}: give a Milvus filter expression as text")
        asked = (filter or "").strip()
        options = {"consistency_level": "Session", **options}
        try:
            return self.call("search", collection, filter=asked, **options)
        except StoreError as error:
            if not asked or is_unreachable(words_of(error.__cause__)):
                raise
            self.call("search", collection, filter="", **{**options, "limit": 1})
            raise FilterError(
                f"Milvus refused the filter {asked!r}: {words_of(error.__cause__)}. Its syntax is "
                "at https://milvus.io/docs/boolean.md"
            ) from error

    def _failure(self, doing: str, error: BaseException) -> StoreError:
        words = words_of(error)
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return StoreError(
            f"Milvus at {self.uri} failed in {doing} ({words}): {advice(words, self.is_lite)}"
        )


def new_mark() -> str:
    """Return what no other creation of a collection is known by."""
    return uuid.uuid4().hex


def check_limit(limit: int) -> None:
    """Raise `SettingsError` for a number of rows that Milvus does not give in one answer."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= TOP_K:
        raise SettingsError(f"limit={limit!r}: give a whole number from 1 to {TOP_K}")
