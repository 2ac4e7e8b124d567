"""The command line: parse, call the library, print."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cwf_milvus import __version__
from cwf_milvus.cli.backup import add_backup, add_restore
from cwf_milvus.cli.calibrate import add_calibrate
from cwf_milvus.cli.completion import SHELLS, completion_script
from cwf_milvus.cli.configuration import Configuration
from cwf_milvus.cli.copy import add_copy
from cwf_milvus.cli.ending import ending_in_time, patience, say_interrupted
from cwf_milvus.cli.evaluate_options import add_evaluate
from cwf_milvus.cli.graph import add_duplicates, add_graph, add_neighbours
from cwf_milvus.cli.index import add_index
from cwf_milvus.cli.listing import add_list
from cwf_milvus.cli.networks import add_backbones, add_classes, add_convert_weights, add_explain
from cwf_milvus.cli.options import (
    OK,
    REFUSED,
    SOME_FAILED,
    USAGE,
    add_command,
    common_options,
    note,
    quiet_option,
)
from cwf_milvus.cli.parquet import add_export, add_import
from cwf_milvus.cli.remove import add_relocate, add_remove
from cwf_milvus.cli.repair import add_repair
from cwf_milvus.cli.search import add_search
from cwf_milvus.cli.serve import add_serve
from cwf_milvus.cli.upkeep import add_augment, add_info, add_verify
from cwf_milvus.errors import (
    CollectionError,
    CwfError,
    MismatchError,
    SettingsError,
    StoreError,
)
from cwf_milvus.text import printable

_EPILOG = """\
exit status: 0 all done; 1 some photos failed, or verify found damage; 2 wrong usage or an unusable
value; 3 Milvus or the collection cannot be reached, or refuses; 130 interrupted, 143 terminated.
environment: MILVUS_TOKEN the server's token, never printed (MILVUS_TOKEN_DST of the DST of copy);
CWF_MILVUS_URI and CWF_MILVUS_COLLECTION defaults for --uri and --collection.
files: cwf-milvus.toml in the working folder or an indexed one, and in $XDG_CONFIG_HOME/cwf-milvus
(~/.config/cwf-milvus), gives defaults; see docs/cli.md.
"""
_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _with_boxes(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # a photo's name may not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    if not given:
        parser.print_help(sys.stderr)
        return USAGE
    arguments = parser.parse_args(given)
    try:
        configuration = Configuration.read([Path.cwd(), *getattr(arguments, "photos", [])])
        configuration.apply(commands_of(parser), given)
    except SettingsError as error:
        return _fail(error, USAGE)
    except FileNotFoundError:  # of Path.cwd
        return _fail("the working folder was removed: change to one that is there", USAGE)
    if configuration.found:
        arguments = parser.parse_args(given)  # once more, with the defaults that it gives
        note(arguments, f"defaults from {', '.join(configuration.found)}")
    arguments.configuration = configuration
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        with _told(arguments.verbose):
            return _run(arguments)


def _with_boxes(given: list[str]) -> list[str]:
    """Return the words with each box as one with its option: -5,0,90,80 is no option."""
    words: list[str] = []
    for word in given:
        if words and words[-1] == "--box" and word.startswith("-") and "," in word:
            words[-1] = f"--box={word}"
        else:
            words.append(word)
    return words


def _run(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    try:
        with patience(arguments), ending_in_time():
            status = int(arguments.run(arguments))
            sys.stdout.flush()  # here, where a closed pipe is expected
        _LOG.info("%s took %.1f s", arguments.command, time.monotonic() - started)
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
    except KeyboardInterrupt as error:
        say_interrupted()
        return 128 + (error.args[0] if error.args else signal.SIGINT)
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
        add_serve,
        add_augment,
        add_graph,
        add_neighbours,
        add_duplicates,
        add_calibrate,
        add_list,
        add_info,
        add_verify,
        add_repair,
        add_backup,
        add_restore,
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
        _add_completion,
    ):
        add(commands)
    for name, command in commands.choices.items():
        common_options(name, command)
    return parser


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command, by name."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


# Commands that need no room of their own


def _add_demo(commands: Any) -> None:
    command = add_command(commands, "demo", _demo, "index real photos, search them, write a page")
    command.add_argument(
        "--folder", default="cwf-milvus-demo", metavar="DIR", help="where to write (%(default)s)"
    )
    quiet_option(command)


def _demo(arguments: argparse.Namespace) -> int:
    from cwf_milvus.demo import run_demo

    outcome = run_demo(arguments.folder, progress=not arguments.quiet)
    print("\nnext:")
    for line in next_commands(outcome.folder):
        print(f"  {line}")
    return SOME_FAILED if outcome.report.failed else OK


def next_commands(folder: Path) -> list[str]:
    """Return what to type after the demonstration: another search, its page, and one's own photos.

    Args:
        folder: of the demonstration.
    """
    started = Path(sys.argv[0])  # as it was typed, for it may not be in the PATH
    program = shlex.quote(str(started)) if started.name == "cwf-milvus" else "cwf-milvus"
    place = f"--uri {shlex.quote(str(folder / 'photos.db'))} --collection demo"
    flower = shlex.quote(str(folder / "photos" / "flower.jpg"))
    return [
        f"{program} search {flower} {place} --limit 5",
        f"{program} info {place}",
        f"{program} index ~/Pictures --uri pictures.db",
    ]


def _add_towhee(commands: Any) -> None:
    command = add_command(
        commands, "towhee", _towhee, "link the operators into Towhee's folder, or undo that"
    )
    command.add_argument("action", choices=("install", "uninstall"))
    command.add_argument(
        "--home", metavar="DIR", help="Towhee's folder (TOWHEE_HOME, or else ~/.towhee)"
    )


def _towhee(arguments: argparse.Namespace) -> int:
    from cwf_milvus.operators.install import install, uninstall

    if arguments.action == "install":
        for link in install(arguments.home):
            print(f"linked: {link}")
    else:
        for link in uninstall(arguments.home):
            print(f"removed: {link}")
    return OK


def _add_completion(commands: Any) -> None:
    command = add_command(
        commands, "completion", _completion, "print a script by which a shell completes commands"
    )
    command.add_argument("shell", choices=SHELLS, help="source what is printed in its start file")


def _completion(arguments: argparse.Namespace) -> int:
    print(completion_script(build_parser(), arguments.shell))
    return OK


# What is said on standard error


@contextmanager
def _told(verbose: bool) -> Iterator[None]:
    """Show what the library logs, where --verbose asks for it."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("cwf_milvus"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    """Writes log records above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # --help need not wait for it

        tqdm.write(_readable(record.getMessage()), file=sys.stderr)


def _fail(error: object, status: int) -> int:
    if _LOG.isEnabledFor(logging.INFO):
        print(_readable(traceback.format_exc()), file=sys.stderr)
    print(f"cwf-milvus: {_readable(error)}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {_readable(message)}", file=sys.stderr)


def _readable(message: object) -> str:
    """Return a message as lines that a terminal cannot be misled by."""
    return "\n".join(map(printable, str(message).splitlines()))
