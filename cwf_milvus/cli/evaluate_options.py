"""The options of `cwf-milvus evaluate`; imports nothing heavy, for every command reads them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cwf_milvus.cli.options import add_command, batch_option, network_options, quiet_option
from cwf_milvus.search.registry import stage_names


def add_evaluate(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands, "evaluate", _run, "measure searches on a dataset, as the paper's tables do"
    )
    _add_options(command)
    network_options(command)
    batch_option(command)
    quiet_option(command)


def _run(arguments: argparse.Namespace) -> int:
    from cwf_milvus.cli.evaluate import run  # torch takes seconds

    return run(arguments)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dataset",
        metavar="DATASET",
        help="oxford5k, paris6k, oxford105k, paris106k, roxford5k, rparis6k, holidays, ukbench, "
        "or a ground-truth file, or a folder with gnd.json (docs/ground-truth.md)",
    )
    command.add_argument(
        "--root", metavar="DIR", help="where the photos are (the dataset's own folder)"
    )
    command.add_argument(
        "--distractors", metavar="DIR", help="further photos to search among (none)"
    )
    command.add_argument(
        "--whiten-from",
        action="append",
        metavar="PHOTOS",
        help="fit the whitenings on these photos, not those searched; tables need "
        "it (the whitening that ships)",
    )
    command.add_argument(
        "--backbone", action="append", metavar="NAME", help="(efficientnet_lite0); several for 1a"
    )
    command.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="of the features' view (640; of other networks 512)",
    )
    command.add_argument(
        "--class-image-size", type=int, metavar="PX", help="of the classes' view (224)"
    )
    command.add_argument(
        "--dim",
        type=int,
        metavar="D",
        help="dimensions of every vector (1024; of other networks 512)",
    )
    command.add_argument(
        "--descriptor",
        choices=("classes", "regions", "both"),
        help="what the descriptor sums (both)",
    )
    command.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="any other setting of the encoder, as in region_levels=1,2,3 or "
        "feature_weighting=crow (none)",
    )
    asked = command.add_argument_group("queries")
    asked.add_argument("--whole-queries", action="store_true", help="leave the queries' boxes out")
    asked.add_argument(
        "--boxes",
        metavar="FILE",
        help="ask by the boxes of a JSON file, and by the same photos whole (the dataset's boxes)",
    )
    asked.add_argument(
        "--one-thing",
        action="store_true",
        help="a box asks for what is in it: what its photo shows beside it is wrong, and not junk",
    )
    how = command.add_argument_group("the search")
    how.add_argument("--exact", action="store_true", help="plain arrays in place of Milvus")
    how.add_argument("--uri", metavar="URI", help="a Milvus server (a Milvus Lite, made for this)")
    how.add_argument(
        "--rerank", metavar="STAGE", help=f"{', '.join(['auto', *stage_names('rerank')])} (none)"
    )
    how.add_argument(
        "--class-weight",
        type=float,
        metavar="W",
        help="share of the class vectors in --rerank regions (0)",
    )
    how.add_argument(
        "--expand", metavar="STAGE", help="graph, local, aqe, qe, with a number as in aqe:5 (none)"
    )
    how.add_argument(
        "--graph",
        action="store_true",
        help='build the graph of the photos first, for --expand graph and for "auto"',
    )
    how.add_argument(
        "--candidates", type=int, default=200, metavar="N", help="to re-rank (%(default)s)"
    )
    paper = command.add_argument_group("what the paper reports")
    paper.add_argument(
        "--table", choices=("1a", "1b", "2a", "2b"), help="a table of the paper (none)"
    )
    paper.add_argument(
        "--sweep",
        nargs="*",
        metavar="NAME=N,N,...",
        help="mAP of the offline aggregation over classes= and pca= (Fig. 4)",
    )
    paper.add_argument(
        "--predefined-classes",
        type=int,
        metavar="N",
        help="the same with one list of N classes, counted from the queries (Fig. 5)",
    )
    paper.add_argument(
        "--pca", type=int, default=8, metavar="N", help="class vectors of a photo to fit on (8)"
    )
    paper.add_argument(
        "--bow-words",
        type=int,
        default=25_000,
        metavar="N",
        help="codebook of the bag of words; 0 leaves it out (%(default)s)",
    )
    out = command.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON")
    out.add_argument("--markdown", metavar="FILE", help="write the table as Markdown (no file)")
    out.add_argument("--plot", metavar="FILE.png", help="draw the sweep (the extra `plots`)")
    out.add_argument(
        "--cache",
        default=str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cwf-milvus"),
        metavar="DIR",
        help="where features are kept, so that the network runs once (%(default)s)",
    )
