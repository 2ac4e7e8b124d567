"""Photos in ZIP and tar archives, wherever those lie: nothing is unpacked to the disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO, Any, cast

from fsspec import AbstractFileSystem

from cwf_milvus.errors import ImageError
from cwf_milvus.photos.limits import MAX_BYTES

KINDS = ("zip", "tar")
MEMBERS = 200_000
"""Of an archive with more, nothing is read."""
UNPACKED_BYTES = 2 * 2**30
"""Of a compressed tar, as far as it is unpacked to find a member."""
_AT_ONCE = 2**24  # a ZIP's directory, a tar's header, and what a member is read by
_PARTS = 100  # of a member's name

_PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class Archive(AbstractFileSystem):
    """The regular files of an archive, by their names in it; links and devices are passed over.

    Args:
        kind: "zip" or "tar", packed or not.
        file: the archive, open for reading and seekable; closed with this.

    Raises:
        ImageError: it has too many members, or a directory or header that is too long.
        Exception: whatever `zipfile`, `tarfile` and the decompressors raise of a damaged one.
    """

    protocol = KINDS
    cachable = False
    root_marker = ""

    def __init__(self, kind: str, file: IO[bytes]) -> None:
        super().__init__()
        self._files = ExitStack()
        self._files.callback(file.close)
        self._sizes: dict[str, int] = {}
        self._opened: Callable[[str], Any]
        try:
            self._read_zip(file) if kind == "zip" else self._read_tar(file)
        except BaseException:
            self._files.close()
            raise
        self._folders = {""}
        for name in self._sizes:
            parts = name.split("/")[:-1]
            while parts and "/".join(parts) not in self._folders:
                self._folders.add("/".join(parts))
                parts.pop()
            if len(self._folders) > MEMBERS:
                self._files.close()
                raise _too_many()

    def close(self) -> None:
        """Close the archive."""
        self._files.close()

    def __del__(self) -> None:
        """Close the archive."""
        if hasattr(self, "_files"):
            self._files.close()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        for kind in KINDS:
            path = path.removeprefix(f"{kind}://")
        return path.strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return the name, size and type of a member or folder."""
        name = self._strip_protocol(path)
        if name in self._sizes:
            return {"name": name, "size": self._sizes[name], "type": "file"}
        if name in self._folders:
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(f"the archive has no {name!r}")

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **_: Any,
    ) -> Any:
        """Return the members below a folder, in the order of their names."""
        top = self._strip_protocol(path)
        start = top + "/" if top else ""
        names = [*self._sizes, *(sorted(self._folders) if withdirs else ())]
        found = sorted(
            name
            for name in names
            if name.startswith(start)
            and (maxdepth is None or name.count("/", len(start)) < maxdepth)
        )
        return {name: self.info(name) for name in found} if detail else found

    def open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        """Return a member, to be read once; the archive is open as long as that is kept.

        Raises:
            ImageError: it declares more bytes than a photo may have.
            OSError: there is none.
        """
        about = self.info(path)
        if about["type"] != "file" or mode != "rb":
            raise IsADirectoryError("it is a folder of the archive: give one photo of it")
        if about["size"] > MAX_BYTES:
            raise ImageError(
                f"{about['name']!r:.200} of the archive is larger than {MAX_BYTES:,} bytes; save "
                "it smaller"
            )
        member: Any = self._opened(about["name"])
        member.archive = self
        return cast("IO[bytes]", member)

    def _read_zip(self, file: IO[bytes]) -> None:
        archive = self._files.enter_context(zipfile.ZipFile(Bounded(file)))
        known = archive.infolist()
        if len(known) > MEMBERS:
            raise _too_many()
        places = {}
        for one in known:
            name = _name(one.filename)
            if name and not one.is_dir():
                places[name], self._sizes[name] = one, one.file_size
        self._opened = lambda name: archive.open(places[name])

    def _read_tar(self, file: IO[bytes]) -> None:
        start = file.read(6)
        file.seek(0)
        unpack = next((one for mark, one in _PACKED.items() if start.startswith(mark)), None)
        plain = file if unpack is None else self._files.enter_context(unpack(file))
        bounded = Bounded(plain, None if unpack is None else UNPACKED_BYTES)
        archive = self._files.enter_context(tarfile.TarFile(fileobj=bounded))
        places = {}
        for number, one in enumerate(archive):
            if number >= MEMBERS:
                raise _too_many()
            archive.pax_headers = {}  # every member would get a copy
            one.pax_headers = {}
            name = _name(one.name)
            if name and one.isreg():
                places[name], self._sizes[name] = one, one.size
        self._opened = lambda name: archive.extractfile(places[name])


class Bounded(io.RawIOBase):
    """A file that is read so much at once, and no further than so far."""

    def __init__(self, file: IO[bytes], end: int | None = None) -> None:
        self._file = file
        self._end = end

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes; raises ImageError for too many."""
        if size is None or not 0 <= size <= _AT_ONCE:
            data = self._file.read(_AT_ONCE + 1)
            if len(data) > _AT_ONCE:
                raise ImageError(
                    f"a directory or header of the archive has more than {_AT_ONCE:,} bytes: "
                    "unpack it, or pack fewer photos"
                )
        else:
            data = self._file.read(size)
        if self._end is not None and self._file.tell() > self._end:
            raise _too_far(self._end)
        return data

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; raises ImageError for one too far to be unpacked up to."""
        if self._end is not None and whence == io.SEEK_SET and place > self._end:
            raise _too_far(self._end)
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def _name(told: str) -> str:
    """Return a member's name as it is asked for; "" for one that nobody would ask for."""
    name = told.strip("/")
    return name if name.count("/") < _PARTS else ""


def _too_many() -> ImageError:
    return ImageError(
        f"the archive has more than {MEMBERS:,} members or folders: unpack it, or pack fewer photos"
    )


def _too_far(end: int) -> ImageError:
    return ImageError(f"the archive unpacks to more than {end:,} bytes: unpack it")
