"""`Hits`: the answer to one query, as a table, as JSON, as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from cwf_milvus.answers.hits import NOT_HERE, Hit, Query
from cwf_milvus.answers.page import hits_fragment, save_page, shown
from cwf_milvus.text import printable, table


class Hits(Sequence[Hit]):
    """The answer to one query, best first; a sequence of `Hit`.

    Printed it is a table, in a notebook a row of pictures, and `save` writes a page.

    Args:
        query: what was asked.
        hits: the answer, best first.
        found: whether the thing is there; None where it cannot be told.
    """

    def __init__(self, query: Query, hits: Sequence[Hit], found: bool | None = None) -> None:
        self.query = query
        self.found = found
        self._hits = tuple(hits)

    def __len__(self) -> int:
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Hits: ...
    def __getitem__(self, index: int | slice) -> Hit | Hits:
        if isinstance(index, slice):
            return Hits(self.query, self._hits[index], self.found)
        return self._hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        return f"Hits({self.query.name!r}, {len(self)} hits)"

    def __str__(self) -> str:
        return self.table()

    def table(self, show: Sequence[str] = ()) -> str:
        """Return the hits as a table.

        Args:
            show: your own fields, a column each.
        """
        if not self._hits:
            absent = f"{NOT_HERE}; " if self.found is False else ""
            return f"{printable(self.query.name)}: {absent}no hits"
        columns = {
            "rank": [str(rank) for rank in range(1, len(self) + 1)],
            "score": [f"{hit.score:.4f}" for hit in self],
        }
        if any(hit.certainty is not None for hit in self):
            columns["certainty"] = [
                "-" if hit.certainty is None else f"{hit.certainty:.2f}" for hit in self
            ]
        if any(hit.inliers is not None for hit in self):
            columns["points"] = [_points(hit) for hit in self]
        numbers = range(len(columns))
        columns["photo"] = [printable(hit.uri) for hit in self]
        for name in show:
            values = [hit.metadata for hit in self]
            columns[name] = [printable(shown(one[name])) if name in one else "-" for one in values]
        columns["shared classes"] = [", ".join(hit.classes[:3]) for hit in self]
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        return self._verdict() + table(rows, right=numbers)

    def _verdict(self) -> str:
        return f"{NOT_HERE}; the nearest:\n" if self.found is False else ""

    def _repr_html_(self) -> str:
        return hits_fragment(self.query, self, self.found)

    def to_dict(self) -> dict[str, Any]:
        """Return query and hits as plain values that JSON holds."""
        return {
            "query": {
                "name": self.query.name,
                "box": None if self.query.box is None else list(self.query.box),
            },
            "found": self.found,
            "hits": [hit.to_dict() for hit in self],
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def save(
        self, path: str | Path, show: Sequence[str] | None = None, *, hide_paths: bool = False
    ) -> Path:
        """Write one self-contained HTML page: the query with its box, and each hit.

        Args:
            path: the file; a page that is there is replaced.
            show: which of your own fields; None for all.
            hide_paths: name photos without their folders or hosts.

        Raises:
            SettingsError: the page cannot be written there, or a file that is no text is there.
        """
        return save_page([(self.query, self, self.found)], path, show, hide_paths=hide_paths)

    def explain(self) -> str:
        """Return a table of each stage's score and rank, so that one sees what moved a hit.

        Where keypoints were looked for, "points" is how many agree.
        """
        verified = any(hit.inliers is not None for hit in self)
        names = list(dict.fromkeys(stage.stage for hit in self for stage in hit.stages))
        rows = [("rank", "photo", *names, *(("points",) if verified else ()), "moved")]
        for rank, hit in enumerate(self, start=1):
            by_name = {stage.stage: stage for stage in hit.stages}
            cells = [
                f"{by_name[name].score:.4f} (#{by_name[name].rank})" if name in by_name else "-"
                for name in names
            ]
            if verified:
                cells.append(_points(hit))
            moved = hit.stages[0].rank - rank if hit.stages else 0
            rows.append((str(rank), printable(hit.uri), *cells, f"{moved:+d}" if moved else "="))
        return self._verdict() + table(rows, right=(0,))


def _points(hit: Hit) -> str:
    return "-" if hit.inliers is None else str(hit.inliers)
