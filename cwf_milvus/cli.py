"""The command line: parse, call the library, print."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwf_milvus import __version__
from cwf_milvus.errors import (
    CollectionError,
    CwfError,
    ImageError,
    MismatchError,
    SettingsError,
    StoreError,
)

OK, SOME_FAILED, USAGE, REFUSED = 0, 1, 2, 3
_ALL_CLASSES = 4096  # the most that a row of Milvus holds

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
        _add_index,
        _add_search,
        _add_augment,
        _add_info,
        _add_verify,
        _add_remove,
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
    command = _command(commands, "demo", _demo, "index real photos, search them, write a page")
    command.add_argument(
        "--folder", default="cwf-milvus-demo", metavar="DIR", help="where to write (%(default)s)"
    )
    _quiet_option(command)


def _demo(arguments: argparse.Namespace) -> int:
    from cwf_milvus.demo import run_demo

    outcome = run_demo(arguments.folder, progress=not arguments.quiet)
    return SOME_FAILED if outcome.report.failed else OK


def _add_index(commands: Any) -> None:
    command = _command(
        commands,
        "index",
        _index,
        "add photos to a collection, creating it if need be; skips what is there",
    )
    command.add_argument(
        "photos", nargs="+", metavar="PHOTOS", help="files, folders, globs or fsspec urls"
    )
    _collection_options(command)
    command.add_argument(
        "--metadata",
        metavar="FILE",
        help="a .csv or .jsonl with a column file_name and your own fields; without it, "
        "metadata.csv or metadata.jsonl in an indexed folder",
    )
    command.add_argument(
        "--prune", action="store_true", help="remove rows of files gone from the named folders"
    )
    command.add_argument(
        "--report", metavar="FILE.jsonl", help="write what became of each photo, a line each"
    )
    command.add_argument(
        "--workers", type=_positive, metavar="N", help="threads that read and decode"
    )
    made = command.add_argument_group("when the collection is created")
    made.add_argument("--backbone", metavar="NAME", help="the network (efficientnet_lite0)")
    made.add_argument("--layer", metavar="NAME", help="the layer that gives the features")
    made.add_argument(
        "--cams-from", metavar="BACKBONE", help="another network that supplies the class maps"
    )
    made.add_argument("--image-size", type=int, metavar="PX", help="side of the features' view")
    made.add_argument(
        "--class-image-size", type=int, metavar="PX", help="side of the classes' view"
    )
    made.add_argument(
        "--store-classes", type=_count_or_all, metavar="N|all", help="class vectors kept an image"
    )
    of_all = made.add_mutually_exclusive_group()
    of_all.add_argument(
        "--classes", type=_numbers, metavar="ID,ID,...", help="a predefined class list for all"
    )
    of_all.add_argument(
        "--classes-from",
        metavar="PHOTOS",
        help="count the predefined class list from these representative queries, "
        "as many as --store-classes says",
    )
    made.add_argument(
        "--descriptor",
        choices=("classes", "regions", "both"),
        help="what the descriptor sums; classes is the paper's offline aggregation",
    )
    made.add_argument("--dim", type=int, metavar="D", help="dimensions of every vector")
    whitening = made.add_mutually_exclusive_group()
    whitening.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="PHOTOS",
        help="fit the whitening on these photos (without a value: on the photos to index, which "
        "is worse than on others)",
    )
    whitening.add_argument("--whitening", metavar="FILE", help="a whitening file or saved encoder")
    whitening.add_argument("--no-whitening", action="store_true", help="go without whitening")
    made.add_argument(
        "--class-rows",
        action="store_true",
        help="also keep a row a class vector, to search by class",
    )
    made.add_argument(
        "--precision",
        choices=("int8", "float16"),
        help="of the stored class and region vectors (int8; float16 takes twice the room)",
    )
    made.add_argument(
        "--paper-compat", action="store_true", help="do as the paper's scripts where they differ"
    )
    _network_options(command)
    _batch_option(command)
    _quiet_option(command)


def _index(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.indexing import check_inputs
    from cwf_milvus.sources import PHOTO_SUFFIXES

    settings = _encoder_settings(arguments)
    place = (arguments.uri, arguments.collection)
    there = InstanceCollection.exists(*place, token=_token())
    if there:
        collection = InstanceCollection.open(
            *place, token=_token(), weights=arguments.weights, device=arguments.device
        )
    else:
        check_inputs(
            arguments.photos,
            metadata=arguments.metadata,
            prune=arguments.prune,
            report_file=arguments.report,
        )
        collection = InstanceCollection.create(
            *place,
            _new_encoder(arguments, settings),
            token=_token(),
            class_rows=arguments.class_rows,
            precision=arguments.precision,
        )
    with collection:
        if there:
            _refuse_other_settings(collection, settings, arguments)
        if arguments.batch_size:
            collection.encoder.batch_size = arguments.batch_size
        print(
            f"collection {collection.name!r} in {collection.store.uri}; whitening: "
            f"{collection.sidecar.manifest['whitening']}",
            file=sys.stderr,
        )
        report = collection.add(
            arguments.photos,
            metadata=arguments.metadata,
            prune=arguments.prune,
            progress=not arguments.quiet,
            report_file=arguments.report,
            workers=arguments.workers,
        )
    if not report.n_photos:
        print(
            f"no photo found: of folders and globs, *{' *'.join(PHOTO_SUFFIXES)} are taken",
            file=sys.stderr,
        )
    for uri, reason in report.failed[:20]:
        named = uri in reason or repr(uri) in reason
        print(_printable(f"failed: {reason if named else f'{uri}: {reason}'}"), file=sys.stderr)
    if len(report.failed) > 20:
        print(f"and {len(report.failed) - 20} more: see --report FILE", file=sys.stderr)
    print(report)
    return SOME_FAILED if report.failed else OK


def _add_search(commands: Any) -> None:
    command = _command(commands, "search", _search, "find the thing in the box of a query photo")
    command.add_argument("query", nargs="*", metavar="QUERY", help="query photos, files or urls")
    command.add_argument(
        "--box",
        metavar="X1,Y1,X2,Y2",
        action="append",
        help="the thing, in pixels of the photo; once for each query, - for the whole photo",
    )
    _collection_options(command)
    command.add_argument("--limit", type=int, default=20, metavar="N", help="hits (%(default)s)")
    command.add_argument("--filter", metavar="EXPR", help="a Milvus filter expression")
    command.add_argument(
        "--candidates", type=int, default=200, metavar="N", help="hits re-ranked (%(default)s)"
    )
    command.add_argument(
        "--rerank",
        action="append",
        metavar="STAGE",
        help="regions, classes, online, class-matched or cam; several in the order given",
    )
    command.add_argument(
        "--expand",
        metavar="STAGE",
        help="local, aqe or qe, with a number of hits as in local:3; a number alone is aqe",
    )
    command.add_argument(
        "--like",
        action="append",
        metavar="URI",
        help="in place of QUERY, a stored photo to find more like; may be given several times",
    )
    command.add_argument(
        "--unlike", action="append", metavar="URI", help="a stored photo to look away from"
    )
    command.add_argument(
        "--augmented", action="store_true", help="search the descriptors that augment made"
    )
    command.add_argument(
        "--explain", action="store_true", help="print each stage's score and rank of each hit"
    )
    command.add_argument("--json", action="store_true", help="print JSON, an object a query")
    command.add_argument("--html", metavar="FILE", help="write a page with pictures")
    _network_options(command)


def _search(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.sources import uri_of

    boxes = [None if box == "-" else box for box in arguments.box or []]
    if boxes and len(boxes) != len(arguments.query):
        raise SettingsError(
            f"{len(boxes)} boxes for {len(arguments.query)} queries: give --box once for each "
            "query, --box - for a whole photo"
        )
    with InstanceCollection.open(
        arguments.uri,
        arguments.collection,
        token=_token(),
        weights=arguments.weights,
        device=arguments.device,
    ) as collection:
        options = {
            "limit": arguments.limit,
            "filter": arguments.filter,
            "candidates": arguments.candidates,
            "rerank": arguments.rerank,
            "expand": arguments.expand,
            "augmented": arguments.augmented,
        }
        if arguments.like or arguments.unlike:
            steer = {
                name: [uri_of(uri) for uri in getattr(arguments, name) or []]
                for name in ("like", "unlike")
            }
            answers = [collection.search(arguments.query or None, **steer, **options)]
        else:
            answers = collection.search(arguments.query or None, box=boxes or None, **options)
        if arguments.html:
            from cwf_milvus.viz import save_page

            print(f"written: {save_page(answers, arguments.html)}", file=sys.stderr)
    for hits in answers:
        if arguments.json:
            print(json.dumps(hits.to_dict()))
        else:
            if len(answers) > 1:
                print(f"{_printable(hits.query.name)}:")
            print(hits.explain() if arguments.explain else hits)
    return OK


def _add_augment(commands: Any) -> None:
    command = _command(
        commands,
        "augment",
        _augment,
        "make descriptors augmented by their neighbours, for search --augmented",
    )
    _collection_options(command)
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
        arguments.uri, arguments.collection, token=_token(), encoder=None
    ) as collection:
        if arguments.undo:
            there = collection.undo_augmentation()
            print("dropped" if there else "there were no augmented descriptors")
        else:
            print(collection.augment(neighbours=arguments.neighbours, alpha=arguments.alpha))
    return OK


def _add_info(commands: Any) -> None:
    command = _command(commands, "info", _info, "say what a collection holds and how it was made")
    _collection_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    info = InstanceCollection.describe(arguments.uri, arguments.collection, token=_token())
    if arguments.json:
        print(json.dumps(info))
    else:
        _print_pairs(info)
    return OK


def _add_verify(commands: Any) -> None:
    command = _command(commands, "verify", _verify, "check that every row is there and whole")
    _collection_options(command)
    command.add_argument(
        "--accept",
        action="store_true",
        help="take the present number of rows as the right one from now on",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _verify(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection

    with InstanceCollection.open(arguments.uri, arguments.collection, token=_token()) as collection:
        outcome = collection.verify(accept=arguments.accept)
    print(json.dumps(outcome.to_dict()) if arguments.json else outcome)
    return OK if outcome.ok else SOME_FAILED


def _add_remove(commands: Any) -> None:
    command = _command(commands, "remove", _remove, "remove photos from a collection, or drop it")
    command.add_argument(
        "uris", nargs="*", metavar="URI", help="photos, as the collection has them"
    )
    command.add_argument("--all", action="store_true", help="drop the collection with its encoder")
    _collection_options(command)


def _remove(arguments: argparse.Namespace) -> int:
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.sources import uri_of

    if arguments.all == bool(arguments.uris):
        raise SettingsError("name the photos to remove, or give --all to drop the collection")
    with InstanceCollection.open(arguments.uri, arguments.collection, token=_token()) as collection:
        if arguments.all:
            collection.drop()
            print(f"dropped {arguments.collection}")
            return OK
        stored = collection.contents(arguments.uris)
        named = {uri if uri in stored else uri_of(uri) for uri in arguments.uris}
        missing = named - collection.contents(named).keys()
        removed = collection.remove(named - missing)
    for uri in sorted(missing):
        print(f"not in {arguments.collection}: {_printable(uri)}", file=sys.stderr)
    print(f"removed {removed} of {len(named)}")
    return SOME_FAILED if missing else OK


def _add_classes(commands: Any) -> None:
    command = _command(commands, "classes", _classes, "name the likely classes of photos")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command.add_argument("--box", metavar="X1,Y1,X2,Y2", help="of the crop alone")
    command.add_argument("-n", type=int, default=10, metavar="N", help="classes (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, an object a photo")
    _backbone_options(command)


def _classes(arguments: argparse.Namespace) -> int:
    encoder = _bare_encoder(arguments, n_classes=arguments.n)
    failed = False
    for image in arguments.images:
        try:
            encoding = encoder.encode_query(image, arguments.box)
        except ImageError as error:
            print(_printable(f"failed: {error}"), file=sys.stderr)
            failed = True
            continue
        top = [
            {"id": int(i), "name": encoder.class_names[i], "score": round(float(score), 4)}
            for i, score in zip(encoding.class_ids, encoding.class_scores, strict=True)
        ]
        if arguments.json:
            print(json.dumps({"uri": encoding.uri, "classes": top}))
        else:
            print(f"{_printable(encoding.uri)}:")
            for entry in top:
                print(f"  {entry['id']:4d}  {entry['score']:.4f}  {entry['name']}")
    return SOME_FAILED if failed else OK


def _add_explain(commands: Any) -> None:
    command = _command(
        commands, "explain", _explain, "draw class maps and regions over a photo, as PNG"
    )
    command.add_argument("image", metavar="IMAGE")
    command.add_argument("--box", metavar="X1,Y1,X2,Y2", help="the thing, in pixels of the photo")
    command.add_argument("-n", type=int, default=6, metavar="N", help="class maps (%(default)s)")
    command.add_argument(
        "-o", "--output", default="explain.png", metavar="FILE.png", help="(%(default)s)"
    )
    _backbone_options(command)


def _explain(arguments: argparse.Namespace) -> int:
    from cwf_milvus.viz import explain_figure

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
    from cwf_milvus.evaluation.options import add_options

    command = _command(
        commands, "evaluate", _evaluate, "measure searches on a dataset, as the paper's tables do"
    )
    add_options(command)
    _network_options(command)
    _batch_option(command)
    _quiet_option(command)


def _evaluate(arguments: argparse.Namespace) -> int:
    from cwf_milvus.evaluation.command import run

    return run(arguments)


def _add_backbones(commands: Any) -> None:
    command = _command(
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
    command = _command(
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
    command = _command(
        commands, "towhee", _towhee, "link the operators into Towhee's folder, or undo that"
    )
    command.add_argument("action", choices=("install", "uninstall"))
    command.add_argument(
        "--home", metavar="DIR", help="Towhee's folder (TOWHEE_HOME, or else ~/.towhee)"
    )


def _towhee(arguments: argparse.Namespace) -> int:
    from cwf_milvus.towhee_install import install, uninstall

    if arguments.action == "install":
        for link in install(arguments.home):
            print(f"linked: {link}")
    else:
        for link in uninstall(arguments.home):
            print(f"removed: {link}")
    return OK


# Options that commands share


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], purpose: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _collection_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--uri",
        default=os.environ.get("CWF_MILVUS_URI", "photos.db"),
        metavar="URI",
        help="a .db path (Milvus Lite) or http(s)://host:port (%(default)s)",
    )
    command.add_argument(
        "--collection",
        default=os.environ.get("CWF_MILVUS_COLLECTION", "photos"),
        metavar="NAME",
        help="(%(default)s)",
    )


def _network_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", metavar="FILE", help="the network's checkpoint")
    command.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, ... (the GPU if there is one)"
    )


def _batch_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch-size", type=_positive, metavar="N", help="photos a forward pass")


def _backbone_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--backbone", default="efficientnet_lite0", metavar="NAME", help="the network (%(default)s)"
    )
    _network_options(command)


def _quiet_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def _count_or_all(text: str) -> int:
    return _ALL_CLASSES if text == "all" else _positive(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give class ids, as in 285,282") from error


# What commands share


_SETTINGS = {
    "backbone": "backbone",
    "layer": "layer",
    "cams_from": "cams_from",
    "image_size": "image_size",
    "class_image_size": "class_image_size",
    "store_classes": "n_classes",
    "classes": "classes",
    "descriptor": "descriptor",
    "dim": "dim",
}


def _encoder_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {
        setting: getattr(arguments, option)
        for option, setting in _SETTINGS.items()
        if getattr(arguments, option) is not None
    }
    return settings | ({"paper_compat": True} if arguments.paper_compat else {})


def _new_encoder(arguments: argparse.Namespace, settings: dict[str, Any]) -> Any:
    from cwf_milvus.encoder import Encoder
    from cwf_milvus.whitenings import Whitenings

    whitening: str | None = arguments.whitening or "default"
    if arguments.no_whitening:
        whitening = None
    if arguments.whitening:
        settings.setdefault("dim", Whitenings.from_file(arguments.whitening).dim)
    options = {"weights": arguments.weights, "device": arguments.device, "whitening": whitening}
    if arguments.classes_from:
        n = settings.pop("n_classes", 64)
        counted = Encoder(**settings, **options).predefine_classes(arguments.classes_from, n)
        settings["classes"] = counted
    encoder = Encoder(**settings, **options)
    if arguments.fit is not None:
        encoder.fit(arguments.fit or arguments.photos, progress=_progress(arguments.quiet))
    return encoder


def _bare_encoder(arguments: argparse.Namespace, **settings: Any) -> Any:
    from cwf_milvus.encoder import Encoder

    return Encoder(
        arguments.backbone,
        weights=arguments.weights,
        device=arguments.device,
        whitening=None,
        **settings,
    )


def _refuse_other_settings(
    collection: Any, settings: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Refuse what was asked for anew; the command that made a collection also goes on with it."""
    about = collection.sidecar.manifest
    here = {
        **about["settings"],
        "whitening": about["whitening"],
        "class_rows": about["class_rows"],
        "precision": collection.layout.precision,
    }
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    if arguments.classes_from and here["classes"]:
        asked.pop("n_classes", None)  # it said how many classes to count
    elif arguments.classes_from:
        asked["classes"] = f"those from {arguments.classes_from}"
    if arguments.class_rows:
        asked["class_rows"] = True
    if arguments.precision:
        asked["precision"] = arguments.precision
    fitted = str(here["whitening"]).startswith("fitted on")
    if fitted and arguments.fit is not None and here["dim"] < asked.get("dim", 0):
        del asked["dim"]  # the fit had too few photos for all of them
    if arguments.no_whitening:
        asked["whitening"] = "none"
    elif arguments.fit is not None and not fitted:
        asked["whitening"] = "one to be fitted"
    elif arguments.whitening:
        asked["whitening"] = _whitening_of_file(collection, arguments.whitening)
    other = {name: value for name, value in asked.items() if here[name] != value}
    if other:
        raise MismatchError(
            f"the collection {collection.name!r} was made with "
            + ", ".join(f"{name}={here[name]!r}" for name in other)
            + "; asked for was "
            + ", ".join(f"{name}={value!r}" for name, value in other.items())
            + ": leave these options out, or create another collection with --collection"
        )


def _whitening_of_file(collection: Any, file: str) -> str:
    """Return the words for a whitening file: the collection's own if it is the one in use."""
    from cwf_milvus.whitenings import Whitenings

    found = Whitenings.from_file(file)
    encoder = collection.encoder
    used = encoder.whitenings
    if used is not None and found.used_at(encoder.settings).digest == used.digest:
        return str(encoder.whitening_origin)
    return f"{found.origin} ({file})"


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    if quiet:
        return None
    from tqdm import tqdm

    bar = tqdm(unit="photo", desc="fitting", dynamic_ncols=True)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def _token() -> str | None:
    return os.environ.get("MILVUS_TOKEN")


def _print_pairs(pairs: dict[str, Any], indent: str = "") -> None:
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_pairs(value, indent + "  ")
        else:
            print(f"{indent}{name.replace('_', ' '):{width}}  {_printable(str(value))}")


def _fail(error: object, status: int) -> int:
    print(f"cwf-milvus: {_readable(error)}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {_readable(message)}", file=sys.stderr)


def _printable(text: str) -> str:
    from cwf_milvus.hits import printable  # here, since --help need not wait for torch

    return printable(text)


def _readable(message: object) -> str:
    """Return a message as lines that a terminal cannot be misled by."""
    return "\n".join(map(_printable, str(message).splitlines()))


if __name__ == "__main__":
    sys.exit(main())
