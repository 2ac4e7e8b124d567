"""Documentation that is made of the code: run this file to write it anew."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cwf_milvus.cli.examples import EXAMPLES
from cwf_milvus.cli.program import build_parser, commands_of
from cwf_milvus.search.registry import STAGES

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CLI_PAGE = DOCS / "reranking.md", DOCS / "cli.md"
_PLACE = {
    name: re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    for name in ("stages", "commands")
}
_COMMON = ("--help", "--verbose", "--quiet", "--uri", "--collection", "--wait")


def stages_table() -> str:
    """Return a table of the stages that can be asked for by name."""
    rows = ["| asked for by | score | reads |", "|---|---|---|"]
    for name, stage in STAGES.items():
        reads = " and ".join([*stage.needs, *filter(None, [stage.beside])])
        rows.append(f'| `{stage.option}="{name}"` | {stage.about} | {reads} |')
    return "\n".join(rows) + "\n"


def commands_text() -> str:
    """Return every command with its options and examples, as its help has them."""
    for name in ("CWF_MILVUS_URI", "CWF_MILVUS_COLLECTION", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)  # they change defaults
    lines: list[str] = []
    for name, command in commands_of(build_parser()).items():
        about = " ".join((command.description or "").split())
        lines += [f"### {name}", "", about, "", *_options(command)]
        lines += ["```bash", *(f"cwf-milvus {one}" for one in EXAMPLES[name]), "```", ""]
    return "\n".join(lines)


def _options(command: argparse.ArgumentParser) -> Iterator[str]:
    rows = []
    for action in command._actions:
        if any(option in _COMMON for option in action.option_strings) and action.dest != "uri":
            continue
        if action.dest == "uri" and action.default is not None:  # that of evaluate is another
            continue
        word = action.metavar if isinstance(action.metavar, str) else None
        if action.choices is not None and word is None:
            word = "{" + ",".join(map(str, action.choices)) + "}"
        word = (word or action.dest.upper()) if action.nargs != 0 else ""
        names = ", ".join(f"{option} {word}".strip() for option in action.option_strings) or word
        about = (action.help or "") % {"default": action.default}
        rows.append(f"| `{names}` | {about} |".replace("N|all", "N\\|all"))
    if rows:
        yield from ["| argument | |", "|---|---|", *rows, ""]


def with_table(page: str) -> str:
    """Return the page with the table of stages as the code has it."""
    return _PLACE["stages"].sub(lambda _: stages_table(), page)


def with_commands(page: str) -> str:
    """Return the page with the commands as their help has them."""
    return _PLACE["commands"].sub(lambda _: commands_text(), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
    CLI_PAGE.write_text(with_commands(CLI_PAGE.read_text()))
