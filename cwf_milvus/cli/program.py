"""The command line: parse, call the library, print."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwf_milvus import __version__
from cwf_milvus.cli.index import add_index
from cwf_milvus.cli.options import (
    OK,
    REFUSED,
    SOME_FAILED,
    USAGE,
    add_command,
    backbone_options,
    batch_option,
    collection_options,
    network_options,
    pixels_option,
    quiet_option,
    token,
)
from cwf_milvus.cli.remove import add_relocate, add_remove
from cwf_milvus.cli.search import add_search
from cwf_milvus.errors import (
    CollectionError,
    CwfError,
    ImageError,
    MismatchError,
    SettingsError,
    StoreError,
)
from cwf_milvus.text import printable

_EPILOG = """\
exit status: 0 all done; 1 some photos failed, or verify found damage; 2 wrong usage or an unusable
value; 3 Milvus or the collection cannot be reached, or refuses; 130 interrupted.
environment: MILVUS_TOKEN the server's token, never printed; CWF_MILVUS_URI and
CWF_MILVUS_COLLECTION defaults for --uri and --collection.
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
        _add_augment,
        _add_info,
        _add_verify,
        add_remove,
        add_relocate,
        _add_classes,
        _add_explain,
        _add_evaluate,
        _add_backbones,
        _add_convert_weights,
        _add_towhee,
    ):
        add(commands)
    return parser


# The commands: each adds its parser, and runs


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


def _add_augment(commands: Any) -> None:
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


def _add_info(commands: Any) -> None:
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
        _print_pairs(info)
    return OK


def _add_verify(commands: Any) -> None:
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


def _add_classes(commands: Any) -> None:
    command = add_command(commands, "classes", _classes, "name the likely classes of photos")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command.add_argument("--box", metavar="X1,Y1,X2,Y2", help="of the crop alone")
    command.add_argument("-n", type=int, default=10, metavar="N", help="classes (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, an object a photo")
    pixels_option(command)
    backbone_options(command)


def _classes(arguments: argparse.Namespace) -> int:
    encoder = _bare_encoder(arguments, n_classes=arguments.n)
    failed = False
    for image in arguments.images:
        try:
            encoding = encoder.encode_query(image, arguments.box)
        except ImageError as error:
            print(printable(f"failed: {error}"), file=sys.stderr)
            failed = True
            continue
        top = [
            {"id": int(i), "name": encoder.class_names[i], "score": round(float(score), 4)}
            for i, score in zip(encoding.class_ids, encoding.class_scores, strict=True)
        ]
        if arguments.json:
            print(json.dumps({"uri": encoding.uri, "classes": top}))
        else:
            print(f"{printable(encoding.uri)}:")
            for entry in top:
                print(f"  {entry['id']:4d}  {entry['score']:.4f}  {entry['name']}")
    return SOME_FAILED if failed else OK


def _add_explain(commands: Any) -> None:
    command = add_command(
        commands, "explain", _explain, "draw class maps and regions over a photo, as PNG"
    )
    command.add_argument("image", metavar="IMAGE")
    command.add_argument("--box", metavar="X1,Y1,X2,Y2", help="the thing, in pixels of the photo")
    command.add_argument("-n", type=int, default=6, metavar="N", help="class maps (%(default)s)")
    command.add_argument(
        "-o", "--output", default="explain.png", metavar="FILE.png", help="(%(default)s)"
    )
    pixels_option(command)
    backbone_options(command)


def _explain(arguments: argparse.Namespace) -> int:
    from cwf_milvus.explain import explain_figure

    figure = explain_figure(
        _bare_encoder(arguments), arguments.image, arguments.box, n_classes=arguments.n
    )
    try:
        figure.save(arguments.output)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cannot write {arguments.output!r} ({error}): name a .png that can be written"
        ) from error
    print(f"written: {arguments.output}")
    return OK


def _add_evaluate(commands: Any) -> None:
    from cwf_milvus.cli.evaluate_options import add_options

    command = add_command(
        commands, "evaluate", _evaluate, "measure searches on a dataset, as the paper's tables do"
    )
    add_options(command)
    network_options(command)
    batch_option(command)
    quiet_option(command)


def _evaluate(arguments: argparse.Namespace) -> int:
    from cwf_milvus.cli.evaluate import run

    return run(arguments)


def _add_backbones(commands: Any) -> None:
    command = add_command(
        commands, "backbones", _backbones, "list the networks and what was measured with them"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _backbones(arguments: argparse.Namespace) -> int:
    from cwf_milvus.backbones import list_backbones

    for info in list_backbones():
        if arguments.json:
            print(json.dumps(vars(info)))
        else:
            print(info.name)
            _print_pairs({k: v for k, v in vars(info).items() if k != "name"}, indent="  ")
    return OK


def _add_convert_weights(commands: Any) -> None:
    command = add_command(
        commands,
        "convert-weights",
        _convert_weights,
        "turn the paper's published weights (Keras .h5 or .caffemodel) into safetensors",
    )
    command.add_argument("source", metavar="SOURCE", help="a Keras 1 .h5 or a .caffemodel")
    command.add_argument("target", metavar="TARGET.safetensors")


def _convert_weights(arguments: argparse.Namespace) -> int:
    from cwf_milvus.backbones.convert import convert_weights

    _print_pairs(convert_weights(Path(arguments.source), Path(arguments.target)))
    return OK


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


# What commands share


def _bare_encoder(arguments: argparse.Namespace, **settings: Any) -> Any:
    from cwf_milvus.encode.encoder import Encoder

    if arguments.max_pixels:
        settings["max_pixels"] = arguments.max_pixels
    return Encoder(
        arguments.backbone,
        weights=arguments.weights,
        device=arguments.device,
        whitening=None,
        **settings,
    )


def _print_pairs(pairs: dict[str, Any], indent: str = "") -> None:
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_pairs(value, indent + "  ")
        else:
            print(f"{indent}{name.replace('_', ' '):{width}}  {printable(str(value))}")


def _fail(error: object, status: int) -> int:
    print(f"cwf-milvus: {_readable(error)}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {_readable(message)}", file=sys.stderr)


def _readable(message: object) -> str:
    """Return a message as lines that a terminal cannot be misled by."""
    return "\n".join(map(printable, str(message).splitlines()))


if __name__ == "__main__":
    sys.exit(main())
