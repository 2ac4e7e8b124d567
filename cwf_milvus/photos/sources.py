"""Where photos are: names, files, folders, globs and ``fsspec`` urls, all read as hostile."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import fsspec

from cwf_milvus.errors import ImageError

MAX_BYTES = 512 * 2**20
"""Largest encoded photo that is read, in bytes."""
# fmt: off
PHOTO_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif",
)
# fmt: on
"""Endings, in lower case, of the files that are taken from a folder."""

_URL = re.compile(r"[a-z][a-z0-9+.\-]+(://|::.*://)", re.IGNORECASE | re.DOTALL)


def uri_of(path: str | os.PathLike[str]) -> str:
    """Return the name under which a photo is stored: always valid UTF-8, and it opens again.

    Urls stay as given. A local file has its absolute path (links not resolved), or, when its name
    is not valid UTF-8, a percent-encoded ``file://`` uri. Raises ImageError for names that no
    file can have.
    """
    local = _local_path(path)
    if local is None:
        return os.fspath(path)
    absolute = _absolute(local)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Path(absolute).as_uri()
    return absolute


def read_bytes(uri: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole local file or ``fsspec`` url, once, without ever waiting on a pipe or device.

    Raises:
        ImageError: it is missing, unreadable, empty, no file, or larger than ``max_bytes``.
    """
    name, path = uri_of(uri), _local_path(uri)
    try:
        if path is None:
            files, inner = fsspec.core.url_to_fs(name)
            opened = files.open(inner, "rb")
        else:
            opened = _open_file(Path(path), name, max_bytes)
    except ImageError:
        raise
    except Exception as error:  # fsspec's backends raise what their libraries raise
        raise _unreadable(name, error) from error
    with opened as file:
        return read_all(file, name, max_bytes)


def list_photos(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> list[str]:
    """List the uris of photos in files, folders, globs and ``fsspec`` urls: sorted, each once.

    Named files are kept whatever their ending. Of folders and globs, the files with one of
    PHOTO_SUFFIXES are taken, hidden names are not, and each real folder is walked once, however
    many links lead to it. What cannot be read (a folder without access, a dangling link) is
    listed, so that load_image reports it. An http url, or a url that ends like a photo, is taken
    as one photo, unasked; of other urls' folders, names with ``::`` are left out.

    Raises:
        ImageError: a named source does not exist, or a glob matches nothing.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    uris: set[str] = set()
    for source in sources:
        path = _local_path(source)
        found = _list_url(os.fspath(source), recursive) if path is None else _list(path, recursive)
        uris.update(found)
    return sorted(uris)


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
        raise _unreadable(name, error) from error
    return checked_size(b"".join(parts), name, max_bytes)


def checked_size(data: bytes, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a photo; raises ImageError if there are none or more than allowed."""
    if not data:
        raise ImageError(f"{name!r} is empty (0 bytes); copy it again or remove it")
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    return data


def refuse_surrogates(uri: str) -> None:
    """Raise ImageError for a name that is not valid UTF-8, which Milvus could not store."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{uri!r} is not valid UTF-8; percent-encode it") from error


def _local_path(source: str | os.PathLike[str]) -> str | None:
    """Return the path of a local file, None for a url. Only str can be a url, Path cannot."""
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ImageError(f"{text!r} is not a name that a file can have; rename it") from error
    if not isinstance(source, str) or not _URL.match(text):
        return text
    if not text.lower().startswith("file://"):
        refuse_surrogates(text)
        return None
    rest = text[len("file://") :].removeprefix("localhost")
    if not rest.startswith("/"):
        raise ImageError(f"{text!r} is not the uri of a local file; write file:///folder/name")
    return os.fsdecode(unquote_to_bytes(rest))


def _open_file(path: Path, name: str, max_bytes: int) -> IO[bytes]:
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError("it is a link to nothing, or to itself")
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("it is a folder, whose photos list_photos lists if it may")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a pipe, socket or device, not a file")
    if status.st_size > max_bytes:
        raise _too_large(name, max_bytes)
    # Not blocking, in case that it became a pipe since.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _too_large(name: str, max_bytes: int) -> ImageError:
    return ImageError(f"{name!r} is larger than {max_bytes:,} bytes; save it smaller")


def _unreadable(name: str, error: Exception) -> ImageError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ImageError(f"cannot read {name!r}: {reason}; check the name and the access rights")


def _is_photo(name: str) -> bool:
    return name.lower().endswith(PHOTO_SUFFIXES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir() raises where access is refused


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def _list(path: str, recursive: bool) -> Iterator[str]:
    if _is_folder(path):
        yield from _walk(_absolute(path), recursive)
        return
    if os.path.lexists(path):
        yield uri_of(Path(path))
        return
    found = []
    if glob.has_magic(path):
        parts = Path(path).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(_absolute(Path(*parts[:first])))
        # pathlib's ** does not follow links; that of glob does, round in circles.
        matches = base.glob(str(Path(*parts[first:])))
        found = [m for m in matches if not any(map(_is_hidden, m.relative_to(base).parts))]
    if not found:
        raise ImageError(f"{path!r} does not exist; name a photo, a folder, a glob or a url")
    for match in found:
        if _is_folder(str(match)):
            yield from _walk(str(match), recursive)
        elif _is_photo(match.name):
            yield uri_of(match)


def _walk(top: str, recursive: bool) -> Iterator[str]:
    """Yield the photos of a folder. Links come last, so that a photo's own path wins."""
    seen: set[tuple[int, int]] = set()
    todo, links = [top], list[str]()
    while todo or links:
        folder = todo.pop() if todo else links.pop(0)
        try:
            status = Path(folder).stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield uri_of(Path(folder))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if _is_folder(entry.path):
                if recursive:
                    (links if entry.is_symlink() else todo).append(entry.path)
            elif _is_photo(entry.name):
                yield uri_of(Path(entry.path))


def _list_url(url: str, recursive: bool) -> list[str]:
    scheme, sep, rest = url.partition("://")
    segment, *chained = rest.split("::", 1)
    is_glob = glob.has_magic(segment)
    if scheme.lower() in ("http", "https") or (_is_photo(segment) and not is_glob):
        return [url]
    try:
        files, root = fsspec.core.url_to_fs(url)
        is_folder = files.isdir(root)
        if is_folder:
            found = files.find(root, maxdepth=None if recursive else 1)
        elif files.exists(root):
            return [url]
        else:
            found = files.glob(root) if is_glob else []
    except Exception as error:  # fsspec's backends raise what their libraries raise
        raise _unreadable(url, error) from error
    if not found and not is_folder:
        raise ImageError(f"{url!r} does not exist; name a photo, a folder or a glob")
    known = set(root.split("/"))
    photos = [
        name
        for name in found
        if _is_photo(name)
        and "::" not in name  # would be read as another chain of filesystems
        and not any(_is_hidden(part) for part in name.split("/") if part not in known)
    ]
    # A filesystem's own names lack host, protocol and chain: keep those of the url given.
    bare, tail = segment.rstrip("/"), root.strip("/")
    if not bare.endswith(tail):
        return [files.unstrip_protocol(name) for name in photos]
    base = bare.removesuffix(tail) if tail or not bare else bare + "/"
    return ["::".join([scheme + sep + base + name.lstrip("/"), *chained]) for name in photos]
