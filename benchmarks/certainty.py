"""Print docs/certainty.md's tables and draw its plot: how far certainty can be trusted.

    python benchmarks/certainty.py --data DIR [--cache DIR] [--plot FILE.png] [--write]

DIR holds objects_dev (with boxes.json) and landmarks_dev. Both are indexed by the default encoder
into the cache, and asked by the queries of both: those of the other set ask for things that are not
there. --write puts the model fitted on objects_dev into the package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from development_sets import SETS

import cwf_milvus
from cwf_milvus import Encoder, InstanceCollection
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.datasets.truth import Dataset, checked_box
from cwf_milvus.evaluation.runner import BoxedQuery, ask_boxes, ask_whole
from cwf_milvus.method.certainty import (
    FIRST_HITS,
    CertaintyModel,
    Curve,
    certainties,
    fit_certainty,
    threshold_at,
)
from cwf_milvus.search.certainty import evidence

OBJECTS, LANDMARKS = SETS
BOXES = f"{OBJECTS}, boxes"
AT_ONCE = 16
BINS = np.linspace(0, 1, 11)
SHIPPED = Path(cwf_milvus.__file__).parent / "data" / "certainty.json"


@dataclass(frozen=True, eq=False)
class Found:
    """The first hits of every query of a set, without junk and the queries' own photos.

    Attributes:
        query: of shape (n,), which query each is of.
        scores: of shape (n,).
        inliers: of shape (n,).
        right: of shape (n,), bool.
    """

    query: np.ndarray
    scores: np.ndarray
    inliers: np.ndarray
    right: np.ndarray

    def certainty(self, model: CertaintyModel, alone: bool) -> np.ndarray:
        return certainties(self.scores, None if alone else self.inliers, model)

    def best(self, values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
        """Return the highest value of each query among some of its hits, 0 where there are none."""
        best = np.zeros(int(self.query.max()) + 1)
        chosen = np.ones(len(values), bool) if of is None else of
        np.maximum.at(best, self.query[chosen], values[chosen])
        return best


def datasets(data: Path) -> dict[str, Dataset]:
    """Return the ways to ask: whole photos of each set, and the boxes of objects_dev."""
    ways = {name: ask_whole(load_dataset(data / name)) for name in SETS}
    drawn = json.loads((data / OBJECTS / "boxes.json").read_text())
    boxed = [
        BoxedQuery(one["image"], checked_box(one["box"], one["image"]), one["group"])
        for one in drawn
    ]
    ways[BOXES] = ask_boxes(ways[OBJECTS], boxed, one_thing=True)
    return ways


def searched(ways: dict[str, Dataset], cache: Path) -> dict[tuple[str, str], Found]:
    """Return what each way of asking finds in each set; kept in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    encoder: Encoder | None = None
    found = {}
    for name in SETS:
        wanted = {asked: cache / f"{asked} in {name}.npz" for asked in ways}
        if not all(path.exists() for path in wanted.values()):
            encoder = encoder or Encoder()
            place = cache / "sets.db"
            with InstanceCollection.create(place, name, encoder, exist_ok=True) as photos:
                photos.add([str(ways[name].path(image)) for image in ways[name].images])
                for asked, path in wanted.items():
                    np.savez(path, **vars(answers(photos, ways[asked], ways[name])))
        for asked, path in wanted.items():
            found[asked, name] = Found(**np.load(path))
    return found


def answers(photos: InstanceCollection, asked: Dataset, stored: Dataset) -> Found:
    names = {str(stored.path(image).absolute()): image for image in stored.images}
    here = asked.images == stored.images
    rows = []
    for start in range(0, len(asked.queries), AT_ONCE):
        queries = asked.queries[start : start + AT_ONCE]
        given = photos.search(
            [str(asked.path(query.image)) for query in queries],
            box=[query.box for query in queries],
            limit=FIRST_HITS,
            rerank=["regions", "spatial"],
            expand="none",
        )
        for i, (query, hits) in enumerate(zip(queries, given, strict=True), start=start):
            for hit in hits:
                image = names[hit.uri]
                if not here or image not in query.junk | {query.image}:
                    rows.append((i, *evidence(hit), here and image in query.positives))
    query, scores, inliers, right = np.array(rows).T
    return Found(query.astype(int), scores, inliers, right.astype(bool))


def calibration_error(certainty: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error over ten bins of equal width."""
    places = np.minimum(np.digitize(certainty, BINS) - 1, len(BINS) - 2)
    return float(
        sum(
            (places == i).mean() * abs(certainty[places == i].mean() - right[places == i].mean())
            for i in np.unique(places)
        )
    )


def fit(found: Found, name: str) -> CertaintyModel:
    n = int(found.query.max()) + 1
    return fit_certainty(found.scores, found.inliers, found.right, f"{n} queries of {name}")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        cells = (f"{x:.3f}".lstrip("0") if isinstance(x, float) and x < 1 else str(x) for x in row)
        print(f"| {' | '.join(cells)} |")


def how_calibrated(own: dict[str, Found], models: dict[str, CertaintyModel]) -> None:
    rows = []
    for asked, found in own.items():
        other = models[LANDMARKS if asked.startswith(OBJECTS) else OBJECTS]
        for alone in (False, True):
            told = found.certainty(other, alone)
            shown = told >= 0.05
            rows.append(
                [
                    f"`{asked}`",
                    "score alone" if alone else "score and inliers",
                    calibration_error(told, found.right),
                    calibration_error(told[shown], found.right[shown]),
                    *(threshold_at(told, found.right, p)[1] for p in (0.9, 0.95, 0.98)),
                ]
            )
    heads = ["set", "by", "error", "error above .05", "recall at .90", "at .95", "at .98"]
    table(heads, rows)


def how_often_alarmed(
    all_found: dict[tuple[str, str], Found], models: dict[str, CertaintyModel]
) -> None:
    rows = []
    for asked, there, model in (
        (LANDMARKS, OBJECTS, models[OBJECTS]),
        (OBJECTS, LANDMARKS, models[OBJECTS]),
        (BOXES, LANDMARKS, models[OBJECTS]),
    ):
        absent = all_found[asked, there]
        present = all_found[asked, OBJECTS if asked == BOXES else asked]
        for alone in (False, True):
            curve = model.score_alone if alone else model.verified
            assert curve is not None
            told = present.certainty(model, alone)
            alarmed = absent.best(absent.certainty(model, alone))
            found = present.best(told)
            truly = present.best(told, present.right)
            row: list[object] = [f"`{asked}`", "score alone" if alone else "score and inliers"]
            for at in (0.5, 0.6, curve.threshold, 0.8, 0.9):
                shares = [float(np.mean(best >= at)) for best in (alarmed, found, truly)]
                row.append(" / ".join(f"{share:.3f}".lstrip("0") for share in shares))
            rows.append(row)
    table(["queries", "by", ".5", ".6", "default", ".8", ".9"], rows)


def at_one_wrong(own: dict[str, Found], models: dict[str, CertaintyModel]) -> None:
    rows = []
    for asked, found in own.items():
        model = models[LANDMARKS if asked.startswith(OBJECTS) else OBJECTS]
        row: list[object] = [f"`{asked}`"]
        for alone in (False, True):
            told = found.certainty(model, alone)
            wrong = np.sort(found.best(told, ~found.right))[::-1]
            threshold = wrong[int(0.05 * len(wrong))]
            row.append(float(np.mean(found.best(told, found.right) > threshold)))
        rows.append(row)
    table(["set", "score and inliers", "score alone"], rows)


def plot(own: dict[str, Found], models: dict[str, CertaintyModel], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
    colours = {OBJECTS: "#1f5f99", LANDMARKS: "#d1742f", BOXES: "#6f9f5b"}
    for axis, alone in zip(axes, (False, True), strict=True):
        axis.plot([0, 1], [0, 1], color="#888", linewidth=1, linestyle="--")
        for asked, found in own.items():
            other = LANDMARKS if asked.startswith(OBJECTS) else OBJECTS
            told = found.certainty(models[other], alone)
            places = np.minimum(np.digitize(told, BINS) - 1, len(BINS) - 2)
            counts = np.bincount(places)
            used = counts > 0
            x = np.bincount(places, told)[used] / counts[used]
            y = np.bincount(places, found.right)[used] / counts[used]
            axis.plot(x, y, color=colours[asked], linewidth=1.2, zorder=2)
            sizes = 12 + 14 * np.log10(counts[used])
            axis.scatter(x, y, s=sizes, color=colours[asked], zorder=3, label=asked)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="certainty", aspect="equal")
        axis.set_title("by the score alone" if alone else "by score and inliers", fontsize=11)
        axis.grid(color="#ddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of hits that are right")
    axes[0].legend(frameon=False, fontsize=9, title="fitted on the other set", title_fontsize=9)
    figure.savefig(path, dpi=130)


def shipped(models: dict[str, CertaintyModel], own: dict[str, Found]) -> CertaintyModel:
    """Return the model of objects_dev, with thresholds that have the precision on both sets."""
    model = models[OBJECTS]
    verified, alone = (
        max(threshold_at(own[n].certainty(model, a), own[n].right)[0] for n in SETS)
        for a in (False, True)
    )
    assert model.verified is not None
    return replace(
        model,
        verified=rounded(model.verified, verified),
        score_alone=rounded(model.score_alone, alone),
    )


def rounded(curve: Curve, threshold: float) -> Curve:
    """Return a curve as four digits have it, its threshold rounded up to a hundredth."""
    return replace(
        curve,
        bias=round(curve.bias, 4),
        weight=round(curve.weight, 4),
        threshold=float(np.ceil(100 * threshold) / 100),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="the folder with the data sets")
    parser.add_argument("--cache", default="~/.cache/cwf-milvus/certainty", help="collections")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the reliability")
    parser.add_argument("--write", action="store_true", help="put the model into the package")
    options = parser.parse_args()
    found = searched(datasets(options.data), Path(options.cache).expanduser())
    own = {asked: found[asked, asked.split(",")[0]] for asked in (*SETS, BOXES)}
    models = {name: fit(own[name], name) for name in SETS}
    models[OBJECTS] = shipped(models, own)
    for name in SETS:
        print(f"fitted on {name}: {models[name].verified}, {models[name].score_alone}")
    how_calibrated(own, models)
    how_often_alarmed(found, models)
    at_one_wrong(own, models)
    if options.plot:
        plot(own, models, options.plot)
    if options.write:
        prints = [Encoder(**settings).fingerprint for settings in ({}, {"keypoints": 0})]
        values = {"fingerprints": prints, "model": json.loads(models[OBJECTS].to_json())}
        SHIPPED.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
