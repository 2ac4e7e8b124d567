"""`cwf-milvus completion`: a static script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
from typing import Any

from cwf_milvus.cli.options import OK, add_command

_SHELLS = ("bash", "zsh", "tcsh")
_PATHS = frozenset(["PHOTOS", "QUERY", "IMAGE", "FILE", "SOURCE", "TARGET", "GROUND_TRUTH"])


def add_completion(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "completion", run, "print a script by which a shell completes commands"
    )
    command.add_argument("shell", choices=_SHELLS, help="source what is printed in its start file")


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit status."""
    import shtab  # for this command alone

    from cwf_milvus.cli.program import build_parser

    parser = build_parser()
    for action in _actions(parser):
        kind = str(action.metavar).partition(".")[0]
        if kind in _PATHS or kind == "DIR":
            action.complete = shtab.DIRECTORY if kind == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return OK


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found: list[argparse.Action] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
        else:
            found.append(action)
    return found
