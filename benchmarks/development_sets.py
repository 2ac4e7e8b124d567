"""The development sets as the default encoder sees them, for the benchmarks of quality."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.datasets.truth import Dataset, checked_box
from cwf_milvus.evaluation.features import FeatureStore, encodings
from cwf_milvus.evaluation.metrics import evaluate_rankings
from cwf_milvus.evaluation.runner import BoxedQuery, ask_boxes, ask_whole, gather

SETS = ("objects_dev", "landmarks_dev")


@dataclass(frozen=True)
class Column:
    """One column of a table: a set asked in one way."""

    title: str
    dataset: Dataset
    stored: list[Encoding]
    asked: list[Encoding]

    def own(self) -> list[int]:
        """Where in the collection each query's own photo is; -1 where it is not."""
        places = {name: i for i, name in enumerate(self.dataset.images)}
        return [places.get(query.image, -1) for query in self.dataset.queries]

    def mean_ap(self, scores: np.ndarray) -> float:
        """mAP of scores of shape (queries, photos)."""
        return evaluate_rankings(
            self.dataset, list(np.argsort(-scores, axis=1, kind="stable"))
        ).mean_ap


def columns(data: Path, cache: str | Path) -> list[Column]:
    """Each set asked by whole photos, then, where boxes.json is there, by its boxes."""
    encoder = Encoder()
    store = FeatureStore(encoder, cache)
    found = []
    for name in SETS:
        dataset = load_dataset(data / name)
        ways = {name: ask_whole(dataset)}
        boxes = data / name / "boxes.json"
        if boxes.exists():
            boxed = [
                BoxedQuery(one["image"], checked_box(one["box"], one["image"]), one["group"])
                for one in json.loads(boxes.read_text())
            ]
            ways[f"{name}, boxes"] = ask_boxes(dataset, boxed, one_thing=True)
        stored: list[Encoding] = []
        for title, asking in ways.items():
            inputs = gather(asking, store)
            names = list(asking.images)
            stored = stored or encodings(encoder, names, inputs.images)
            queries = [query.image for query in asking.queries]
            asked = encodings(encoder, queries, inputs.queries)
            found.append(Column(title, asking, stored, asked))
    return found


def print_table(titles: list[str], lines: list[tuple[str, list[float]]], digits: int = 3) -> None:
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    for label, values in lines:
        print(f"| {label} | {' | '.join(f'{value:.{digits}f}'.lstrip('0') for value in values)} |")
