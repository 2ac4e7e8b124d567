"""Static scripts by which a shell completes commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "tcsh")
_FILES = frozenset(["PHOTOS", "QUERY", "IMAGE", "FILE", "SOURCE", "TARGET", "GROUND_TRUTH"])


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what a shell reads to complete a parser's commands, options, files and folders.

    Args:
        parser: a fresh one, which is changed: its actions are marked with what completes them.
        shell: one of `SHELLS`.
    """
    import shtab  # for this command alone

    for action in _actions(parser):
        kind = str(action.metavar).partition(".")[0]
        if kind in _FILES or kind == "DIR":
            marked = shtab.DIRECTORY if kind == "DIR" else shtab.FILE
            action.complete = marked  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
