"""`cwf-milvus backup` and `restore`: a collection as one file, and back."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cwf_milvus.cli.options import OK, SOME_FAILED, add_command, collection_options, token
from cwf_milvus.text import printable


def add_backup(commands: Any) -> None:
    """Add the command that writes a backup."""
    command = add_command(
        commands, "backup", _backup, "write a collection to one file; others may write meanwhile"
    )
    command.add_argument("file", metavar="FILE", help="where to; an earlier backup is replaced")
    collection_options(command)


def _backup(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.store.backup import backup

    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        outcome = backup(collection, arguments.file)
    print("\n".join(map(printable, str(outcome).splitlines())))
    return SOME_FAILED if outcome.damaged else OK


def add_restore(commands: Any) -> None:
    """Add the command that makes a collection of a backup."""
    command = add_command(commands, "restore", _restore, "make a collection of a backup")
    command.add_argument("file", metavar="FILE", help="of backup")
    collection_options(command)
    command.set_defaults(collection=os.environ.get("CWF_MILVUS_COLLECTION"))  # else its own name


def _restore(arguments: argparse.Namespace) -> int:
    from cwf_milvus.store.backup import restore

    print(restore(arguments.file, arguments.uri, arguments.collection, token=token()))
    return OK
