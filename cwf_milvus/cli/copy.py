"""`cwf-milvus copy`: a collection to another Milvus, or another name."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    index_option,
    progress_bar,
    quiet_option,
    token,
)
from cwf_milvus.text import printable


def add_copy(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands,
        "copy",
        run,
        "copy a collection, with all that belongs to it, to another Milvus or another name",
    )
    for name, what in (("source", "from"), ("target", "to")):
        command.add_argument(
            name,
            type=os.path.expanduser,
            metavar={"source": "SRC", "target": "DST"}[name],
            help=f"{what} where: a .db path (Milvus Lite) or http(s)://host:port",
        )
    command.add_argument(
        "--collection",
        default=os.environ.get("CWF_MILVUS_COLLECTION", "photos"),
        metavar="NAME",
        help="(%(default)s)",
    )
    command.add_argument("--as", dest="new_name", metavar="NAME", help="its name there (the same)")
    index_option(command)
    quiet_option(command)


def run(arguments: argparse.Namespace) -> int:
    """Copy as the command line asks; returns the exit status.

    MILVUS_TOKEN is for both; MILVUS_TOKEN_DST, where it is set, for the second.
    """
    from cwf_milvus.store.copying import copy_collection

    done = copy_collection(
        arguments.source,
        arguments.collection,
        arguments.target,
        arguments.new_name,
        token=token(),
        target_token=os.environ.get("MILVUS_TOKEN_DST"),
        index=arguments.index,
        progress=progress_bar(arguments.quiet, "copying"),
    )
    print("\n".join(map(printable, str(done).splitlines())))
    return SOME_FAILED if done.damaged or done.left_out else OK
