"""The feature maps of the photos that a network saw last, kept for those who look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cwf_milvus.encode.kept import LastUsed

_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch of photos as the network saw it.

    Attributes:
        features: X of shape (B, K, H, W).
        class_source: G of shape (B, M, H', W').
        class_weights: from class ids of shape (B, N) to their weights.
        photos: what each is known by, B of them.
    """

    features: Tensor
    class_source: Tensor
    class_weights: Callable[[Tensor], Tensor]
    photos: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its maps; the two are often one."""
        tensors = {t.data_ptr(): t for t in (self.features, self.class_source)}
        return sum(tensor.nbytes for tensor in tensors.values())


class FeatureCache:
    """The photos that were seen last, whole batches up to so many bytes, 512 MiB by default.

    Attributes:
        batches: set its `most_bytes` to keep more, or 0 for nothing.
    """

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self.batches: LastUsed[Seen] = LastUsed(most_bytes)
        self._where: dict[str, tuple[str, ...]] = {}

    def __getstate__(self) -> int:
        """Return what a copy or another process needs: the maps stay here."""
        return self.batches.most_bytes

    def __setstate__(self, most_bytes: int) -> None:
        FeatureCache.__init__(self, most_bytes)

    def find(self, photo: str) -> Seen | None:
        """Return the batch that a photo was seen in; None where it is not kept."""
        return self.batches.get(self._where.get(photo))

    def keep(self, seen: Seen) -> None:
        """Keep a batch."""
        self.batches.put(seen.photos, seen, seen.n_bytes)
        kept = (batch for batch in self.batches.keys() if isinstance(batch, tuple))  # noqa: SIM118
        self._where = {photo: photos for photos in kept for photo in photos}
