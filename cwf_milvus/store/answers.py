"""What Milvus says when it fails: in one line, and with what to do."""

from __future__ import annotations

import re

import grpc  # type: ignore[import-untyped]
from pymilvus import MilvusException

MILVUS_ERRORS = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError)
_UNREACHABLE = r"UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|Fail connecting|[Tt]imeout"
_ADVICE = (  # the first that fits
    (
        r"[Rr]ead-only file system",
        "Milvus Lite writes into a database even to search it: copy it to where you may write, and "
        "open the copy",
    ),
    (
        r"No space left|File too large|[Dd]isk quota",
        "make room on the disk, then run again: it goes on from what was finished",
    ),
    (
        r"[Pp]ermission denied|Operation not permitted",
        "make all files of the database readable and writable for this user",
    ),
    (r"UNAUTHENTICATED|(?i:auth)", "check the token"),
    (
        r"not ready|not subscribed|not available|not healthy|recovering",
        "it is starting, or was paused: wait a minute, then run again; it goes on from what was "
        "finished",
    ),
    (
        _UNREACHABLE,
        "see that it is running and that the address is right; what was finished is kept, run "
        "again to go on",
    ),
    (r"RESOURCE_EXHAUSTED", "ask for less at once"),
)


def words_of(error: BaseException | None) -> str:
    """Return what Milvus said, as one line without gRPC's inner life."""
    if isinstance(error, MilvusException):
        words = error.message
    elif isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        words = f"{error.code().name}: {error.details()}"
    else:
        words = str(error) or type(error).__name__
    words = re.sub(r",? ?(channel_state|debug)=.*", "", str(words), flags=re.DOTALL)
    return " ".join(words.split())[:500]


def is_unreachable(words: str) -> bool:
    """Tell whether Milvus did not answer, by the words of an error."""
    return bool(re.search(_UNREACHABLE, words))


def is_released(words: str) -> bool:
    """Tell whether a collection is to be loaded before it can answer, by the words of an error."""
    return bool(re.search(r"not loaded|not been loaded|is not load|has been released", words))


def advice(words: str, is_lite: bool) -> str:
    """Return what to do about a failure.

    Args:
        words: of `words_of`.
        is_lite: it is Milvus Lite's.
    """
    for pattern, remedy in _ADVICE:
        if re.search(pattern, words):
            return remedy
    if is_lite:
        return (
            "a file of the database may be damaged: `cwf-milvus repair` brings back what can be, "
            "and damaged files are left as they are; run it again once this command has ended"
        )
    return (
        "that is the server's own answer: mend what it names, or restart it, then run again to go "
        "on"
    )
