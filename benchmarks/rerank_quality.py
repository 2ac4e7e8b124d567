"""Print docs/reranking.md's table of mAP: what each stage and setting gains.

    python benchmarks/rerank_quality.py --data DIR [--cache DIR] [--online]

DIR holds objects_dev and landmarks_dev. Queries are whole photos, searched in plain arrays with
the default encoder; features are kept in the cache, as `cwf-milvus evaluate` keeps them. --online
prints the lines of online aggregation from 64 and from all 1000 stored classes instead: these have
features of their own, 2.6 MB a photo.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cwf_milvus.answers.hits import Query
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.evaluation.arrays import ArrayCollection, rank
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.features import FeatureStore, encodings
from cwf_milvus.evaluation.metrics import evaluate_rankings
from cwf_milvus.evaluation.runner import Inputs, ask_whole, gather
from cwf_milvus.method.expansion import alpha_expand
from cwf_milvus.rerank import Classes, Regions, Stage
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.expansion import AlphaExpansion, LocalExpansion, QueryExpansion
from cwf_milvus.search.search import search_queries

SETS = ("objects_dev", "landmarks_dev")
ALL = 1000
Settings = Sequence[tuple[Sequence[Stage], int]]

TABLE: dict[str, Settings] = {
    "descriptor": [([], ALL)],
    "`regions`, 50 / 100 / 200 / all candidates": [([Regions()], n) for n in (50, 100, 200, ALL)],
    "`Classes()`, 50 / 100 / 200 / all candidates": [([Classes()], n) for n in (50, 100, 200, ALL)],
    "`classes` (.3 of the descriptor), 100 / 200 / all": [
        (chosen_stages("classes"), n) for n in (100, 200, ALL)
    ],
    "`Regions(class_weight=.2)`, 200": [([Regions(class_weight=0.2)], 200)],
    "`Regions(descriptor_weight=.2)`, 200": [([Regions(descriptor_weight=0.2)], 200)],
    "`regions` + `local`, lent by 1 hit, then 2 (default), 200": [
        ([Regions(), LocalExpansion()], 200)
    ],
    "the same of 100 candidates": [([Regions(), LocalExpansion()], 100)],
    "by 2, then 3 / by 3, then 4": [([Regions(), LocalExpansion(n)], 200) for n in (2, 3)],
    "by 1 / 2 / 3, one round": [([Regions(), LocalExpansion(n, rounds=1)], 200) for n in (1, 2, 3)],
    "by 1, then 2, with new candidates (`refetch=True`)": [
        ([Regions(), LocalExpansion(refetch=True)], 200)
    ],
    "`aqe:5` after `regions` (200), alpha 0 / 1 / 2 / 3": [
        ([Regions(), AlphaExpansion(5, alpha)], 200) for alpha in (0.0, 1.0, 2.0, 3.0)
    ],
    "`aqe:5` alone, alpha 0 / 1 / 3": [([AlphaExpansion(5, alpha)], 200) for alpha in (0, 1, 3)],
    "`qe:3` alone / after `regions` (200)": [
        ([QueryExpansion(3)], 200),
        ([Regions(), QueryExpansion(3)], 200),
    ],
    "`qe:10` alone": [([QueryExpansion(10)], 200)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="the folder with the data sets")
    parser.add_argument("--cache", default="~/.cache/cwf-milvus", help="features")
    parser.add_argument("--online", action="store_true", help="the lines of online aggregation")
    options = parser.parse_args()
    encoder = Encoder(n_classes=ALL if options.online else 32)
    columns = []
    for name in SETS:
        inputs = gather(
            ask_whole(load_dataset(options.data / name)), FeatureStore(encoder, options.cache)
        )
        columns.append(online(encoder, inputs) if options.online else stages(encoder, inputs))
    print(f"| | {' | '.join(f'`{name}`' for name in SETS)} |\n|---|{'---|' * len(SETS)}")
    for (label, first), (_, second) in zip(*columns, strict=True):
        print(f"| {label} | {in_words(first)} | {in_words(second)} |", flush=True)


def stages(encoder: Encoder, inputs: Inputs) -> Iterator[tuple[str, list[float]]]:
    """Yield mAP by line of the table."""
    stored, asked = encoded(encoder, inputs)
    collection = ArrayCollection(encoder, stored)
    queries = [Query(one, one.uri) for one in asked]
    names = {str(inputs.dataset.path(name)): name for name in inputs.dataset.images}
    for label, settings in TABLE.items():
        found = []
        for wanted, n in settings:
            answers = search_queries(
                collection,
                queries,
                limit=len(stored),
                filter=None,
                stages=wanted,
                candidates=min(n, len(stored)),
            )
            rankings = [[names[hit.uri] for hit in hits] for hits in answers]
            found.append(evaluate_rankings(inputs.dataset, rankings).mean_ap)
        yield label, found
    descriptors = np.stack([one.descriptor for one in stored])
    found = []
    for neighbours in (5, 10):
        near = rank(descriptors, descriptors)[:, 1 : neighbours + 1]  # but for the photo itself
        augmented = [
            alpha_expand(d, descriptors[n]) for d, n in zip(descriptors, near, strict=True)
        ]
        order = rank(np.stack([one.descriptor for one in asked]), np.stack(augmented))
        found.append(evaluate_rankings(inputs.dataset, list(order)).mean_ap)
    yield "`augment`, 5 / 10 neighbours, alpha 3", found


def online(encoder: Encoder, inputs: Inputs) -> Iterator[tuple[str, list[float]]]:
    """Yield mAP of online aggregation over all photos, from 1000, 64 and 32 stored classes.

    What `Online` does, with the photos' vectors in one array by class: those of the query's
    classes that are among a photo's first m are summed, or its own m where there are none.
    """
    stored, asked = encoded(encoder, inputs)
    by_class = np.zeros((len(stored), ALL, encoder.dim), np.float16)
    ranks = np.zeros((len(stored), ALL), np.int64)
    for i, one in enumerate(stored):
        by_class[i, one.class_ids] = one.class_vectors
        ranks[i, one.class_ids] = np.arange(ALL)
    for n in (8, 16, 32, 64):
        found = []
        for m in (1000, 64, 32):
            fallback = np.stack([one.class_vectors[: min(m, 64)].sum(axis=0) for one in stored])

            def scores(query: Encoding, n: int = n, m: int = m, own: np.ndarray = fallback):
                ids = query.class_ids[:n]
                there = ranks[:, ids] < m
                sums = (by_class[:, ids].astype(np.float32) * there[..., None]).sum(axis=1)
                sums[~there.any(axis=1)] = own[~there.any(axis=1)]
                sums /= np.linalg.norm(sums, axis=1, keepdims=True)
                return sums @ query.class_vectors[:n].sum(axis=0)

            order = [np.argsort(-scores(query), kind="stable") for query in asked]
            found.append(evaluate_rankings(inputs.dataset, order).mean_ap)
        yield f"`online`, {n} classes, of 1000 / 64 / 32 stored, all", found


def encoded(encoder: Encoder, inputs: Inputs) -> tuple[list[Encoding], list[Encoding]]:
    dataset = inputs.dataset
    path: Callable[[str], str] = lambda name: str(dataset.path(name))  # noqa: E731
    stored = encodings(encoder, [path(name) for name in dataset.images], inputs.images)
    asked = encodings(encoder, [path(query.image) for query in dataset.queries], inputs.queries)
    return stored, asked


def in_words(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main()
