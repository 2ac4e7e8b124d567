"""`cwf-milvus list`: the collections that there are."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from cwf_milvus.cli.options import OK, add_command, token, uri_option
from cwf_milvus.text import printable, table


def add_list(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands, "list", run, "list the collections that there are, with their counts of photos"
    )
    uri_option(command)
    command.add_argument("--json", action="store_true", help="print JSON, an object a collection")


def run(arguments: argparse.Namespace) -> int:
    """List the collections; returns the exit status."""
    from cwf_milvus.store.present import present  # pymilvus takes a second

    found = present(arguments.uri, token=token())
    if arguments.json:
        for one in found:
            print(json.dumps(asdict(one)))
    elif found:
        rows = [("photos", "collection", "made with")]
        rows += [
            ("?" if one.photos is None else str(one.photos), one.name, printable(one.made_with))
            for one in found
        ]
        print(table(rows, right=(0,)))
    else:
        print("no collection made by cwf-milvus")
    return OK
