"""Milvus Lite: opening a ``.db`` folder, letting go of it, and why it cannot be opened."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient

from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.words import MILVUS_ERRORS, words_of

CONNECT_SECONDS = 10.0
NO_PLACE = (
    "{!r} is no place for a collection: give a path that ends in .db (Milvus Lite), or "
    "http://host:port or https://host:port of a Milvus server"
)

# These print a traceback of every error, which is raised to us as well.
for _name in (
    "pymilvus.decorators",
    "pymilvus.client.connection_manager",
    "milvus_lite.adapter.grpc.servicer",
):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.CRITICAL)


_lite_lock = threading.Lock()
_lite_users: dict[str, int] = {}


def checked_path(uri: str | Path, make: bool) -> str:
    """Return the real path of a Milvus Lite database that can be opened, or made.

    Args:
        uri: a path that ends in ``.db``.
        make: make the parent folders where they are missing.

    Raises:
        StoreError: no path to a database of Milvus Lite 3; says what it is.
        CollectionError: nothing is there, and `make` is false.
    """
    text = str(uri)
    if not text.endswith(".db") or "://" in text or "\0" in text:
        raise StoreError(NO_PLACE.format(text))
    path = Path(os.path.realpath(text))
    try:
        if path.is_file():
            with path.open("rb") as file:
                is_sqlite = file.read(16).startswith(b"SQLite format 3")
            raise StoreError(
                f"{text!r} is a file of Milvus Lite 2.x, which Milvus Lite 3 cannot read: index "
                "the photos again into another path"
                if is_sqlite
                else f"{text!r} is a file, and a Milvus Lite database is a folder: name another "
                "path"
            )
        if not path.exists() and not make:
            raise CollectionError(f"there is no Milvus Lite database {text!r}: create it first")
        if path.is_dir() and any(path.iterdir()) and not (path / "collections").is_dir():
            raise StoreError(f"{text!r} is a folder with other things in it: name another path")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot use {text!r} ({error.strerror}): name a path that can be read and written"
        ) from error
    return str(path)


def open_lite(path: str, shown: str) -> MilvusClient:
    """Open a database, which all of this process then shares.

    Args:
        path: from `checked_path`.
        shown: what to call it in an error.

    Raises:
        StoreError: it is in use by another process, damaged, or not to be read.
    """
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        if path not in _lite_users and path in getattr(server_manager_instance, "_servers", {}):
            _lite_users[path] = 1  # someone else in this process opened it: never ours to close
        with _Cause() as cause:
            try:
                client = MilvusClient(
                    path,
                    timeout=CONNECT_SECONDS,
                    dedicated=True,
                    # long calls end in "too_many_pings" otherwise
                    grpc_options={"grpc.keepalive_time_ms": 2**31 - 1},
                )
            except MILVUS_ERRORS as error:
                raise _not_opened(path, shown, cause.error or error) from error
        _lite_users[path] = _lite_users.get(path, 0) + 1
    return client


def release_lite(path: str) -> None:
    """Close a database when its last user here is done, so that another process may open it.

    pymilvus itself keeps it until the process ends.
    """
    from milvus_lite.server_manager import server_manager_instance

    with _lite_lock:
        _lite_users[path] -= 1
        if not _lite_users[path]:
            del _lite_users[path]
            server_manager_instance.release_server(path)


def embedded_rows(
    path: str, collection: str, ids: Sequence[str], fields: Sequence[str]
) -> list[dict[str, Any]] | None:
    """Return rows by their primary keys from a database that this process has open.

    Milvus Lite runs in the process of its client, and its embedded API (`milvus_lite.MilvusLite`)
    gives what it would send to itself through a socket, in a quarter of the time.

    Args:
        path: from `checked_path`, opened.
        collection: its name.
        ids: primary keys; missing ones are left out.
        fields: of texts and float vectors alone, which are the same either way.

    Returns:
        The rows; None where they are to be asked for through the client, which says what is wrong.
    """
    from milvus_lite import MilvusLite, MilvusLiteError
    from milvus_lite.server_manager import server_manager_instance

    served = getattr(server_manager_instance, "_servers", {}).get(path, ())
    database = next((part for part in served if isinstance(part, MilvusLite)), None)
    if database is None:
        return None
    try:
        return database.get_collection(collection).get(list(ids), output_fields=list(fields))
    except (MilvusLiteError, OSError, AttributeError, TypeError):
        return None


class _Cause(logging.Handler):
    """Catches the exception that Milvus Lite logs in place of raising it."""

    error: BaseException | None = None
    _logger = logging.getLogger("milvus_lite.server_manager")

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.error = record.exc_info[1]

    def __enter__(self) -> _Cause:
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.ERROR)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        level, self._logger.propagate = self._before
        self._logger.setLevel(level)


def _not_opened(path: str, shown: str, error: BaseException) -> StoreError:
    if "Locked" in type(error).__name__:
        holder = _holder(Path(path) / "LOCK")
        return StoreError(
            f"{shown!r} is in use by another process{holder}, and Milvus Lite allows one at a "
            "time: end that one, or use a Milvus server"
        )
    if isinstance(error, OSError) and error.strerror:
        return StoreError(
            f"cannot open {shown!r} ({error.strerror}): name a path that can be read and written"
        )
    return StoreError(
        f"Milvus Lite cannot open {shown!r} ({words_of(error)}): it may be damaged; index the "
        "photos again into another path"
    )


def _holder(lock: Path) -> str:
    try:
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if len(parts) > 5 and parts[5].endswith(f":{inode}"):
                return f" (pid {parts[4]})"
    except OSError:
        pass
    return ""
