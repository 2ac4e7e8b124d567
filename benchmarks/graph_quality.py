"""Print the tables of docs/graph.md: mAP by power of late interaction and setting of the graph.

    python benchmarks/graph_quality.py --data DIR [--cache DIR] [--inliers DIR]

DIR holds objects_dev and landmarks_dev. The default encoder's float32 vectors, all photos scored,
the query's own photo no seed. --inliers is a folder with SET_edges.npz: `neighbours` (N, m), the
photos most alike to each, and `inliers` (N, m) with them; `whole_hits` and `whole_inliers` of the
whole photos as queries, `boxes_hits` and `boxes_inliers` of the boxes. Tables of these follow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from development_sets import Column, columns, print_table
from scipy import sparse

from cwf_milvus.method import diffusion
from cwf_milvus.method.late_interaction import late_interaction, mutual_interaction

PLAIN: dict[str, Any] = {
    "neighbours": diffusion.NEIGHBOURS,
    "candidates": 50,
    "gamma": diffusion.GAMMA,
    "alpha": diffusion.ALPHA,
    "kept": diffusion.KEPT,
    "seeds": diffusion.SEEDS,
    "power": diffusion.GAMMA,
    "edges": 0,
    "hits": 0,
}
VERIFIED = PLAIN | {
    "gamma": diffusion.VERIFIED_GAMMA,
    "seeds": diffusion.VERIFIED_SEEDS,
    "power": diffusion.VERIFIED_GAMMA,
    "edges": 20,
    "hits": 60,
}
TRIED: dict[str, tuple[float, ...]] = {
    "neighbours": (5, 7, 10, 15, 20),
    "candidates": (20, 50, 100),
    "gamma": (1, 2, 3, 4),
    "alpha": (0.6, 0.7, 0.8, 0.9),
    "kept": (20, 50, 100),
    "seeds": (1, 2, 3, 5, 7, 10, 15),
    "power": (1, 2, 3),
}


class Measured:
    """A column with what all settings share: similarities of all pairs, scores, inliers."""

    def __init__(self, column: Column, inliers: Path | None) -> None:
        self.column, self.own = column, column.own()
        self.regions = np.stack([one.region_vectors for one in column.stored])
        self.scores = {power: self.scored(power) for power in (1, 2, 3)}
        pairs = np.array([mutual_interaction(one, self.regions) for one in self.regions])
        self.pairs = (pairs + pairs.T) / 2
        descriptors = np.stack([one.descriptor for one in column.stored])
        cosines = descriptors @ descriptors.T
        np.fill_diagonal(cosines, -np.inf)
        self.near = np.argsort(-cosines, axis=1, kind="stable")
        self.inliers = None
        if inliers:
            name, _, boxed = column.title.partition(",")
            found = np.load(inliers / f"{name}_edges.npz")
            way = "boxes" if boxed else "whole"
            self.inliers = {
                "edges": (found["neighbours"], found["inliers"]),
                "hits": (found[f"{way}_hits"], found[f"{way}_inliers"]),
            }

    def scored(self, power: float) -> np.ndarray:
        asked = self.column.asked
        return np.stack(
            [late_interaction(a.region_vectors, self.regions, power).scores for a in asked]
        )

    def verified(self, values: np.ndarray, what: str, first: int) -> np.ndarray:
        """Return values of shape (n, photos) with what inliers add to the first of each row."""
        if not first or self.inliers is None:
            return values
        photos, inliers = (array[:, :first] for array in self.inliers[what])
        counts = np.zeros(values.shape)
        np.put_along_axis(counts, photos, np.maximum(inliers, 0), axis=1)
        return diffusion.verified(values, counts)

    def compared(
        self, settings: dict[str, Any], new: np.ndarray, all_: np.ndarray
    ) -> sparse.csr_array:
        """Return the similarities of new photos and their nearest of all."""
        n = len(self.pairs)
        there = np.isin(self.near, all_)
        pairs = np.zeros((n, n), bool)
        for i in new:
            pairs[i, self.near[i][there[i]][: settings["candidates"]]] = True
        s = self.verified(self.pairs, "edges", settings["edges"])
        return sparse.csr_array(np.where(pairs | pairs.T, np.maximum(s, s.T), 0))

    def grown(
        self, settings: dict[str, Any], portions: list[np.ndarray], redone: str
    ) -> tuple[sparse.csr_array, float]:
        """Return the rows of a graph that grew by portions, and rows computed a photo added."""
        n = len(self.pairs)
        edges, rows = sparse.csr_array((n, n)), sparse.lil_array((n, n))
        added = computed = 0
        for number, new in enumerate(portions):
            before, all_ = edges, np.concatenate(portions[: number + 1])
            edges = diffusion.nearest_edges(
                before.maximum(self.compared(settings, new, all_)), settings["neighbours"]
            )
            a = diffusion.affinities(edges, settings["neighbours"], settings["gamma"])
            which = {
                "new": new,
                "changed": np.union1d(new, diffusion.changed_photos(before, edges)),
                "all": all_,
            }[redone if number else "all"]
            rows[which] = diffusion.diffusion_rows(
                diffusion.normalised(a), which, settings["alpha"], settings["kept"]
            )
            if number:
                added, computed = added + len(new), computed + len(which)
        return rows.tocsr(), computed / max(1, added)

    def mean_ap(self, rows: sparse.csr_array, settings: dict[str, Any]) -> float:
        found = self.verified(self.scores[2], "hits", settings["hits"]).astype(np.float64)
        answers = []
        for scores, own in zip(found, self.own, strict=True):
            may = scores.copy()
            if own >= 0:
                may[own] = np.nan
            y = diffusion.seed_weights(may, settings["seeds"], settings["power"])
            answers.append(diffusion.fused(rows @ y, scores))
        return self.column.mean_ap(np.stack(answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="the folder with the data sets")
    parser.add_argument("--cache", default="~/.cache/cwf-milvus", help="features")
    parser.add_argument("--inliers", type=Path, help="a folder of matches that were counted")
    options = parser.parse_args()
    report(columns(options.data, options.cache), options.inliers)


def report(found: list[Column], inliers: Path | None) -> None:
    measured = [Measured(column, inliers) for column in found]
    titles = [f"`{column.title}`" for column in found]
    lines = [
        (f"power {power}", [one.column.mean_ap(one.scores[power]) for one in measured])
        for power in (1, 2, 3)
    ]
    print_table(titles, lines)
    print()
    print_table(titles, by_setting(measured, PLAIN))
    if not inliers:
        return
    lines = [
        ("spatial", [m.column.mean_ap(m.verified(m.scores[2], "hits", 60)) for m in measured]),
        ("verified seeds, plain edges", run(measured, VERIFIED | {"edges": 0, "gamma": 3})),
        ("plain seeds, verified edges", run(measured, PLAIN | {"edges": 20, "gamma": 2})),
        *(
            (f"{n} edges of a photo verified", run(measured, VERIFIED | {"edges": n}))
            for n in (10, 20, 40)
        ),
        *((f"{n} hits verified", run(measured, VERIFIED | {"hits": n})) for n in (20, 40, 60)),
    ]
    print()
    print_table(titles, lines + by_setting(measured, VERIFIED))


def by_setting(measured: list[Measured], base: dict[str, Any]) -> list[tuple[str, list[float]]]:
    lines = [("defaults", run(measured, base))]
    for setting, values in TRIED.items():
        lines += [
            (f"{setting} {value}", run(measured, base | {setting: value})) for value in values
        ]
    return lines + by_growth(measured, base)


def run(measured: list[Measured], settings: dict[str, Any]) -> list[float]:
    return [
        one.mean_ap(one.grown(settings, [np.arange(len(one.pairs))], "all")[0], settings)
        for one in measured
    ]


def by_growth(measured: list[Measured], base: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Of 70 % of the photos, then thrice 10 % more: mAP, by which rows are computed anew."""
    lines = []
    for redone in ("new", "changed", "all"):
        values, costs = [], []
        for one in measured:
            n = len(one.pairs)
            order = np.random.default_rng(0).permutation(n)
            portions = np.split(order, [int(share * n) for share in (0.7, 0.8, 0.9)])
            rows, cost = one.grown(base, portions, redone)
            values.append(one.mean_ap(rows, base))
            costs.append(cost)
        lines.append((f"grown, rows of {redone} photos: {np.mean(costs):.1f} a new one", values))
    return lines


if __name__ == "__main__":
    main()
