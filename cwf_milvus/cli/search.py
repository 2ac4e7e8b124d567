"""`cwf-milvus search`: its options, the search that they ask for, and what is printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    add_command,
    collection_options,
    names,
    network_options,
    note,
    pixels_option,
    token,
)
from cwf_milvus.errors import SettingsError
from cwf_milvus.search.registry import AUTO, CANDIDATES, stage_names
from cwf_milvus.text import printable


def add_search(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(commands, "search", run, "find the thing in the box of a query photo")
    command.add_argument("query", nargs="*", metavar="QUERY", help="query photos, files or urls")
    command.add_argument(
        "--box",
        metavar="X1,Y1,X2,Y2",
        action="append",
        help="the thing, in pixels of the photo; once for each query, - for the whole photo (-)",
    )
    collection_options(command)
    command.add_argument("--limit", type=int, default=20, metavar="N", help="hits (%(default)s)")
    command.add_argument("--filter", metavar="EXPR", help="a Milvus filter expression (all photos)")
    command.add_argument(
        "--candidates",
        type=int,
        default=CANDIDATES,
        metavar="N",
        help="hits re-ranked (%(default)s)",
    )
    command.add_argument(
        "--rerank",
        action="append",
        metavar="STAGE",
        help=f"{', '.join(stage_names('rerank'))}; may be given several times, which "
        "is their order; none for the "
        "first search alone; auto for the best that the collection can do (auto)",
    )
    command.add_argument(
        "--expand",
        default=AUTO,
        metavar="STAGE",
        help=f"{', '.join(stage_names('expand'))}, with a number of hits as in local:3; a number "
        "alone is aqe; none; auto goes with --rerank auto (%(default)s)",
    )
    command.add_argument(
        "--like",
        action="append",
        metavar="URI",
        help="in place of QUERY, a stored photo to find more like; may be given "
        "several times (none)",
    )
    command.add_argument(
        "--unlike", action="append", metavar="URI", help="a stored photo to look away from (none)"
    )
    command.add_argument(
        "--augmented", action="store_true", help="search the descriptors that augment made"
    )
    command.add_argument(
        "--min-certainty",
        type=float,
        metavar="C",
        help="leave out hits that are less certain, from 0 to 1 (none left out)",
    )
    command.add_argument(
        "--explain", action="store_true", help="print each stage's score and rank of each hit"
    )
    command.add_argument(
        "--show",
        type=names,
        default=(),
        metavar="FIELD,...",
        help="your own fields to show, in the table and on the page (the page shows all)",
    )
    command.add_argument("--json", action="store_true", help="print JSON, an object a query")
    command.add_argument("--html", metavar="FILE", help="write a page with pictures (no page)")
    command.add_argument(
        "--hide-paths", action="store_true", help="on the page, photos without folders and hosts"
    )
    pixels_option(command)
    network_options(command)


def _stages(named: list[str] | None) -> str | list[str]:
    """Return the stages that --rerank named; one may be a word that stands for others."""
    return AUTO if named is None else named[0] if len(named) == 1 else named


def run(arguments: argparse.Namespace) -> int:
    """Search, print the hits and write the page; returns the exit status."""
    _few_threads()
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.store.sparse import no_sparse_matrices

    no_sparse_matrices()

    if not (arguments.query or arguments.like or arguments.unlike):
        raise SettingsError(
            "nothing is searched for: name a query photo, or a stored one by --like"
        )
    boxes = [None if box == "-" else box for box in arguments.box or []]
    if boxes and len(boxes) != len(arguments.query):
        raise SettingsError(
            f"{len(boxes)} boxes for {len(arguments.query)} queries: give --box once for each "
            "query, --box - for a whole photo"
        )
    with InstanceCollection.open(
        arguments.uri,
        arguments.collection,
        token=token(),
        weights=arguments.weights,
        device=arguments.device,
        runtime=arguments.runtime,
    ) as collection:
        options = {
            "limit": arguments.limit,
            "filter": arguments.filter,
            "candidates": arguments.candidates,
            "rerank": _stages(arguments.rerank),
            "expand": arguments.expand,
            "augmented": arguments.augmented,
            "min_certainty": arguments.min_certainty,
            "max_pixels": arguments.max_pixels,
        }
        if arguments.like or arguments.unlike:
            like, unlike = arguments.like or (), arguments.unlike or ()
            given = arguments.query or None
            answers = [collection.search(given, like=like, unlike=unlike, **options)]
        else:
            answers = collection.search(arguments.query, box=boxes or None, **options)
        if arguments.html:
            from cwf_milvus.answers.page import save_page

            shown = [(hits.query, hits, hits.found) for hits in answers]
            page = save_page(
                shown, arguments.html, arguments.show or None, hide_paths=arguments.hide_paths
            )
            note(arguments, f"written: {page}")
        _tell_unknown(collection, arguments.show, answers)
    for hits in answers:
        if arguments.json:
            print(json.dumps(hits.to_dict()))
        else:
            if len(answers) > 1:
                print(f"{printable(hits.query.name)}:")
            print(hits.explain() if arguments.explain else hits.table(arguments.show))
    return OK


def _few_threads() -> None:
    """Let no thread spin: one search's products are small, and its threads wait for each other.

    A fifth of a search's processor time went there. What the environment says counts, and a
    program that holds NumPy already keeps its threads.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _tell_unknown(collection: Any, show: Sequence[str], answers: Sequence[Any]) -> None:
    """Say which of the fields to show no photo has at all."""
    if all(any(name in hit.metadata for hits in answers for hit in hits) for name in show):
        return
    there = collection.fields()
    for name in show:
        if name not in there:
            print(
                f"--show {name}: no photo has such a field of yours; there "
                f"{'are ' + ', '.join(there) if there else 'is none'}",
                file=sys.stderr,
            )
