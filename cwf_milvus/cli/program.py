"""The command line: parse, call the library, print."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cwf_milvus import __version__
from cwf_milvus.cli.calibrate import add_calibrate
from cwf_milvus.cli.copy import add_copy
from cwf_milvus.cli.evaluate_options import add_evaluate
from cwf_milvus.cli.graph import add_duplicates, add_graph, add_neighbours
from cwf_milvus.cli.index import add_index
from cwf_milvus.cli.networks import add_backbones, add_classes, add_convert_weights, add_explain
from cwf_milvus.cli.options import OK, REFUSED, SOME_FAILED, USAGE, add_command, quiet_option
from cwf_milvus.cli.parquet import add_export, add_import
from cwf_milvus.cli.remove import add_relocate, add_remove
from cwf_milvus.cli.search import add_search
from cwf_milvus.cli.upkeep import add_augment, add_info, add_verify
from cwf_milvus.errors import CollectionError, CwfError, MismatchError, StoreError
from cwf_milvus.text import printable

_EPILOG = """\
exit status: 0 all done; 1 some photos failed, or verify found damage; 2 wrong usage or an unusable
value; 3 Milvus or the collection cannot be reached, or refuses; 130 interrupted.
environment: MILVUS_TOKEN the server's token, never printed (MILVUS_TOKEN_DST of the DST of copy);
CWF_MILVUS_URI and CWF_MILVUS_COLLECTION defaults for --uri and --collection.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not given:
        parser.print_help(sys.stderr)
        return USAGE
    arguments = parser.parse_args(given)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):  # a photo's name may not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()  # here, where a closed pipe is expected
        return status
    except (StoreError, CollectionError, MismatchError) as error:
        return _fail(error, REFUSED)
    except CwfError as error:
        return _fail(error, USAGE)
    except (MemoryError, RuntimeError) as error:
        words = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not re.search(
            "out of memory|allocate memory", words
        ):
            raise
        advice = "give a smaller --batch-size, or a smaller --image-size to a new collection"
        return _fail(f"out of memory ({words or 'of the computer'}): {advice}", USAGE)
    except KeyboardInterrupt:
        print(
            "interrupted: what was finished is kept; run the same command to go on", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cwf-milvus",
        description="Instance search for Milvus: find this very thing in your photos.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cwf-milvus {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        add_index,
        add_search,
        add_augment,
        add_graph,
        add_neighbours,
        add_duplicates,
        add_calibrate,
        add_info,
        add_verify,
        add_remove,
        add_relocate,
        add_copy,
        add_export,
        add_import,
        add_classes,
        add_explain,
        add_evaluate,
        add_backbones,
        add_convert_weights,
        _add_towhee,
    ):
        add(commands)
    return parser


# Two commands that need no room of their own


def _add_demo(commands: Any) -> None:
    command = add_command(commands, "demo", _demo, "index real photos, search them, write a page")
    command.add_argument(
        "--folder", default="cwf-milvus-demo", metavar="DIR", help="where to write (%(default)s)"
    )
    quiet_option(command)


def _demo(arguments: argparse.Namespace) -> int:
    from cwf_milvus.demo import run_demo

    outcome = run_demo(arguments.folder, progress=not arguments.quiet)
    return SOME_FAILED if outcome.report.failed else OK


def _add_towhee(commands: Any) -> None:
    command = add_command(
        commands, "towhee", _towhee, "link the operators into Towhee's folder, or undo that"
    )
    command.add_argument("action", choices=("install", "uninstall"))
    command.add_argument(
        "--home", metavar="DIR", help="Towhee's folder (TOWHEE_HOME, or else ~/.towhee)"
    )


def _towhee(arguments: argparse.Namespace) -> int:
    from cwf_milvus.hub.install import install, uninstall

    if arguments.action == "install":
        for link in install(arguments.home):
            print(f"linked: {link}")
    else:
        for link in uninstall(arguments.home):
            print(f"removed: {link}")
    return OK


# What is said on standard error


def _fail(error: object, status: int) -> int:
    print(f"cwf-milvus: {_readable(error)}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {_readable(message)}", file=sys.stderr)


def _readable(message: object) -> str:
    """Return a message as lines that a terminal cannot be misled by."""
    return "\n".join(map(printable, str(message).splitlines()))
