"""A Milvus server: its address, and waiting for one that does not answer."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from cwf_milvus.errors import StoreError
from cwf_milvus.store.answers import MILVUS_ERRORS, is_unreachable, words_of
from cwf_milvus.store.lite import NO_PLACE

_STARTING = r"not ready|not subscribed|not available|not healthy|recovering|node offline"
_STARTING += r"|(?:channel|node|segment|shard)\b[^;\n]{0,80} not found"
_PAUSE = 1.0
_LEAST = 2.0  # seconds that a question takes at least, near the end of the wait
_Answer = TypeVar("_Answer")


def checked_address(uri: str) -> str:
    """Return a server's address as it may be shown, without a password.

    Raises:
        StoreError: it is none.
    """
    try:
        parts = urlsplit(uri)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise StoreError(NO_PLACE.format(uri.rpartition("@")[2]))
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "***@") if "@" in uri else uri


def is_waited_for(words: str) -> bool:
    """Tell whether a server that says this may answer later, by the words of an error."""
    return is_unreachable(words) or bool(re.search(_STARTING, words))


def until_answered(
    ask: Callable[[float], _Answer], place: str, *, timeout: float, wait: float
) -> _Answer:
    """Ask, and where the server does not answer, ask again until it does.

    It says so when the waiting begins and when it ends. What is asked must be such that it may be
    asked twice: rows are written under keys of their own, and deleted by these.

    Args:
        ask: what to ask, within so many seconds.
        place: the server, in words.
        timeout: seconds for each time.
        wait: seconds from the first failure on; 0 for no second time.

    Raises:
        MilvusException: it refused, or did not answer in all that time.
    """
    try:
        return ask(timeout)
    except MILVUS_ERRORS as error:
        words = words_of(error)
        if not wait or not is_waited_for(words):
            raise
        last: BaseException = error
    began = time.monotonic()
    _tell(f"Milvus at {place} does not answer ({words}): waiting for it up to {wait:.0f} s")
    while (left := began + wait - time.monotonic()) > 0:
        time.sleep(min(_PAUSE, left))
        try:
            answer = ask(max(_LEAST, min(timeout, began + wait - time.monotonic())))
        except MILVUS_ERRORS as error:
            if not is_waited_for(words_of(error)):
                raise
            last = error
        else:
            _tell(f"Milvus at {place} answers again after {time.monotonic() - began:.0f} s")
            return answer
    raise last


def _tell(words: str) -> None:
    warnings.warn(f"{time.strftime('%H:%M:%S')} {words}", stacklevel=4)  # each is another text
