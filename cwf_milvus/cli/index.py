"""`cwf-milvus index`: its options, the encoder that they ask for, and the run."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cwf_milvus.cli.by_ray import elsewhere_of
from cwf_milvus.cli.made import (
    encoder_settings,
    made_options,
    new_encoder,
    refuse_other_settings,
)
from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    batch_option,
    collection_options,
    network_options,
    pixels_option,
    positive,
    progress_bar,
    quiet_option,
    token,
)
from cwf_milvus.errors import SettingsError, quoted
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
    made_options(command)
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
    settings = encoder_settings(arguments)
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
            new_encoder(arguments, settings),
            token=token(),
            class_rows=arguments.class_rows,
            precision=arguments.precision,
            index=arguments.index,
            exist_ok=True,  # another worker may have made it meanwhile
        )
    with collection:
        if there:
            refuse_other_settings(collection, settings, arguments)
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
