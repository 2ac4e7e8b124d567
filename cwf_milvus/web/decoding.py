"""Photos decoded in processes of their own, each ended where it takes too long or too much."""

from __future__ import annotations

import asyncio
import hashlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import PIL.Image
from pebble import ProcessExpired, ProcessPool

from cwf_milvus.errors import ImageError, quoted
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image, load_image, thumbnail
from cwf_milvus.photos.sources import read_bytes

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MEMORY = 3 * 2**29  # bytes that a process may take beyond what it starts with
_QUALITY = 88


class Decoders:
    """Processes that decode photos.

    Args:
        processes: how many.
        seconds: that one photo may take, by the clock, waiting apart.
    """

    def __init__(self, processes: int, seconds: float) -> None:
        self._seconds = seconds
        self._free = asyncio.Semaphore(processes)
        self._pool = ProcessPool(processes, context=_context(), initializer=_begin)

    async def warm(self) -> None:
        """Start the processes, so that the first photo need not wait for them."""
        await asyncio.wrap_future(self._pool.schedule(os.getpid))

    async def run(
        self, name: str, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Return what a function of this module makes of a photo.

        Args:
            name: of the photo, for messages.
            work: the function.
            args: its arguments.
            kwargs: its arguments by name.

        Raises:
            ImageError: the photo cannot be read, takes too long, or took its process down.
        """
        async with self._free:  # so that the time starts when the work does
            future = self._pool.schedule(work, args, kwargs, timeout=self._seconds)
            try:
                return await asyncio.wrap_future(future)
            except LateError as error:
                raise ImageError(
                    f"{quoted(name)} took more than {self._seconds:g} seconds to decode; save it "
                    "as a plain JPEG"
                ) from error
            except (ProcessExpired, MemoryError) as error:
                raise ImageError(
                    f"{quoted(name)} took its decoder down; save it as a plain JPEG"
                ) from error

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()


def read_stored(uri: str, content: str, at_least: int | None, box: Box | None) -> Image:
    """Return a stored photo's pixels, if its bytes are those that were stored.

    Args:
        uri: of the photo.
        content: SHA-256 of its bytes, in hex.
        at_least: as in `load_image`.
        box: as in `load_image`.

    Raises:
        ImageError: it is gone, or another than was stored.
    """
    photo = load_image(uri, at_least=at_least, box=box)
    _check_same(uri, photo.content, content)
    return photo


def stored_bytes(uri: str, content: str) -> bytes:
    """Return a stored photo as its file has it; raises as `read_stored`."""
    data = read_bytes(uri)
    _check_same(uri, hashlib.sha256(data).hexdigest(), content)
    return data


def read_photo(
    source: bytes | str, name: str, at_least: int | None, box: Box | None, max_pixels: int
) -> Image:
    """Return a photo's pixels; see `load_image`."""
    return load_image(source, uri=name, at_least=at_least, box=box, max_pixels=max_pixels)


def preview(source: bytes, name: str, longest: int, max_pixels: int) -> bytes:
    """Return a photo upright, as JPEG.

    Args:
        source: the encoded photo.
        name: its name, for messages.
        longest: side in pixels of the JPEG, at most.
        max_pixels: as in `load_image`.
    """
    photo = load_image(source, uri=name, at_least=longest, max_pixels=max_pixels)
    return _jpeg(thumbnail(photo, longest))


def stored_preview(uri: str, content: str, longest: int | None) -> bytes:
    """Return a stored photo as JPEG without any EXIF, if its bytes are those that were stored.

    Args:
        uri: of the photo.
        content: SHA-256 of its bytes, in hex.
        longest: side in pixels, at most; None for all pixels.

    Raises:
        ImageError: it is gone, or another than was stored.
    """
    photo = read_stored(uri, content, longest, None)
    return _jpeg(thumbnail(photo, longest or max(photo.width, photo.height)))


def _check_same(uri: str, found: str, stored: str) -> None:
    if found != stored:
        raise ImageError(f"{quoted(uri)} was changed since it was stored: index it again")


def _jpeg(image: PIL.Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _context() -> multiprocessing.context.BaseContext:
    """Return how processes start: forked from a small one where that can be, not from this."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin() -> None:
    """Begin a process: the terminal's Ctrl-C is the service's affair, and memory has a limit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, OSError, ValueError):  # where the system has no such limit
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
