"""`cwf-milvus evaluate`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwf_milvus.cli.options import progress_bar
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.datasets.truth import Dataset, checked_box
from cwf_milvus.evaluation.features import FeatureStore, read_field
from cwf_milvus.evaluation.metrics import Result
from cwf_milvus.evaluation.paper import methods, tables
from cwf_milvus.evaluation.paper.tables import Line, Measure, Table
from cwf_milvus.evaluation.runner import (
    BoxedQuery,
    Evaluation,
    Inputs,
    ask_boxes,
    ask_whole,
    evaluate,
    gather,
)
from cwf_milvus.files import holds_other
from cwf_milvus.method.aggregation import count_classes
from cwf_milvus.search.registry import AUTO
from cwf_milvus.search.stored import Regions

DEFAULT_BACKBONE = "efficientnet_lite0"
_BY_KEYPOINTS = (AUTO, "spatial")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the command line asks; returns the exit status."""
    if arguments.markdown and holds_other(arguments.markdown):
        raise SettingsError(
            f"{arguments.markdown!r} is there, and is no text: name another file for the table"
        )
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.distractors)
    print(dataset, file=sys.stderr)
    for line in dataset.check():
        print(f"  {line}", file=sys.stderr)
    boxes = None if arguments.boxes is None else read_boxes(arguments.boxes, dataset)
    asked = {"": dataset}
    if boxes is not None:
        boxed = ask_boxes(dataset, boxes, one_thing=arguments.one_thing)
        asked = {"boxes": boxed, "the same photos whole": ask_whole(boxed)}
    elif arguments.whole_queries:
        asked = {"": ask_whole(dataset)}
    outside = [line for one in asked.values() for line in one.boxes_outside()]
    if outside:
        raise SettingsError(f"{len(outside)} boxes cannot be asked; {outside[0]}")
    if arguments.table or arguments.sweep is not None or arguments.predefined_classes:
        if len(asked) > 1:
            raise SettingsError("--boxes measures the search itself: leave tables and sweeps out")
        made = [_table(arguments, asked[""])]
        results: list[dict[str, Any]] = []
    else:
        found = _evaluations(arguments, asked)
        made = [_results_table(arguments, dataset, found)]
        results = [one.to_dict() for one in found.values()]
        if not arguments.json:
            for one in found.values():
                _print_details(one)
    return _give(arguments, dataset, made, results)


def read_boxes(path: str | Path, dataset: Dataset) -> list[BoxedQuery]:
    """Read a file of boxes: for each data set's name a list of images, boxes and groups.

    ``{"objects_dev": [{"image": "jpg/a.jpg", "box": [279, 100, 601, 862], "group": "can"}]}``,
    boxes in pixels of the upright photo, the group only where queries share a photo; or such a
    list alone.

    Raises:
        SettingsError: no such file, or none for this dataset in it.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            entries = entries[dataset.name]
        if not entries:
            raise ValueError("no box in it")
        return [
            BoxedQuery(
                str(entry["image"]),
                checked_box(entry["box"], f"{path}: {entry['image']}"),
                entry.get("group"),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(
            f"no boxes for {dataset.name} in {str(path)!r} ({error!r}): give a JSON object with a "
            'list of {"image": ..., "box": [x1, y1, x2, y2]} under the data set\'s name'
        ) from error


def _evaluations(arguments: argparse.Namespace, asked: dict[str, Dataset]) -> dict[str, Evaluation]:
    encoder = _encoder(arguments, _one_backbone(arguments))
    found = {}
    looks = bool(encoder.n_keypoints) and (arguments.graph or arguments.rerank in _BY_KEYPOINTS)
    for name, dataset in asked.items():
        inputs = _gather(arguments, dataset, encoder, keypoints=looks)
        fitted = methods.fit_encoder(encoder, inputs) if arguments.whiten_from else encoder
        label = f"{_setting(arguments, fitted)}{f', {name}' if name else ''}"
        found[label] = evaluate(
            inputs,
            fitted,
            exact=arguments.exact,
            uri=arguments.uri,
            token=os.environ.get("MILVUS_TOKEN"),
            rerank=_reranker(arguments),
            expand=arguments.expand or (AUTO if arguments.rerank == AUTO else None),
            candidates=arguments.candidates,
            graph=arguments.graph,
        )
    return found


def _table(arguments: argparse.Namespace, dataset: Dataset) -> Table:
    if arguments.table == "1a":
        return tables.table_1a(
            [
                _measure(arguments, dataset, name)
                for name in arguments.backbone or [DEFAULT_BACKBONE]
            ],
            arguments.pca,
        )
    backbone = _one_backbone(arguments)
    if arguments.table == "1b":
        encoder = _encoder(arguments, backbone, n_classes=max(tables.MAPS_TIMED))
        return tables.table_1b(encoder, [dataset.path(name) for name in dataset.images])
    if arguments.predefined_classes:
        return _predefined(arguments, dataset, backbone)
    if arguments.sweep is not None:
        given = parse_sweep(arguments.sweep)
        return tables.sweep(
            _measure(arguments, dataset, backbone), **given, dim=arguments.dim or methods.DIM
        )
    if arguments.table == "2a":
        words = None if arguments.bow_words == 0 else arguments.bow_words
        measure = _measure(arguments, dataset, backbone, cells=words is not None)
        return tables.table_2a(measure, arguments.pca, bow_words=words)
    measure = _measure(arguments, dataset, backbone)
    encoder = _encoder(arguments, backbone)
    ours = methods.fit_encoder(encoder, measure.inputs)
    more = [
        Line(label, measure.searched(ours, **options).result.mean_ap, str(ours.dim))
        for label, options in _OURS.items()
    ]
    return tables.table_2b(measure, more, arguments.pca, encoder=encoder)


_OURS: dict[str, dict[str, Any]] = {
    "ours, the descriptor": {},
    "ours + AQE 5": {"expand": "aqe:5"},
    "ours + R cam 100 + AQE 5": {"rerank": "cam", "expand": "aqe:5", "candidates": 100},
    "ours + R regions 200": {"rerank": "regions", "candidates": 200},
    "ours + R regions 200 + local": {"rerank": "regions", "expand": "local:1", "candidates": 200},
}


def _predefined(arguments: argparse.Namespace, dataset: Dataset, backbone: str) -> Table:
    """Sweep over a class list counted from the dataset's own queries (Fig. 5)."""
    own = _gather(arguments, dataset, _encoder(arguments, backbone), fit=False)
    n = arguments.predefined_classes
    classes = count_classes(read_field(own.queries, "class_ids"), n)
    encoder = _encoder(arguments, backbone, classes=tuple(classes))
    measure = Measure(_gather(arguments, dataset, encoder), backbone, **_where(arguments))
    steps = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < len(classes)] + [len(classes)]
    given = parse_sweep(arguments.sweep or [])
    pca = [one for one in given["pca"] if one <= len(classes)]
    found = tables.sweep(measure, steps, pca, arguments.dim or methods.DIM)
    title = f"Predefined classes, counted from the queries: {backbone} on {dataset.name}"
    return Table(title, found.unit, found.lines)


def parse_sweep(words: Sequence[str]) -> dict[str, list[int]]:
    """Return the values of each swept setting, from words such as ``classes=1,4,16``.

    Raises:
        SettingsError: an unknown setting, or values that are no whole numbers.
    """
    given = {name: list(values) for name, values in tables.SWEEP.items()}
    for word in words:
        name, _, values = word.partition("=")
        try:
            numbers = [int(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if name not in given or not numbers:
            raise SettingsError(
                f"--sweep {word!r}: give {' and '.join(f'{n}=1,2,...' for n in given)}"
            )
        given[name] = numbers
    return given


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return encoder settings from words such as ``region_levels=1,2,3`` or ``dim=256``.

    A value is JSON, numbers with commas between them, or else text.

    Raises:
        SettingsError: a word without a name or a value.
    """
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        if not name or not text:
            raise SettingsError(f"--set {word!r}: give NAME=VALUE, as in region_levels=1,2,3")
        for candidate in (text, f"0{text}", f"[{text}]", json.dumps(text)):
            with contextlib.suppress(ValueError, RecursionError):
                found[name] = json.loads(candidate)
                break
    return found


def _measure(
    arguments: argparse.Namespace, dataset: Dataset, backbone: str, *, cells: bool = False
) -> Measure:
    encoder = _encoder(arguments, backbone)
    inputs = _gather(arguments, dataset, encoder, cells=cells)
    return Measure(inputs, backbone, **_where(arguments))


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    token = os.environ.get("MILVUS_TOKEN")
    return {"exact": arguments.exact, "uri": arguments.uri, "token": token}


def _gather(
    arguments: argparse.Namespace,
    dataset: Dataset,
    encoder: Encoder,
    *,
    cells: bool = False,
    keypoints: bool = False,
    fit: bool = True,
) -> Inputs:
    store = FeatureStore(encoder, arguments.cache, cells=cells, keypoints=keypoints)
    photos = arguments.whiten_from if fit else None
    return gather(dataset, store, photos, progress=progress_bar(arguments.quiet, "features"))


def _encoder(arguments: argparse.Namespace, backbone: str, **settings: Any) -> Encoder:
    for name in ("image_size", "class_image_size", "dim", "descriptor"):
        value = getattr(arguments, name)
        if value is not None:
            settings.setdefault(name, value)
    settings = {**parse_settings(arguments.set or []), **settings}
    return Encoder(
        backbone,
        weights=arguments.weights,
        device=arguments.device,
        runtime=arguments.runtime,
        batch_size=arguments.batch_size,
        **settings,
    )


def _one_backbone(arguments: argparse.Namespace) -> str:
    names = arguments.backbone or [DEFAULT_BACKBONE]
    if len(names) > 1:
        raise SettingsError(f"{len(names)} networks: only --table 1a compares several")
    return str(names[0])


def _reranker(arguments: argparse.Namespace) -> Any:
    if arguments.class_weight is None:
        return arguments.rerank
    if arguments.rerank != "regions":
        raise SettingsError("--class-weight is a share of --rerank regions: give that too")
    return Regions(class_weight=arguments.class_weight)


def _setting(arguments: argparse.Namespace, encoder: Encoder) -> str:
    parts = [
        encoder.settings.backbone,
        f"{encoder.settings.descriptor} at {encoder.settings.image_size} px",
    ]
    if arguments.class_image_size is not None:
        parts.append(f"classes at {arguments.class_image_size} px")
    parts += arguments.set or []
    if arguments.rerank:
        share = "" if arguments.class_weight is None else f", {arguments.class_weight} of classes,"
        parts.append(f"{arguments.rerank}{share} on {arguments.candidates}")
    if arguments.expand:
        parts.append(arguments.expand)
    elif arguments.graph:
        parts.append("graph")
    return " + ".join(parts)


def _results_table(
    arguments: argparse.Namespace, dataset: Dataset, found: dict[str, Evaluation]
) -> Table:
    lines = []
    for label, one in found.items():
        setups = one.result.setups or {"": one.result}
        for setup, result in setups.items():
            lines.append(Line(f"{label}{f', {setup}' if setup else ''}", result.mean_ap))
    where = next(iter(found.values())).where
    return Table(f"{dataset.name} through {where}", "mAP", lines)


def _print_details(found: Evaluation) -> None:
    result = found.result
    for name, one in (result.setups or {"": result}).items():
        print(f"{name + ': ' if name else ''}{_in_words(one)}", file=sys.stderr)
    print(
        f"{1000 * found.seconds_per_query:.0f} ms a query, {found.bytes_per_photo} bytes a photo",
        file=sys.stderr,
    )


def _in_words(result: Result) -> str:
    precision = ", ".join(f"mP@{k} {value:.3f}" for k, value in result.mean_precision.items())
    score = "" if result.ns_score is None else f", N-S {result.ns_score:.3f}"
    left_out = f", {result.without_positives} without positives" if result.without_positives else ""
    return f"mAP {result.mean_ap:.4f}, {precision}{score}{left_out}"


def _give(
    arguments: argparse.Namespace,
    dataset: Dataset,
    made: list[Table],
    results: list[dict[str, Any]],
) -> int:
    if arguments.json:
        told = {
            "dataset": dataset.name,
            "check": dataset.check(),
            "tables": [table.to_dict() for table in made],
            "results": results,
        }
        print(json.dumps(told, indent=2))
    else:
        for table in made:
            print(table)
    if arguments.markdown:
        text = "\n".join(table.to_markdown() for table in made)
        try:
            Path(arguments.markdown).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SettingsError(
                f"cannot write {arguments.markdown!r} ({error.strerror}): name a file that can be "
                "written"
            ) from error
    if arguments.plot:
        from cwf_milvus.evaluation.paper.plots import plot_sweep

        print(f"written: {plot_sweep(made[0], arguments.plot)}", file=sys.stderr)
    return 0
