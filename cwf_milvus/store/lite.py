"""Milvus Lite: opening a ``.db`` folder, letting go of it, and why it cannot be opened."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient

from cwf_milvus.errors import CollectionError, StoreError
from cwf_milvus.store.answers import MILVUS_ERRORS, words_of
from cwf_milvus.store.lite_files import damaged_files, held
from cwf_milvus.store.lite_index import drop_damaged, drop_unmade

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


_lite_lock = threading.RLock()  # collecting garbage may close a database while one is opened
_lite_users: dict[str, int] = {}
_sockets: dict[str, str] = {}  # of the databases that are served by `_serve`
_SOCKET_BYTES = 90  # a socket's path may have 107, on macOS 103


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
    from milvus_lite.server_manager import server_manager_instance as manager

    with _lite_lock:
        is_served = path in manager._servers
        # Someone else in this process opened what is served without a user: never ours to close.
        is_theirs = is_served and path not in _lite_users
        _lite_users[path] = _lite_users.get(path, 0) + 1 + is_theirs
        try:
            if not is_served:
                _serve(path, shown)
            client = MilvusClient(
                path,
                timeout=CONNECT_SECONDS,
                dedicated=True,
                grpc_options={
                    "grpc.keepalive_time_ms": 2**31 - 1,  # or long calls end in "too_many_pings"
                    "grpc.enable_http_proxy": 0,
                },
            )
        except MILVUS_ERRORS as error:
            release_lite(path)
            raise _not_opened(path, shown, error) from error
        except BaseException:
            release_lite(path)
            raise
    return client


def release_lite(path: str) -> None:
    """Close a database when its last user here is done, so that another process may open it.

    pymilvus itself keeps it until the process ends.
    """
    with _lite_lock:
        _lite_users[path] -= 1
        if not _lite_users[path]:
            del _lite_users[path]
            _stop(path)


def _serve(path: str, shown: str) -> None:
    """Have Milvus Lite serve a database through a socket that no other user can reach.

    By itself it listens on a port of the loopback interface, without a password: whoever is logged
    in on the machine could read and delete everything. Other clients of this process are led to
    the socket too. Windows has no such sockets: there it stays a port.
    """
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.server_manager import server_manager_instance as manager

    _check_files(path, shown)
    if not hasattr(socket, "AF_UNIX"):
        return
    folder = tempfile.mkdtemp(prefix="cwf-milvus-")  # for this user alone
    if len(folder) > _SOCKET_BYTES:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="cwf-milvus-", dir="/tmp")
    name: Any = f"{folder}/lite"  # takes the place of the port
    try:
        server, database, _ = start_server_in_thread(path, "unix", name)
        damaged = drop_damaged(path)
    except Exception as error:  # whatever a damaged file makes Milvus Lite raise
        shutil.rmtree(folder, ignore_errors=True)
        raise _not_opened(path, shown, error) from error
    manager._servers[path] = (server, database, name)
    if not _sockets:
        manager.start_and_get_uri = _led_to_sockets(manager.start_and_get_uri)
        atexit.register(_remove_sockets, os.getpid())
    _sockets[path] = name
    if damaged:
        warnings.warn(
            f"the vector index of {', '.join(damaged)} in {shown!r} was damaged, as a kill or a "
            "full disk leaves it: it is made again from the rows",
            stacklevel=4,
        )


def _check_files(path: str, shown: str) -> None:
    """Refuse a database with damaged files: Milvus Lite would delete what can be read of them."""
    try:
        with held(path):
            drop_unmade(path)
            damaged = damaged_files(path)
    except (StoreError, OSError):  # in use, or none yet: Milvus Lite says so
        return
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise StoreError(
            f"{shown!r} has damaged files: {damaged[0]}{more}. Nothing was changed: `cwf-milvus "
            "repair` saves what can be read into a new database beside it"
        )


def _led_to_sockets(by_port: Callable[..., str | None]) -> Callable[..., str | None]:
    def address_of(path: str, args: dict[str, Any] | None = None) -> str | None:
        name = _sockets.get(str(Path(path).resolve()))
        return f"unix:{name}" if name else by_port(path, args)

    return address_of


def _stop(path: str) -> None:
    from milvus_lite.server_manager import server_manager_instance as manager

    manager.release_server(path)
    if name := _sockets.pop(path, None):
        shutil.rmtree(Path(name).parent, ignore_errors=True)


def _remove_sockets(owner: int) -> None:
    if os.getpid() == owner:  # not a fork's to remove
        for name in _sockets.values():
            shutil.rmtree(Path(name).parent, ignore_errors=True)


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


def _not_opened(path: str, shown: str, error: BaseException) -> StoreError:
    if "Locked" in type(error).__name__:
        holder = _holder(Path(path) / "LOCK")
        return StoreError(
            f"{shown!r} is in use by another process{holder}, and Milvus Lite allows one at a "
            "time: end that one, or use a Milvus server"
        )
    if isinstance(error, OSError) and error.strerror:
        return StoreError(
            f"cannot open {shown!r} ({error.strerror}): Milvus Lite writes into a database even to "
            "search it. Make the folder and the files in it readable and writable for this user, "
            "or copy it to where they are, and open the copy"
        )
    return StoreError(
        f"Milvus Lite cannot open {shown!r} ({words_of(error)}): it may be damaged; `cwf-milvus "
        "repair` saves what can be read into a new database beside it"
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
