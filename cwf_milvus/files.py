"""Files that are there whole or not at all, and the folder of those that can be made again."""

from __future__ import annotations

import codecs
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_dir

_PART = re.compile(r"\.[0-9a-f]{16}\.part")


def write_whole(path: str | Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file beside its place, then move it there; a link's target is what is replaced.

    Args:
        path: the file; one that is there is replaced.
        content: its bytes, or a function that writes the file it is given.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; what was there is left as it was.
        ValueError: no name that a file can have.
    """
    part = None
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise OSError("it is a folder or a device, not a file")
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)
        part.replace(target)
    finally:
        if part is not None:
            with suppress(OSError):  # after success there is none, and a failure has its own error
                part.unlink()
    return Path(path)


def drop_parts(folder: Path, older: float = 60.0) -> None:
    """Delete what a process that was killed within `write_whole` left in a folder.

    Args:
        folder: that may not be there.
        older: seconds since they were written; others may be at work.
    """
    with suppress(OSError):
        for one in os.scandir(folder):
            if _PART.fullmatch(one.name) and one.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if time.time() - one.stat(follow_symlinks=False).st_mtime > older:
                        Path(one.path).unlink()


def read_whole(path: str | Path, most_bytes: int) -> bytes:
    """Read a file whole, without ever waiting on a pipe or device.

    Args:
        path: the file.
        most_bytes: a larger one is refused.

    Raises:
        OSError: it cannot be read, is none, or has more bytes than `most_bytes`.
        ValueError: no name that a file can have.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{Path(path).name} is a folder, pipe or device, not a file")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
        if status.st_size > most_bytes or len(data) > most_bytes:
            raise OSError(f"{Path(path).name} has more than {most_bytes:,} bytes")
    return data


def holds_other(path: str | Path, *marks: bytes) -> bool:
    """Return whether a file is there that nothing of ours wrote, so that it is not to be replaced.

    Args:
        path: a name that a file is about to be written under.
        marks: what stands in the first 4,096 bytes of such files; none: they are text.

    Returns:
        False where there is none, or an empty one, or none that can be read: writing it tells why.
    """
    try:
        if not Path(path).is_file():  # a device never ends
            return False
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return False
    if marks:
        return bool(head) and not any(mark in head for mark in marks)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a letter may be cut at the end
    except UnicodeDecodeError:
        return True
    return b"\0" in head


def cache_folder(part: str) -> Path | None:
    """Return this user's folder for what can be made again, made where it is missing.

    It is ``$CWF_MILVUS_CACHE``, or else where the system has such folders
    (``$XDG_CACHE_HOME/cwf-milvus`` or ``~/.cache/cwf-milvus`` on Linux).

    Args:
        part: a folder in it.

    Returns:
        None where there is none, or others may write there: what is kept is read again.
    """
    root = Path(os.environ.get("CWF_MILVUS_CACHE") or user_cache_dir("cwf-milvus", appauthor=False))
    for folder in (root, root / part):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.stat()
        except (OSError, ValueError):
            return None
        if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
            return None
    return root / part
