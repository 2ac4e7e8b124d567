"""Text as a terminal can show it."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a name as one line that a terminal cannot be misled by."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Return rows of cells as lines, the columns `right` set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
