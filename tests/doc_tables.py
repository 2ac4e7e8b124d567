"""Tables of the documentation that are made of the code: run this file to write them anew."""

from __future__ import annotations

import re
from pathlib import Path

from cwf_milvus.search.registry import STAGES

PAGE = Path(__file__).parents[1] / "docs" / "reranking.md"
_PLACE = re.compile(r"(?<=<!-- stages -->\n).*?(?=<!-- /stages -->)", re.DOTALL)


def stages_table() -> str:
    """Return a table of the stages that can be asked for by name."""
    rows = ["| asked for by | score | reads |", "|---|---|---|"]
    for name, stage in STAGES.items():
        beside = "the graph" if stage.option == "expand" else "the photo itself"
        reads = " and ".join(stage.needs) or beside
        rows.append(f'| `{stage.option}="{name}"` | {stage.about} | {reads} |')
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """Return the page with the table as the code has it."""
    return _PLACE.sub(lambda _: stages_table(), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
