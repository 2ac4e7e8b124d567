"""`cwf-milvus calibrate`: certainty fitted on ground truth of one's own photos."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cwf_milvus.cli.options import (
    OK,
    add_command,
    collection_options,
    network_options,
    progress_bar,
    quiet_option,
    token,
)
from cwf_milvus.errors import SettingsError


def add_calibrate(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands, "calibrate", run, "fit certainty on ground truth of the collection's own photos"
    )
    command.add_argument(
        "truth", nargs="?", metavar="GROUND_TRUTH.json", help="see docs/ground-truth.md"
    )
    command.add_argument("--root", metavar="DIR", help="the photos' folder (the file's own)")
    command.add_argument(
        "--undo", action="store_true", help="go back to the calibration that ships, if any"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    collection_options(command)
    network_options(command)
    quiet_option(command)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate the collection, or undo that; returns the exit status."""
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.evaluation.calibration import calibrate
    from cwf_milvus.evaluation.datasets.ground_truth import load_ground_truth
    from cwf_milvus.store.calibration import keep_model

    if arguments.undo == bool(arguments.truth):
        raise SettingsError("name a ground-truth file, or give --undo to drop the calibration")
    dataset = None if arguments.undo else load_ground_truth(arguments.truth, arguments.root)
    with InstanceCollection.open(
        arguments.uri,
        arguments.collection,
        token=token(),
        weights=arguments.weights,
        device=arguments.device,
        runtime=arguments.runtime,
    ) as collection:
        if dataset is None:
            keep_model(collection.sidecar, None)
            print(json.dumps({"undone": True}) if arguments.json else "dropped its calibration")
        else:
            outcome = calibrate(collection, dataset, progress_bar(arguments.quiet, "queries"))
            print(json.dumps(outcome.to_dict()) if arguments.json else outcome)
    return OK
