"""The commands on a collection that is there: `info`, `verify`, `augment`, `remove`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    collection_options,
    print_pairs,
    token,
)
from cwf_milvus.errors import SettingsError
from cwf_milvus.text import printable


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
    command.add_argument("--json", action="store_true", help="print JSON")


def _verify(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        outcome = collection.verify(accept=arguments.accept)
    print(json.dumps(outcome.to_dict()) if arguments.json else outcome)
    return OK if outcome.ok else SOME_FAILED


def add_remove(commands: Any) -> None:
    """Add `remove` and its options."""
    command = add_command(
        commands, "remove", _remove, "remove photos from a collection, or drop it"
    )
    command.add_argument(
        "uris", nargs="*", metavar="URI", help="photos, as the collection has them"
    )
    command.add_argument("--all", action="store_true", help="drop the collection with its encoder")
    collection_options(command)


def _remove(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.photos.sources import uri_of

    if arguments.all == bool(arguments.uris):
        raise SettingsError("name the photos to remove, or give --all to drop the collection")
    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        if arguments.all:
            collection.drop()
            print(f"dropped {arguments.collection}")
            return OK
        stored = collection.contents(arguments.uris)
        named = {uri if uri in stored else uri_of(uri) for uri in arguments.uris}
        missing = named - collection.contents(named).keys()
        removed = collection.remove(named - missing)
    for uri in sorted(missing):
        print(f"not in {arguments.collection}: {printable(uri)}", file=sys.stderr)
    print(f"removed {removed} of {len(named)}")
    return SOME_FAILED if missing else OK
