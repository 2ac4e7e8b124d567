"""What the commands share: options, their types, a progress bar, safe printing."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from cwf_milvus.cli.examples import EXAMPLES
from cwf_milvus.text import printable

OK, SOME_FAILED, USAGE, REFUSED = 0, 1, 2, 3
"""Exit statuses."""

_ALL_CLASSES = 4096  # the most that a row of Milvus holds


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], purpose: str
) -> argparse.ArgumentParser:
    """Add a command to the parser; `run` gets its arguments and returns the exit status."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=textwrap.fill(f"{purpose[0].upper()}{purpose[1:]}."),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def common_options(name: str, command: argparse.ArgumentParser) -> None:
    """Add what every command has, once its own options are there: --verbose, --quiet, examples."""
    command.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say what becomes of each photo, the time taken, and where an error came from",
    )
    if "--quiet" not in command._option_string_actions:
        quiet_option(command)
    examples = EXAMPLES.get(name, ())
    command.epilog = "\n".join(["examples:", *(f"  cwf-milvus {one}" for one in examples)])


def note(arguments: argparse.Namespace, text: str) -> None:
    """Say something on standard error that is neither an answer nor a warning."""
    if not arguments.quiet:
        print(printable(text), file=sys.stderr)


def uri_option(command: argparse.ArgumentParser) -> None:
    """Add --uri and --wait."""
    command.add_argument(
        "--uri",
        type=os.path.expanduser,  # also after an =, where no shell does it
        default=os.environ.get("CWF_MILVUS_URI", "photos.db"),
        metavar="URI",
        help="a .db path (Milvus Lite) or http(s)://host:port (%(default)s)",
    )
    command.add_argument(
        "--wait",
        type=seconds,
        default=120.0,
        metavar="SECONDS",
        help="how long to wait for a server that does not answer any more (%(default)g)",
    )


def collection_options(command: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --uri, --wait and --collection, which may name several."""
    uri_option(command)
    name = os.environ.get("CWF_MILVUS_COLLECTION", "photos")
    command.add_argument(
        "--collection",
        nargs="+" if several else None,
        default=[name] if several else name,
        metavar="NAME",
        help=f"one or several ({name})" if several else "(%(default)s)",
    )


def network_options(command: argparse.ArgumentParser) -> None:
    """Add --weights, --device and --runtime."""
    command.add_argument(
        "--weights", metavar="FILE", help="the network's checkpoint (its published one)"
    )
    command.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, ... (the GPU if there is one)"
    )
    command.add_argument(
        "--runtime",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="what runs the network on a CPU (%(default)s: OpenVINO where it is installed)",
    )


def batch_option(command: argparse.ArgumentParser) -> None:
    """Add --batch-size."""
    command.add_argument(
        "--batch-size", type=positive, metavar="N", help="photos a forward pass (8, on a GPU 32)"
    )


def backbone_options(command: argparse.ArgumentParser) -> None:
    """Add --backbone and the options of its network."""
    command.add_argument(
        "--backbone", default="efficientnet_lite0", metavar="NAME", help="the network (%(default)s)"
    )
    network_options(command)


def pixels_option(command: argparse.ArgumentParser) -> None:
    """Add --max-pixels."""
    command.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="largest photo that is decoded in full, in pixels (89478485); larger ones that cannot "
        "be read at a reduced scale are refused",
    )


def quiet_option(command: argparse.ArgumentParser) -> None:
    """Add --quiet."""
    command.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="no progress bar, and no notes of files read or written",
    )


def index_option(command: Any, default: str = "as it was; FLAT on Milvus Lite") -> None:
    """Add --index, of a collection that is made."""
    command.add_argument(
        "--index",
        type=_index,
        metavar="TYPE[,NAME=N...]",
        help=f"of the descriptors on a server, such as HNSW,M=32,efConstruction=400 ({default})",
    )


def _index(text: str) -> dict[str, Any]:
    """Return an index as Milvus takes it, for argparse."""
    kind, *rest = text.split(",")
    pairs = [one.partition("=") for one in rest]
    if not kind or not all(name and value.isdecimal() for name, _, value in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a type, then its numbers, as in HNSW,M=32,efConstruction=400"
        )
    params = {name: int(value) for name, _, value in pairs}
    return {"index_type": kind, **({"params": params} if params else {})}


def positive(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Return a number of seconds from 0 to a day, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds, from 0 to 86400")
    return value


def count_or_all(text: str) -> int:
    """Return a number of classes, for argparse; "all" is more than any network has."""
    return _ALL_CLASSES if text == "all" else positive(text)


def numbers(text: str) -> tuple[int, ...]:
    """Return numbers with commas between them, for argparse."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give class ids, as in 285,282") from error


def names(text: str) -> tuple[str, ...]:
    """Return names with commas between them, for argparse."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def token() -> str | None:
    """Return the server's token, which is in no option: others could read it there."""
    return os.environ.get("MILVUS_TOKEN")


def print_pairs(pairs: dict[str, Any], indent: str = "") -> None:
    """Print names and values, a line each, those of a table set in below its name."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        if isinstance(value, dict):
            print(f"{indent}{printable(name)}:")
            print_pairs(value, indent + "  ")
        else:
            print(f"{indent}{name.replace('_', ' '):{width}}  {printable(str(value))}")


def progress_bar(quiet: bool, doing: str) -> Callable[[int, int], None] | None:
    """Return what shows (photos done, photos in all) as a bar; None for none."""
    if quiet:
        return None
    from tqdm import tqdm

    bar = tqdm(unit="photo", desc=doing, dynamic_ncols=True)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
