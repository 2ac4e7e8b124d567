"""What decoders warn of: collected for each photo and said once, with its name.

Pillow warns by `warnings.warn`, which knows no photo, shows each text once, and cannot be caught
in one thread alone. So the modules of the decoders are given a `warnings` that asks first whether
this thread is decoding a photo of ours; for all others nothing changes. libtiff writes its errors
to the standard error of the process; its handler asks likewise.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import PIL._imaging

from cwf_milvus.errors import PhotoWarning, quoted

_SHOWN = 3  # of a photo's warnings; a file can hold thousands
_LONGEST = 200  # characters of one


class _Said(threading.local):
    texts: list[str] | None = None  # of the photo that this thread decodes
    count = 0


_said = _Said()


@contextmanager
def named(name: str) -> Iterator[None]:
    """Collect what decoders warn of in this thread, and say it at the end as a PhotoWarning.

    A photo that cannot be read is reported by its error alone.
    """
    before, _said.texts, _said.count = (_said.texts, _said.count), [], 0
    try:
        yield
        texts, count = _said.texts, _said.count
    finally:
        _said.texts, _said.count = before
    if texts:
        more = f"; and {count - len(texts):,} more" if count > len(texts) else ""
        warnings.warn(f"{quoted(name)}: {'; '.join(texts)}{more}", PhotoWarning, stacklevel=5)


def _collected(text: object) -> bool:
    """Keep a text if this thread is decoding a photo; tells whether it is."""
    if _said.texts is None:
        return False
    shown = str(text).strip()[:_LONGEST]
    if shown not in _said.texts:
        _said.count += 1
        if len(_said.texts) < _SHOWN:
            _said.texts.append(shown)
    return True


class _Warnings:
    """What a decoder's module sees as `warnings`."""

    def warn(
        self,
        message: Warning | str,
        category: type[Warning] | None = None,
        stacklevel: int = 1,
        source: object = None,
    ) -> None:
        if not _collected(message):
            warnings.warn(message, category, stacklevel + 1, source)

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)


class _LogFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or not _collected(record.getMessage())


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


def _catch_libtiff() -> None:
    """Put a handler before libtiff's own, till the process ends.

    Where Pillow's libtiff shows no such function (it is linked in, as on Windows), its errors go
    where they went.
    """
    try:
        set_handler = ctypes.CDLL(PIL._imaging.__file__).TIFFSetErrorHandler
        vsnprintf = ctypes.CDLL(None).vsnprintf
    except (AttributeError, OSError, TypeError):
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p

    def handle(module: bytes | None, text: bytes, arguments: int) -> None:
        if _said.texts is None:
            if before:
                _Handler(before)(module, text, arguments)
            return
        buffer = ctypes.create_string_buffer(_LONGEST)
        vsnprintf(buffer, ctypes.c_size_t(_LONGEST), text, ctypes.c_void_p(arguments))
        _collected(f"{(module or b'libtiff').decode('ascii', 'replace')}: "
                   f"{buffer.value.decode('utf-8', 'replace')}")  # fmt: skip

    handler = _Handler(handle)
    before = set_handler(ctypes.cast(handler, ctypes.c_void_p))
    atexit.register(lambda kept: set_handler(before), handler)


def watch(modules: Iterable[ModuleType]) -> None:
    """Have the warnings and log lines of decoders' modules collected."""
    for module in modules:
        if getattr(module, "warnings", None) is warnings:
            module.warnings = _Warnings()  # type: ignore[attr-defined]
        if getattr(module, "warn", None) is warnings.warn:
            module.warn = _Warnings().warn  # type: ignore[attr-defined]
        logging.getLogger(module.__name__).addFilter(_LogFilter())


_catch_libtiff()
