"""What lies in files, folders, globs and urls: every file met, and what it is taken for."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cwf_milvus.errors import ImageError, quoted
from cwf_milvus.photos.formats import (
    MAGIC_BYTES,
    Format,
    can_read,
    format_by_name,
    format_of,
    suffix_of,
)
from cwf_milvus.photos.sources import filesystem_of, leave, local_path, unreadable, uri_of
from cwf_milvus.photos.web import is_web


@dataclass(frozen=True)
class Met:
    """A file that was met.

    Attributes:
        uri: its name, as stored.
        verdict: "photo", to be read; "unreadable", a photo without a decoder here, a folder
            without access or a path too long; "other", no photo; "special", a pipe, socket,
            device or link to nothing, never opened; "hidden".
        reason: why it is no "photo", with the remedy where there is one; of "other", its kind.
    """

    uri: str
    verdict: Literal["photo", "unreadable", "other", "special", "hidden"]
    reason: str = ""

    @property
    def is_photo(self) -> bool:
        """Whether it is to be read, or to be reported as failed."""
        return self.verdict in ("photo", "unreadable")


def survey(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> Iterator[Met]:
    """Yield every file of files, folders, globs and ``fsspec`` urls, each once.

    Named files are photos whatever their ending. In folders, a file is one by its ending or, with
    another, by its first bytes; in folders of urls by its ending alone. Each real folder is walked
    once, however many links lead to it. An http url, or a url that ends like a photo, is taken as
    one photo, unasked. Of a hidden folder, the folder alone is met.

    Raises:
        ImageError: a named source does not exist, or a glob matches nothing.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    seen: set[str] = set()
    for source in sources:
        path = local_path(source)
        found = _of_url(os.fspath(source), recursive) if path is None else _of_path(path, recursive)
        for met in found:
            if met.uri not in seen:
                seen.add(met.uri)
                yield met


def _of_path(path: str, recursive: bool) -> Iterator[Met]:
    if _is_folder(path):
        yield from _walk(_absolute(path), recursive)
        return
    if os.path.lexists(path):
        yield Met(uri_of(Path(path)), "photo")
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
        raise ImageError(f"{quoted(path)} does not exist; name a photo, a folder, a glob or a url")
    for match in found:
        if _is_folder(str(match)):
            yield from _walk(str(match), recursive)
        else:
            yield _of_file(match)


def _walk(top: str, recursive: bool) -> Iterator[Met]:
    """Yield the files of a folder. Links come last, so that a photo's own path wins."""
    seen: set[tuple[int, int]] = set()
    todo, links = [top], list[str]()
    while todo or links:
        folder = todo.pop() if todo else links.pop(0)
        try:
            status = Path(folder).stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield Met(uri_of(Path(folder)), "unreadable", str(unreadable(folder, error)))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is_hidden(entry.name):
                yield Met(uri_of(Path(entry.path)), "hidden", "its name starts with a dot")
            elif _leads_to_folder(entry):
                if recursive:
                    (links if entry.is_symlink() else todo).append(entry.path)
            else:
                yield _of_file(Path(entry.path))


def _of_file(path: Path) -> Met:
    """Return what a local file is, from its ending and, where that is not enough, a look at it."""
    uri, named = uri_of(path), format_by_name(path.name)
    if named is not None and can_read(named):
        return Met(uri, "photo")  # whatever it is: reading it says what is wrong
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return Met(uri, "special", f"it is a {_SPECIAL.get(stat.S_IFMT(mode), 'special file')}")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # in case that it became a pipe since
        with os.fdopen(os.open(path, flags), "rb") as file:
            start = file.read(MAGIC_BYTES)
    except OSError as error:
        reason = "it is a link to nothing, or to itself" if path.is_symlink() else error.strerror
        return Met(uri, "special" if named is None else "photo", reason or str(error))
    one = format_of(start, path.name)
    return Met(uri, "photo") if one is not None and can_read(one) else _passed(uri, one or named)


_SPECIAL = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _passed(uri: str, one: Format | None) -> Met:
    if one is None:
        return Met(uri, "other", suffix_of(uri) or "no ending")
    return Met(
        uri,
        "unreadable",
        f"{quoted(uri)} is a {one.name} photo, which cannot be read here; {one.remedy}",
    )


def _of_url(url: str, recursive: bool) -> Iterator[Met]:
    scheme, sep, rest = url.partition("://")
    segment, *chained = rest.split("::", 1)
    is_glob = glob.has_magic(segment)
    if is_web(url) or (format_by_name(segment) is not None and not is_glob):
        yield Met(url, "photo")
        return
    files = None
    try:
        files, root = filesystem_of(url)
        is_folder = files.isdir(root)
        if is_folder:
            found = files.find(root, maxdepth=None if recursive else 1)
        elif files.exists(root):
            yield Met(url, "photo")
            return
        else:
            found = files.glob(root) if is_glob else []
    except ImageError:
        raise
    except Exception as error:  # fsspec's backends raise what their libraries raise
        raise unreadable(url, error) from error
    finally:
        leave(files)
    if not found and not is_folder:
        raise ImageError(f"{quoted(url)} does not exist; name a photo, a folder or a glob")
    known = set(root.split("/"))
    # A filesystem's own names lack host, protocol and chain: keep those of the url given.
    bare, tail = segment.rstrip("/"), root.strip("/")
    base = bare.removesuffix(tail) if tail or not bare else bare + "/"
    for name in found:
        uri = files.unstrip_protocol(name)
        if bare.endswith(tail):
            uri = "::".join([scheme + sep + base + name.lstrip("/"), *chained])
        one = format_by_name(name)
        if "::" in name:
            yield Met(uri, "special", "its name would be read as a chain of filesystems")
        elif any(_is_hidden(part) for part in name.split("/") if part not in known):
            yield Met(uri, "hidden", "its name starts with a dot")
        elif one is not None and can_read(one):
            yield Met(uri, "photo")
        else:
            yield _passed(uri, one)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    # The first needs no path, so that a folder whose path is too long does not vanish.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and _is_folder(entry.path))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir() raises where access is refused


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
