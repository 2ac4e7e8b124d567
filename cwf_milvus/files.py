"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


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
