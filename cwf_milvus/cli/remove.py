"""`cwf-milvus remove` and `relocate`: rows taken out, or given other names."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cwf_milvus.cli.options import OK, SOME_FAILED, add_command, collection_options, token
from cwf_milvus.errors import SettingsError
from cwf_milvus.text import printable


def add_remove(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands, "remove", run, "remove photos, the photos of a folder, or a whole collection"
    )
    command.add_argument(
        "uris", nargs="*", metavar="NAME", help="photos, or folders, which may be gone"
    )
    command.add_argument("--all", action="store_true", help="drop the collection with its encoder")
    command.add_argument(
        "--yes",
        action="store_true",
        help="do not ask before all, or a folder that is still there, is removed",
    )
    collection_options(command)


def run(arguments: argparse.Namespace) -> int:
    """Remove as the command line asks; returns the exit status."""
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.photos.sources import is_gone

    if arguments.all == bool(arguments.uris):
        raise SettingsError("name the photos to remove, or give --all to drop the collection")
    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        if arguments.all:
            _ask(arguments, f"drop {arguments.collection} with its {collection.count()} photos")
            collection.drop()
            print(f"dropped {arguments.collection}")
            return OK
        found: dict[str, None] = {}
        missing = []
        for name in arguments.uris:
            one = list(collection.contents(name))
            under = [] if one else collection.under(name)
            if under and not all(map(is_gone, under)):
                _ask(arguments, f"remove the {len(under)} photos stored of {name}")
            if not one and not under:
                missing.append(name)
            found.update(dict.fromkeys([*one, *under]))
        removed = collection.remove(list(found))
    for name in missing:
        print(f"not in {arguments.collection}: {printable(name)}", file=sys.stderr)
    print(f"removed {removed} of {len(found) + len(missing)}")
    return SOME_FAILED if missing else OK


def _ask(arguments: argparse.Namespace, doing: str) -> None:
    """Raise `SettingsError` unless the person at the terminal, or --yes, agrees."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError(f"this would {printable(doing)}: give --yes to do so unasked")
    print(f"{printable(doing)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SettingsError("nothing was removed")


def add_relocate(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands,
        "relocate",
        run_relocate,
        "give photos that moved their new names, without reading them",
    )
    command.add_argument("old", metavar="OLD", help="a photo or folder, as it was indexed")
    command.add_argument("new", metavar="NEW", help="where it is now")
    collection_options(command)


def run_relocate(arguments: argparse.Namespace) -> int:
    """Relocate as the command line asks; returns the exit status."""
    from cwf_milvus.collection import InstanceCollection

    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        moved = collection.relocate(arguments.old, arguments.new)
    print(f"relocated {moved} photos")
    return OK
