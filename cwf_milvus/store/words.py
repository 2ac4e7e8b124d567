"""What Milvus raises, in words of ours."""

from __future__ import annotations

import re

import grpc  # type: ignore[import-untyped]
from pymilvus import MilvusException

MILVUS_ERRORS = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError)


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


def is_unreachable(error: BaseException | None) -> bool:
    """Tell whether Milvus went away or did not answer in time, rather than refuse."""
    return _is_unreachable(words_of(error))


def remedy(words: str) -> str:
    """Return what to do about an error of which Milvus said this."""
    if re.search(r"No space left|File too large|[Dd]isk quota|read-only file system", words):
        return "make room on the disk, then run again: it goes on from what was finished"
    if "UNAUTHENTICATED" in words or "auth" in words.lower():
        return "check the token"
    if _is_unreachable(words):
        return (
            "see that it is running and that the address is right; what was finished is kept, "
            "run again to go on"
        )
    if "RESOURCE_EXHAUSTED" in words:
        return "ask for less at once"
    return "its log may say more"


def _is_unreachable(words: str) -> bool:
    return bool(
        re.search(r"UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|Fail connecting|[Tt]imeout", words)
    )
