"""`cwf-milvus repair`: one command that brings back all that can be brought back."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    collection_options,
    network_options,
    quiet_option,
    token,
)
from cwf_milvus.text import printable


def add_repair(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands,
        "repair",
        run,
        "bring back what is damaged or lost, from the rows, the receipts and the photos; damaged "
        "files of Milvus Lite are left as they are, and a new database is made beside them",
    )
    collection_options(command)
    command.add_argument(
        "--into", metavar="NEW.db", help="the new database, if one is needed (NAME.repaired.db)"
    )
    command.add_argument(
        "--metadata",
        metavar="FILE",
        help="your own fields of the photos that are written anew (those in the rows)",
    )
    network_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    quiet_option(command)


def run(arguments: argparse.Namespace) -> int:
    """Repair as the command line asks; returns the exit status."""
    from cwf_milvus.index.repair import repair

    outcome = repair(
        arguments.uri,
        arguments.collection,
        into=arguments.into,
        token=token(),
        weights=arguments.weights,
        device=arguments.device,
        metadata=arguments.metadata,
        progress=not arguments.quiet,
    )
    if arguments.json:
        print(json.dumps(outcome.to_dict()))
    else:
        print("\n".join(map(printable, str(outcome).splitlines())))
    return OK if outcome.ok else SOME_FAILED
