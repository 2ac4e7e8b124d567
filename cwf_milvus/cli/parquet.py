"""`cwf-milvus export` and `import`: a collection as Parquet files, and back."""

from __future__ import annotations

import argparse
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    add_command,
    collection_options,
    index_option,
    progress_bar,
    quiet_option,
    token,
)
from cwf_milvus.text import printable


def add_export(commands: Any) -> None:
    """Add `export` and its options."""
    command = add_command(
        commands,
        "export",
        _export,
        "write a collection, with all that belongs to it, as files that Milvus imports in bulk",
    )
    command.add_argument("--parquet", required=True, metavar="DIR", help="where to write")
    collection_options(command)
    quiet_option(command)


def _export(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.store.parquet import checked_export, export_collection

    checked_export(arguments.parquet)
    with InstanceCollection.open(arguments.uri, arguments.collection, token=token()) as collection:
        done = export_collection(
            collection, arguments.parquet, progress=progress_bar(arguments.quiet, "exporting")
        )
    print(printable(str(done)))
    return OK


def add_import(commands: Any) -> None:
    """Add `import` and its options."""
    command = add_command(
        commands, "import", _import, "make a collection of files that export wrote, or add them"
    )
    command.add_argument("folders", nargs="+", metavar="DIR", help="of export; several are joined")
    collection_options(command)
    index_option(command)
    command.add_argument(
        "--schema-only",
        action="store_true",
        help="make the collections without their rows, for a server to import the files itself",
    )
    quiet_option(command)


def _import(arguments: argparse.Namespace) -> int:
    from cwf_milvus.store.parquet import import_collection

    written = 0
    for folder in arguments.folders:
        written += import_collection(
            folder,
            arguments.uri,
            arguments.collection,
            token=token(),
            index=arguments.index,
            schema_only=arguments.schema_only,
            progress=progress_bar(arguments.quiet, "importing"),
        )
    print(f"{written} photos written into {arguments.collection}")
    return OK
