"""`cwf-milvus graph`, `neighbours` and `duplicates`: the graph of the stored photos."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from cwf_milvus.cli.options import OK, add_command, collection_options, quiet_option, token
from cwf_milvus.text import printable, table


def add_graph(commands: Any) -> None:
    """Add the command that builds the graph."""
    command = add_command(
        commands,
        "graph",
        _graph,
        "build the graph of the photos, or bring it up to date, for search --expand graph",
    )
    collection_options(command)
    command.add_argument(
        "--neighbours", type=int, default=10, metavar="K", help="of each photo (%(default)s)"
    )
    command.add_argument(
        "--no-verify", action="store_true", help="do not compare the photos' keypoints"
    )
    command.add_argument("--drop", action="store_true", help="drop the graph")
    quiet_option(command)


def _graph(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as collection:
        if arguments.drop:
            print("dropped" if collection.drop_graph() else "there was no graph")
        else:
            report = collection.build_graph(
                neighbours=arguments.neighbours,
                verify=not arguments.no_verify,
                progress=not arguments.quiet,
            )
            print(report)
    return OK


def add_neighbours(commands: Any) -> None:
    """Add the command that names a photo's neighbours."""
    command = add_command(
        commands, "neighbours", _neighbours, "name the stored photos that resemble one of them"
    )
    command.add_argument("photo", metavar="URI", help="a photo, as the collection has it")
    collection_options(command)
    command.add_argument("--limit", type=int, default=10, metavar="N", help="(%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")


def _neighbours(arguments: argparse.Namespace) -> int:
    from cwf_milvus.photos.sources import uri_of

    with _opened(arguments) as collection:
        uri = arguments.photo
        uri = uri if uri in collection.contents([uri]) else uri_of(uri)
        found = collection.neighbours(uri, arguments.limit)
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    elif found:
        rows = [("similarity", "inliers", "cover", "photo")]
        rows += [
            (f"{one.similarity:.4f}", str(one.inliers), f"{one.cover:.2f}", printable(one.uri))
            for one in found
        ]
        print(table(rows, right=(0, 1, 2)))
    else:
        print("nothing resembles it")
    return OK


def add_duplicates(commands: Any) -> None:
    """Add the command that names duplicates."""
    command = add_command(
        commands,
        "duplicates",
        _duplicates,
        "name the stored photos with the same bytes, and, by the graph, those of the same scene",
    )
    collection_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _duplicates(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as collection:
        has_graph = collection.has_graph()
        groups = collection.duplicates()
    if arguments.json:
        print(json.dumps([group.to_dict() for group in groups]))
        return OK
    for group in groups:
        print(printable(group.representative))
        # with other pictures in the group, a copy may be one of them and not of the first
        copied = "the same bytes as another" if group.others else "the same bytes"
        for uri in group.copies:
            print(f"  {copied}: {printable(uri)}")
        for uri in group.others:
            print(f"  the same scene: {printable(uri)}")
    print(
        f"{len(groups)} groups"
        + ("" if has_graph else "; for photos of the same scene run `cwf-milvus graph` first")
    )
    return OK


def _opened(arguments: argparse.Namespace) -> Any:
    from cwf_milvus.collection import InstanceCollection

    return InstanceCollection.open(arguments.uri, arguments.collection, token=token())
