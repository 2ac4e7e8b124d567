"""One network for all who search at once: what waits for it passes it in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.views import Prepared


@dataclass(frozen=True, eq=False)
class _Waiting:
    encoder: Encoder
    photo: Prepared
    future: asyncio.Future[Encoding]

    @property
    def key(self) -> Hashable:
        return id(self.encoder), self.photo.grid[0], self.photo.class_view is None


class Batcher:
    """Encodes photos that come one by one, those of one grid together.

    Who comes first is never kept waiting for company: a batch is what came while the network was
    busy.

    Args:
        told: the size of each batch.
    """

    def __init__(self, told: Callable[[int], object]) -> None:
        self._told = told
        self._waiting: list[_Waiting] = []
        self._work: asyncio.Task[None] | None = None

    async def encode(self, encoder: Encoder, photo: Prepared) -> Encoding:
        """Return a photo's vectors, as `Encoder.encode_prepared` makes them."""
        future: asyncio.Future[Encoding] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(encoder, photo, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._pass())
        return await future

    async def _pass(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            batch = [one for one in self._waiting if one.key == first.key]
            batch = batch[: first.encoder.batch_size]
            self._waiting = [one for one in self._waiting if one not in batch]
            batch = [one for one in batch if not one.future.cancelled()]
            if not batch:
                continue
            self._told(len(batch))
            try:
                made = await asyncio.to_thread(
                    first.encoder.encode_prepared, [one.photo for one in batch]
                )
            except Exception as error:  # told to each that waits for it
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)
                continue
            for one, encoding in zip(batch, made, strict=True):
                if not one.future.done():
                    one.future.set_result(encoding)
