"""Small pictures of the stored photos, made once, in a folder that never grows beyond a limit."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from cwf_milvus.files import read_whole, write_whole

_PICTURE_BYTES = 2**24
_ROOM = 0.9  # of the limit that is left in use when files had to go


class Thumbnails:
    """JPEG files by what they show; those used longest ago go first.

    Args:
        folder: made where there is none, for the user alone; None to keep no pictures.
        most_bytes: that the files may take together.
    """

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self._folder = folder
        self._most = most_bytes
        self._lock = threading.Lock()
        self._held: int | None = None  # counted when the first is kept

    def get(self, content: str, kind: str) -> bytes | None:
        """Return a picture; None where there is none.

        Args:
            content: SHA-256 of the photo's bytes, in hex.
            kind: of the picture, such as its size.
        """
        file = self._file(content, kind)
        if file is None:
            return None
        try:
            data = read_whole(file, _PICTURE_BYTES)
            os.utime(file)  # used now
        except OSError:
            return None
        return data

    def put(self, content: str, kind: str, data: bytes) -> None:
        """Keep a picture, if it may; a full disk is no reason not to show it."""
        file = self._file(content, kind)
        if file is None:
            return
        with suppress(OSError), self._lock:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(file, data)
            held = self._size() if self._held is None else self._held + len(data)
            self._held = held if held <= self._most else self._make_room()

    def _file(self, content: str, kind: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{content}/{kind}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.jpg"

    def _size(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _make_room(self) -> int:
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, file in files:
            if held <= self._most * _ROOM:
                break
            file.unlink(missing_ok=True)
            held -= size
        return held

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return when each was used last, its bytes, and its place."""
        found = []
        for file in self._folder.glob("??/*.jpg") if self._folder else ():
            with suppress(OSError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        return found
