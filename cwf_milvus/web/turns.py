"""Whose turn it is: so many searches at once, so many that wait, and the rest sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException

_RETRY_SECONDS = 2


class Turns:
    """Lets a number of searches run, and a number wait.

    Args:
        at_once: searches that run.
        waiting: searches that wait.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most = waiting
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Raises HTTPException where too many wait already."""
        if self._free.locked() and self.waiting >= self._most:
            raise HTTPException(
                503,
                "too many searches at once: try again in a moment",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()
