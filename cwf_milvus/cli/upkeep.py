"""The commands on a collection that is there: `info`, `verify`, `augment`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    collection_options,
    print_pairs,
    token,
)


def add_augment(commands: Any) -> None:
    """Add `augment` and its options."""
    command = add_command(
        commands,
        "augment",
        _augment,
        "make descriptors augmented by their neighbours, for search --augmented",
    )
    collection_options(command)
    command.add_argument(
        "--neighbours", type=int, default=10, metavar="N", help="of each photo (%(default)s)"
    )
    command.add_argument(
        "--alpha", type=float, default=3.0, metavar="A", help="a neighbour weighs cosine^A (3)"
    )
    command.add_argument("--undo", action="store_true", help="drop the augmented descriptors")


def _augment(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    with InstanceCollection.open(
        arguments.uri, arguments.collection, token=token(), encoder=None
    ) as collection:
        if arguments.undo:
            there = collection.undo_augmentation()
            print("dropped" if there else "there were no augmented descriptors")
        else:
            print(collection.augment(neighbours=arguments.neighbours, alpha=arguments.alpha))
    return OK


def add_info(commands: Any) -> None:
    """Add `info` and its options."""
    command = add_command(
        commands, "info", _info, "say what a collection holds and how it was made"
    )
    collection_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    info = InstanceCollection.describe(arguments.uri, arguments.collection, token=token())
    if arguments.configuration.found:
        info["configuration"] = arguments.configuration.shown()
    if arguments.json:
        print(json.dumps(info))
    else:
        print_pairs(info)
    return OK


def add_verify(commands: Any) -> None:
    """Add `verify` and its options."""
    command = add_command(commands, "verify", _verify, "check that every row is there and whole")
    collection_options(command)
    command.add_argument(
        "--accept",
        action="store_true",
        help="take the present number of rows as the right one from now on",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="every photo against its receipt, but about 1,000 rows alone read whole",
    )
    command.add_argument(
        "--files",
        action="store_true",
        help="also read the photos, and name the rows whose files are gone or changed",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _verify(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        outcome = collection.verify(
            accept=arguments.accept, quick=arguments.quick, files=arguments.files
        )
    print(json.dumps(outcome.to_dict()) if arguments.json else outcome)
    return OK if outcome.ok else SOME_FAILED
