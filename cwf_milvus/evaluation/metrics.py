"""Average precision, precision at k and the N-S score, with junk, as the benchmarks define them."""

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.truth import Dataset, QueryTruth

PRECISION_AT = (1, 5, 10)
"""The k of mP@k in Radenović et al., CVPR 2018."""

NS_DEPTH = 4
"""UKBench has four photos of each thing, and scores the first four answers."""

Ranking = Sequence[str] | Sequence[int] | np.ndarray
"""What one query found, best first: names out of `Dataset.images`, or positions in it."""


def positive_ranks(
    ranking: Iterable[Hashable], positives: Collection[Hashable], junk: Collection[Hashable] = ()
) -> list[int]:
    """The 0-based ranks of the positives, in a ranking without its junk.

    A repeated entry counts where it first stands and takes no place afterwards. An entry that is
    both positive and junk is junk. Reading stops at the last positive.
    """
    ignored = set(junk)
    wanted = set(positives) - ignored
    ranks: list[int] = []
    rank = 0
    for entry in ranking:
        if len(ranks) == len(wanted):
            break
        if entry in ignored:
            continue
        ignored.add(entry)
        if entry in wanted:
            ranks.append(rank)
        rank += 1
    return ranks


def average_precision(
    ranking: Iterable[Hashable], positives: Collection[Hashable], junk: Collection[Hashable] = ()
) -> float:
    """Area under the precision-recall curve, by trapezoids, as Oxford's `compute_ap` draws it.

    The i-th of n positives (from 0), at rank r (from 0, junk taken out), adds
    `(i/r + (i+1)/(r+1)) / 2n`, where the precision before the first answer, i/r at r = 0, is 1.
    ROxford, RParis and Holidays use the same formula; in Holidays the query itself is junk.
    Positives that are not in the ranking add nothing.

    Args:
        ranking: names or positions, any hashable, best first.
        positives: what should be found.
        junk: what is taken out of the ranking before scoring; it wins over `positives`.

    Returns:
        Between 0 and 1; NaN when there are no positives.

    Example:
        >>> average_precision(["a", "x", "b"], positives={"a", "b"})
        0.7916666666666666
    """
    return _average_precision(positive_ranks(ranking, positives, junk), positives, junk)


def precision_at(
    ranking: Iterable[Hashable],
    positives: Collection[Hashable],
    junk: Collection[Hashable] = (),
    *,
    k: int,
) -> float:
    """Precision of the first k answers, as in ROxford's mP@k (Radenović et al., CVPR 2018).

    Once all positives have been found there is nothing more to be right about: k is lowered to
    the (1-based) rank of the last positive when that is smaller.

    Returns:
        Between 0 and 1; NaN when there are no positives.

    Raises:
        SettingsError: k is not positive.
    """
    if k < 1:
        raise SettingsError(f"precision at k={k} is not defined; k must be at least 1")
    return _precision_at(positive_ranks(ranking, positives, junk), positives, junk, k)


def ns_score(ranking: Iterable[Hashable], positives: Collection[Hashable]) -> int:
    """How many of the positives are among the first four answers (UKBench; of four at best)."""
    return sum(rank < NS_DEPTH for rank in positive_ranks(ranking, positives))


def _average_precision(
    ranks: list[int], positives: Collection[Hashable], junk: Collection[Hashable]
) -> float:
    n_positives = len(set(positives) - set(junk))
    if not n_positives:
        return math.nan
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0
        area += (before + (found + 1) / (rank + 1)) / 2
    return area / n_positives


def _precision_at(
    ranks: list[int], positives: Collection[Hashable], junk: Collection[Hashable], k: int
) -> float:
    n_positives = len(set(positives) - set(junk))
    if not n_positives:
        return math.nan
    depth = min(ranks[-1] + 1, k) if len(ranks) == n_positives else k
    return sum(rank < depth for rank in ranks) / depth


@dataclass(frozen=True)
class Result:
    """The scores of one set of rankings over one dataset; a mean over no query is NaN.

    Attributes:
        dataset: its name.
        mean_ap: mAP over the queries that have positives. Medium, where there are setups.
        mean_precision: k to mP@k over the same queries.
        average_precisions: AP of each query, as in `Dataset.queries`; NaN without positives.
        without_positives: how many queries were left out of the means for having none.
        groups: mean AP of each group of queries (a building, a thing), by name.
        ns_score: mean number of right answers in the first four; UKBench only, else None.
        setups: for ROxford and RParis the Result of "easy", "medium" and "hard"; else empty.
    """

    dataset: str
    mean_ap: float
    mean_precision: dict[int, float]
    average_precisions: tuple[float, ...]
    without_positives: int
    groups: dict[str, float]
    ns_score: float | None = None
    setups: dict[str, "Result"] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: None stands in its place."""
        return {
            "dataset": self.dataset,
            "map": _or_none(self.mean_ap),
            "mp": {str(k): _or_none(value) for k, value in self.mean_precision.items()},
            "ap": [_or_none(value) for value in self.average_precisions],
            "without_positives": self.without_positives,
            "groups": {name: _or_none(value) for name, value in self.groups.items()},
            "ns_score": None if self.ns_score is None else _or_none(self.ns_score),
            "setups": {name: result.to_dict() for name, result in self.setups.items()},
        }


def evaluate_rankings(dataset: Dataset, rankings: Sequence[Ranking]) -> Result:
    """Score one ranking for each query of a dataset, in the order of `dataset.queries`.

    A ranking may stop early: what it does not name counts as not found.

    Raises:
        SettingsError: not one ranking for each query, or one names an image that the dataset does
            not have.
    """
    if len(rankings) != len(dataset.queries):
        raise SettingsError(
            f"{dataset.name} has {len(dataset.queries)} queries, and {len(rankings)} rankings were "
            "given; give one for each query, in the order of dataset.queries"
        )
    known = frozenset(dataset.images)
    variants = {setup: [query.at(setup) for query in dataset.queries] for setup in dataset.setups}
    variants = variants or {"": list(dataset.queries)}
    ranks: dict[str, list[list[int]]] = {setup: [] for setup in variants}
    for number, ranking in enumerate(rankings):
        names = list(_names(ranking, dataset, known, number))
        for setup, queries in variants.items():
            query = queries[number]
            ranks[setup].append(positive_ranks(names, query.positives, query.junk))
    results = {setup: _score(dataset, queries, ranks[setup]) for setup, queries in variants.items()}
    return replace(results["medium"], setups=results) if dataset.setups else results[""]


def _names(ranking: Ranking, dataset: Dataset, known: frozenset[str], number: int) -> Iterator[str]:
    entries = ranking.tolist() if isinstance(ranking, np.ndarray) else ranking
    for entry in entries:
        if isinstance(entry, int | np.integer):
            if not 0 <= entry < len(dataset.images):
                raise SettingsError(
                    f"ranking {number} names position {entry}, and {dataset.name} has "
                    f"{len(dataset.images)} images; give positions in dataset.images"
                )
            yield dataset.images[entry]
        elif entry in known:
            yield str(entry)
        else:
            raise SettingsError(
                f"ranking {number} names {entry!r}, which is no image of {dataset.name}; "
                "give names as they stand in dataset.images"
            )


def _score(dataset: Dataset, queries: Sequence[QueryTruth], ranks: Sequence[list[int]]) -> Result:
    precisions = [
        _average_precision(found, query.positives, query.junk)
        for query, found in zip(queries, ranks, strict=True)
    ]
    by_group: dict[str, list[float]] = {}
    for query, value in zip(queries, precisions, strict=True):
        if query.group is not None:
            by_group.setdefault(query.group, []).append(value)
    return Result(
        dataset=dataset.name,
        mean_ap=_mean(precisions),
        mean_precision={
            k: _mean(
                _precision_at(found, query.positives, query.junk, k)
                for query, found in zip(queries, ranks, strict=True)
            )
            for k in PRECISION_AT
        },
        average_precisions=tuple(precisions),
        without_positives=sum(math.isnan(value) for value in precisions),
        groups={name: _mean(values) for name, values in by_group.items()},
        ns_score=(
            _mean(sum(rank < NS_DEPTH for rank in found) for found in ranks)
            if dataset.scores_ns
            else None
        ),
    )


def _mean(values: Iterable[float]) -> float:
    counted = [value for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
