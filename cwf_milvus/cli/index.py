"""`cwf-milvus index`: its options, the encoder that they ask for, and the run."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cwf_milvus.cli.by_ray import elsewhere_of
from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    batch_option,
    collection_options,
    count_or_all,
    network_options,
    numbers,
    pixels_option,
    positive,
    progress_bar,
    quiet_option,
    token,
)
from cwf_milvus.errors import MismatchError, SettingsError, quoted
from cwf_milvus.text import printable

if TYPE_CHECKING:  # --help need not wait for what reads photos
    from cwf_milvus.index.report import Report


def add_index(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands,
        "index",
        run,
        "add photos to a collection, creating it if need be; skips what is there",
    )
    command.add_argument(
        "photos", nargs="*", metavar="PHOTOS", help="files, folders, globs or fsspec urls"
    )
    command.add_argument(
        "--upgrade",
        action="store_true",
        help="in place of PHOTOS, add keypoints to the stored photos of a collection made without",
    )
    collection_options(command)
    command.add_argument(
        "--metadata",
        metavar="FILE",
        help="a .csv or .jsonl with a column file_name and your own fields; without it, "
        "metadata.csv or metadata.jsonl in an indexed folder, where there is one (no other file)",
    )
    command.add_argument(
        "--replace-metadata",
        action="store_true",
        help="forget the fields that a photo has, where the metadata names it (they are added to)",
    )
    command.add_argument(
        "--exif",
        action="store_true",
        help="date, place, camera and orientation as fields exif_date, exif_time, exif_latitude, "
        "exif_longitude, exif_altitude, exif_camera, exif_orientation",
    )
    command.add_argument(
        "--prune", action="store_true", help="remove rows of files gone from the named folders"
    )
    command.add_argument(
        "--prune-anyway",
        action="store_true",
        help="also where a folder is gone or empty, or more than a fifth of its photos are gone",
    )
    command.add_argument(
        "--report",
        metavar="FILE",
        help="write what became of each file that was met, a line each: CSV or Parquet by its "
        "ending, or else JSON lines (no report)",
    )
    command.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="threads that read and decode (one a core, at most 16)",
    )
    command.add_argument(
        "--shard",
        metavar="K/N",
        help="the K-th of N parts of the photos, for N workers that know nothing of each other "
        "(all)",
    )
    command.add_argument(
        "--to-parquet",
        metavar="DIR",
        help="in place of --uri, write files that Milvus imports in bulk; DIR.db keeps what is "
        "encoded, for the same command to go on (none)",
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="encode by the computers of a Ray cluster, which see the photos under the same names; "
        "auto for the one of this computer, local to start one here (none)",
    )
    pixels_option(command)
    made = command.add_argument_group("when the collection is created")
    made.add_argument("--backbone", metavar="NAME", help="the network (efficientnet_lite0)")
    made.add_argument(
        "--layer", metavar="NAME", help="the layer that gives the features (the network's last)"
    )
    made.add_argument(
        "--cams-from",
        metavar="BACKBONE",
        help="another network that supplies the class maps (the backbone)",
    )
    made.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="longest side of the features' view (640; of other networks 512)",
    )
    made.add_argument(
        "--class-image-size", type=int, metavar="PX", help="longest side of the classes' view (224)"
    )
    made.add_argument(
        "--store-classes",
        type=count_or_all,
        metavar="N|all",
        help="class vectors kept an image (32)",
    )
    of_all = made.add_mutually_exclusive_group()
    of_all.add_argument(
        "--classes",
        type=numbers,
        metavar="ID,ID,...",
        help="a predefined class list for all (each photo's likeliest)",
    )
    of_all.add_argument(
        "--classes-from",
        metavar="PHOTOS",
        help="count the predefined class list from these representative queries, "
        "as many as --store-classes says (each photo's likeliest)",
    )
    made.add_argument(
        "--descriptor",
        choices=("classes", "regions", "both"),
        help="what the descriptor sums; classes is the paper's offline aggregation (both)",
    )
    made.add_argument(
        "--keypoints",
        type=int,
        metavar="N",
        help="keypoints kept an image, for rerank spatial; 0 for none (800)",
    )
    made.add_argument(
        "--compact",
        action="store_true",
        help="at most 30 kB a photo: fewer regions and keypoints, and one class",
    )
    made.add_argument(
        "--dim",
        type=int,
        metavar="D",
        help="dimensions of every vector (1024; of other networks 512)",
    )
    whitening = made.add_mutually_exclusive_group()
    whitening.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="PHOTOS",
        help="fit the whitening on these photos (without a value: on the photos to index, which "
        "is worse than on others)",
    )
    whitening.add_argument(
        "--whitening", metavar="FILE", help="a whitening file or saved encoder (the one that ships)"
    )
    whitening.add_argument("--no-whitening", action="store_true", help="go without whitening")
    made.add_argument(
        "--class-rows",
        action="store_true",
        help="also keep a row a class vector, to search by class",
    )
    made.add_argument(
        "--precision",
        choices=("int4", "int8", "float16"),
        help="of the stored class and region vectors (int4; int8 takes twice the room, float16 "
        "four times)",
    )
    made.add_argument(
        "--paper-compat", action="store_true", help="do as the paper's scripts where they differ"
    )
    network_options(command)
    batch_option(command)
    quiet_option(command)


def run(arguments: argparse.Namespace) -> int:
    """Index as the command line asks; returns the exit status."""
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.index.indexing import check_inputs, index_photos
    from cwf_milvus.photos.formats import READ

    if arguments.upgrade == bool(arguments.photos):
        raise SettingsError("name the photos to index, or give --upgrade without any")
    if arguments.upgrade:
        with InstanceCollection.open(
            arguments.uri, arguments.collection, token=token()
        ) as collection:
            return _told(collection.upgrade(progress=not arguments.quiet))
    if arguments.to_parquet:
        from cwf_milvus.store.parquet import checked_export, export_collection

        arguments.uri = f"{checked_export(arguments.to_parquet)}.db"
    settings = _encoder_settings(arguments)
    place = (arguments.uri, arguments.collection)
    there = InstanceCollection.exists(*place, token=token())
    if there:
        collection = InstanceCollection.open(
            *place,
            token=token(),
            weights=arguments.weights,
            device=arguments.device,
            runtime=arguments.runtime,
        )
    else:
        check_inputs(
            arguments.photos,
            metadata=arguments.metadata,
            prune=arguments.prune,
            prune_anyway=arguments.prune_anyway,
            report_file=arguments.report,
            shard=arguments.shard,
        )
        collection = InstanceCollection.create(
            *place,
            _new_encoder(arguments, settings),
            token=token(),
            class_rows=arguments.class_rows,
            precision=arguments.precision,
            exist_ok=True,  # another worker may have made it meanwhile
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
        elsewhere = elsewhere_of(collection, arguments) if arguments.ray else None
        report = index_photos(
            collection,
            arguments.photos,
            metadata=arguments.metadata,
            replace_metadata=arguments.replace_metadata,
            exif=arguments.exif,
            prune=arguments.prune,
            prune_anyway=arguments.prune_anyway,
            progress=not arguments.quiet,
            report_file=arguments.report,
            workers=arguments.workers,
            max_pixels=arguments.max_pixels,
            shard=arguments.shard,
            elsewhere=elsewhere,
        )
        if arguments.to_parquet:
            bar = progress_bar(arguments.quiet, "exporting")
            print(printable(str(export_collection(collection, arguments.to_parquet, progress=bar))))
    if not report.n_photos and not arguments.shard:
        print(f"no photo found: {READ}", file=sys.stderr)
    return _told(report)


def _told(report: Report) -> int:
    """Print what became of the photos; returns the exit status."""
    for uri, reason in report.failed[:20]:
        named = uri in reason or quoted(uri) in reason
        print(
            printable(f"failed: {reason if named else f'{quoted(uri)}: {reason}'}"), file=sys.stderr
        )
    if len(report.failed) > 20:
        print(f"and {len(report.failed) - 20} more: see --report FILE", file=sys.stderr)
    print(report)
    return SOME_FAILED if report.failed else OK


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
    "keypoints": "keypoints",
}


def _encoder_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    from cwf_milvus.encode.settings import full_name

    settings = {
        setting: getattr(arguments, option)
        for option, setting in _SETTINGS.items()
        if getattr(arguments, option) is not None
    }
    if arguments.compact:
        from cwf_milvus.encode.settings import COMPACT  # --help need not wait for numpy

        settings = {**COMPACT, **settings}
    if "backbone" in settings:
        settings["backbone"] = full_name(settings["backbone"])
    return settings | ({"paper_compat": True} if arguments.paper_compat else {})


def _new_encoder(arguments: argparse.Namespace, settings: dict[str, Any]) -> Any:
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.encode.whitenings import Whitenings

    whitening: str | None = arguments.whitening or "default"
    if arguments.no_whitening:
        whitening = None
    if arguments.whitening:
        settings.setdefault("dim", Whitenings.from_file(arguments.whitening).dim)
    options = {
        "weights": arguments.weights,
        "device": arguments.device,
        "runtime": arguments.runtime,
        "whitening": whitening,
    }
    if arguments.max_pixels:
        options["max_pixels"] = arguments.max_pixels
    if arguments.classes_from:
        n = settings.pop("n_classes", 64)
        counted = Encoder(**settings, **options).predefine_classes(arguments.classes_from, n)
        settings["classes"] = counted
    encoder = Encoder(**settings, **options)
    if arguments.fit is not None:
        encoder.fit(
            arguments.fit or arguments.photos, progress=progress_bar(arguments.quiet, "fitting")
        )
    return encoder


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
    from cwf_milvus.encode.whitenings import Whitenings

    found = Whitenings.from_file(file)
    encoder = collection.encoder
    used = encoder.whitenings
    if used is not None and found.used_at(encoder.settings).digest == used.digest:
        return str(encoder.whitening_origin)
    return f"{found.origin} ({file})"
