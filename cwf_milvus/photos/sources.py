"""Where photos are: names, files, folders, globs and ``fsspec`` urls, all read as hostile."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import fsspec

from cwf_milvus.errors import ImageError, quoted
from cwf_milvus.photos.archives import KINDS, Archive
from cwf_milvus.photos.formats import PHOTO_SUFFIXES as PHOTO_SUFFIXES
from cwf_milvus.photos.limits import MAX_BYTES
from cwf_milvus.photos.web import is_web, kept_web, read_web

_BASE64 = re.compile(r"(/9j/|iVBORw0KGgo|UklGR|R0lGOD|SUkq|TU0A|Qk|AAAA)[A-Za-z0-9+/=_\-\s]{200,}")
_URL = re.compile(r"[a-z][a-z0-9+.\-]+(://|::.*://)", re.IGNORECASE | re.DOTALL)


PROTOCOLS = frozenset(
    (
        *("file", "local", "memory", "zip", "tar", "simplecache", "http", "https", "ftp", "sftp"),
        *("ssh", "smb", "hdfs", "webhdfs", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"),
        *("oci", "oss", "hf", "github", "dropbox", "gdrive", "box"),
    )
)
"""What a url may begin with, each part of a chain. ``fsspec`` knows others, which read local files
named in a file, run programs, or reach what its user never meant: the environment variable
``CWF_MILVUS_PROTOCOLS`` adds them, with spaces between."""


_MOST_ARCHIVES = 2  # one in the other
_MOST_PARTS = 100  # of a chain; a query may have some of its own


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the filesystem of a url, and the path in it.

    Archives are read by `photos.archives`, by http and https through `photos.web`, and others by
    ``fsspec``. What is asked for is read straight from its place: "simplecache" does nothing.

    Raises:
        ImageError: a protocol that is not on, a chain that is not read, or an archive that is too
            large.
        Exception: whatever the filesystem's library raises.
    """
    return _filesystem(_chain(url), url)


def _chain(url: str) -> list[tuple[str, str]]:
    """Return protocol and path of each part of a url; of a local file the protocol is "file".

    Raises:
        ImageError: as `filesystem_of`.
    """
    on = PROTOCOLS.union(os.environ.get("CWF_MILVUS_PROTOCOLS", "").lower().split())
    parts, rest = [], url
    while rest and url.count("::") < _MOST_PARTS:
        if is_web(rest):  # with whatever stands in its query
            protocol, path, rest = "https", rest, ""
        else:
            part, _, rest = rest.partition("::")
            protocol, sep, path = part.partition("://")
            if not sep and not re.match(r"[a-z]+\Z|data:", part):
                protocol, path = "file", os.path.expanduser(part)  # noqa: PTH111 - as fsspec
            protocol = protocol.partition(":")[0].lower()
        if protocol not in on:
            raise ImageError(
                f"{quoted(url)}: the protocol {quoted(protocol)} is not on; set "
                f"CWF_MILVUS_PROTOCOLS={protocol} if you trust all urls that are read"
            )
        if protocol != "simplecache":
            parts.append((protocol, path))
    kinds = [protocol for protocol, _ in parts]
    is_plain = {*kinds[:-1]} <= {*KINDS}
    too_deep = sum(kind in KINDS for kind in kinds) > _MOST_ARCHIVES
    if not parts or too_deep or not (is_plain or {"http", "https"}.isdisjoint(kinds)):
        raise ImageError(
            f"{quoted(url)}: such a chain is not read; write zip://PHOTO::ARCHIVE, or download it"
        )
    return parts


def _filesystem(chain: list[tuple[str, str]], url: str) -> tuple[Any, str]:
    (protocol, path), *inner = chain
    if protocol not in KINDS:
        files, place = fsspec.core.url_to_fs("::".join(f"{kind}://{part}" for kind, part in chain))
        return files, place
    if not inner:
        raise ImageError(f"{quoted(url)} names no archive; write {protocol}://PHOTO::ARCHIVE")
    return Archive(protocol, _seekable(inner, url)), path.strip("/")


def _opened(chain: list[tuple[str, str]], url: str) -> IO[bytes]:
    """Return what a chain leads to, open for reading."""
    (protocol, path), *_ = chain
    if protocol in ("http", "https"):
        return io.BytesIO(kept_web(path, MAX_BYTES))
    if protocol in ("file", "local"):
        return _open_file(Path(path), url, sys.maxsize)
    files, inner = _filesystem(chain, url)
    try:
        opened: IO[bytes] = files.open(inner, "rb")
    except BaseException:
        leave(files)
        raise
    return opened


def leave(files: Any) -> None:
    """Close a filesystem of `filesystem_of`, where it is one to be closed."""
    if isinstance(files, Archive):
        files.close()


def _seekable(chain: list[tuple[str, str]], url: str) -> IO[bytes]:
    """Return an archive, open; one within another is unpacked to memory, not at every step."""
    opened = _opened(chain, url)
    if chain[0][0] not in KINDS:
        return opened
    with opened:
        return io.BytesIO(read_all(opened, url, MAX_BYTES))


def uri_of(path: str | os.PathLike[str]) -> str:
    """Return the name under which a photo is stored: always valid UTF-8, and it opens again.

    Urls stay as given. A local file has its absolute path (links not resolved), or, when its name
    is not valid UTF-8, a percent-encoded ``file://`` uri. Raises ImageError for names that no
    file can have.
    """
    local = local_path(path)
    if local is None:
        return os.fspath(path)
    absolute = os.path.abspath(local)  # noqa: PTH100 - resolve() would follow links
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Path(absolute).as_uri()
    return absolute


def read_bytes(uri: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole local file or url, once, without ever waiting on a pipe or device.

    http(s) urls are read by `photos.web`, within a time, others as `filesystem_of` says.

    Raises:
        ImageError: it is missing, unreadable, empty, no file, or larger than ``max_bytes``.
    """
    name, path = uri_of(uri), local_path(uri)
    try:
        if path is None and is_web(name):
            return checked_size(read_web(name, max_bytes), name, max_bytes)
        if path is None:
            opened = _opened(_chain(name), name)
        else:
            opened = _open_file(Path(path), name, max_bytes)
    except ImageError:
        raise
    except Exception as error:  # fsspec's backends raise what their libraries raise
        raise unreadable(name, error) from error
    with opened as file:
        return read_all(file, name, max_bytes)


def read_all(file: Any, name: str, max_bytes: int) -> bytes:
    """Read a binary file object to its end; `name` is for the message. Raises ImageError."""
    parts: list[bytes] = []
    left = max_bytes + 1
    try:
        # A read may give less than asked for: streams from the network do.
        while left > 0 and (part := file.read(min(left, 2**24))):
            if not isinstance(part, bytes):
                raise TypeError("it gives text, open it with mode 'rb'")
            parts.append(part)
            left -= len(part)
    except Exception as error:  # whatever the file's library raises
        raise unreadable(name, error) from error
    return checked_size(b"".join(parts), name, max_bytes)


def checked_size(data: bytes, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a photo; raises ImageError if there are none or more than allowed."""
    if not data:
        raise ImageError(f"{quoted(name)} is empty (0 bytes); copy it again or remove it")
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    return data


def size_of(uri: str) -> int:
    """Return how many bytes a photo has as far as that can be told at once; of a url, a guess."""
    try:
        path = local_path(uri)
        return Path(path).stat().st_size if path is not None else MAX_BYTES // 16
    except (ImageError, OSError, ValueError):  # a NUL in the name: for read_bytes to report
        return 0


def is_local(uri: str) -> bool:
    """Whether a stored name is that of a local file; False for urls, and for other names."""
    return os.path.isabs(uri) or uri.startswith("file://")  # noqa: PTH117


def is_gone(uri: str) -> bool:
    """Whether a local photo's file is no more; False for urls, and where that cannot be told."""
    try:
        path = local_path(uri) if is_local(uri) else None
        if path is not None:
            os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def refuse_surrogates(uri: str) -> None:
    """Raise ImageError for a name that is not valid UTF-8, which Milvus could not store."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{quoted(uri)} is not valid UTF-8; percent-encode it") from error


def local_path(source: str | os.PathLike[str]) -> str | None:
    """Return the path of a local file, None for a url. Only str can be a url, Path cannot.

    Raises:
        ImageError: a name that no file can have, or a photo as text.
    """
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if re.match(r"data:[^,]{0,200}[;,/]", text, re.IGNORECASE) or _BASE64.fullmatch(text):
        raise ImageError(
            f"{quoted(text)} is a photo as text, not a name; give the bytes that base64.b64decode "
            "makes of it (of a data: url, of what follows the comma)"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ImageError(f"{quoted(text)} is not a name that a file can have; rename it") from error
    if not isinstance(source, str) or not _URL.match(text):
        return text
    if not text.lower().startswith("file://"):
        refuse_surrogates(text)
        return None
    rest = text[len("file://") :].removeprefix("localhost")
    if not rest.startswith("/"):
        raise ImageError(
            f"{quoted(text)} is not the uri of a local file; write file:///folder/name"
        )
    return os.fsdecode(unquote_to_bytes(os.fsencode(rest)))


def _open_file(path: Path, name: str, max_bytes: int) -> IO[bytes]:
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError("it is a link to nothing, or to itself")
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("it is a folder: give one photo of it")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a pipe, socket or device, not a file")
    if status.st_size > max_bytes:
        raise _too_large(name, max_bytes)
    # Not blocking, in case that it became a pipe since.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _too_large(name: str, max_bytes: int) -> ImageError:
    return ImageError(f"{quoted(name)} is larger than {max_bytes:,} bytes; save it smaller")


def unreadable(name: str, error: Exception) -> ImageError:
    """Return the error for a source that its system, or its driver, did not give."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    remedy = "check the name and the access rights"
    if isinstance(error, ImportError):  # fsspec's words for a driver that is not installed
        remedy = "pip install what it names"
    return ImageError(f"cannot read {quoted(name)}: {reason[:300]}; {remedy}")
