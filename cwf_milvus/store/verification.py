"""Is every row of a collection there, and whole?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from cwf_milvus.errors import CollectionError
from cwf_milvus.store.client import MESSAGE_BYTES
from cwf_milvus.store.photo_rows import PhotoRows
from cwf_milvus.store.rows import as_row

_NAMED = 20  # damaged rows that the text names


@dataclass
class Verification:
    """What `InstanceCollection.verify` found.

    Attributes:
        rows: photos that are there.
        expected: photos that the ledger knows of.
        damaged: (uri, reason) of each row that is not whole.
        encoder: what is wrong with the stored encoder.
        class_rows: what is wrong with the rows of class vectors.
    """

    rows: int
    expected: int
    damaged: list[tuple[str, str]] = field(default_factory=list)
    encoder: list[str] = field(default_factory=list)
    class_rows: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many rows are missing that were stored, and not removed."""
        return max(0, self.expected - self.rows)

    @property
    def ok(self) -> bool:
        """Whether nothing is lost or damaged."""
        return not (self.lost or self.damaged or self.encoder or self.class_rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return {"ok": self.ok, "lost": self.lost, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {len(self.damaged)} damaged"]
        if self.lost:
            lines.append(
                f"{self.lost} rows are lost: {self.expected} were stored. Add the photos again, "
                "then verify with accept"
            )
        if self.rows > self.expected:
            lines.append(
                f"{self.rows - self.expected} more rows than were noted: a run was interrupted "
                "just after it stored them; nothing is lost"
            )
        lines += [f"damaged: {uri!r}: {reason}" for uri, reason in self.damaged[:_NAMED]]
        if len(self.damaged) > _NAMED:
            lines.append(f"and {len(self.damaged) - _NAMED} more damaged rows")
        if self.damaged:
            lines.append("remove the damaged rows, and add their photos again")
        return "\n".join([*lines, *self.encoder, *self.class_rows, "ok" if self.ok else "not ok"])


def verify(collection: PhotoRows) -> Verification:
    """Read every row, and compare it with its checksum and the count with the ledger.

    Raises:
        StoreError: Milvus failed.
    """
    outcome = Verification(collection.count(), collection.sidecar.expected())
    outcome.encoder = collection.sidecar.verify()
    at_once = max(1, MESSAGE_BYTES // collection.layout.row_bytes)
    uris, n_classes = collection.uris(), 0
    while part := list(islice(uris, at_once)):
        rows = collection.raw_rows(part)
        outcome.damaged += [
            (uri, "found by a scan, not by its key") for uri in part if uri not in rows
        ]
        for uri, raw in rows.items():
            n_classes += len(raw["class_ids"])
            reason = _damage(collection, raw)
            if reason:
                outcome.damaged.append((uri, reason))
    if collection.class_rows is not None:
        outcome.class_rows += collection.class_rows.verify(n_classes)
    return outcome


def _damage(collection: PhotoRows, raw: dict[str, Any]) -> str:
    if collection.layout.checksum(raw) != raw["checksum"]:
        return "its checksum is another"
    try:
        encoding = as_row(collection.layout, raw).unpack()
    except CollectionError as error:
        return str(error)
    norm = float(np.linalg.norm(encoding.descriptor))
    if not (abs(norm - 1) < 1e-3 or norm == 0):  # a photo without any feature has a zero vector
        return f"its descriptor has length {norm:.4f}"
    if len(encoding.class_vectors) != len(encoding.class_ids):
        return f"{len(encoding.class_vectors)} class vectors for {len(encoding.class_ids)} classes"
    if len(encoding.region_vectors) != len(encoding.region_boxes):
        return (
            f"{len(encoding.region_vectors)} region vectors for {len(encoding.region_boxes)} boxes"
        )
    return ""
