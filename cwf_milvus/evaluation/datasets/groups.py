"""Holidays and UKBench, where the number in a file's name is the whole ground truth."""

import re
from collections import defaultdict
from pathlib import Path

from cwf_milvus.evaluation.datasets.truth import (
    Dataset,
    QueryTruth,
    assemble,
    by_stem,
    photos_among,
    walk,
)

_HOLIDAYS = re.compile(r"[0-9]{6}")
_UKBENCH = re.compile(r"ukbench[0-9]{5}")


def load_holidays(root: str | Path, distractors: str | Path | None = None) -> Dataset:
    """INRIA Holidays (Jégou et al., ECCV 2008): 1491 photos in 500 groups, a query each.

    A photo is named NNNNMM.jpg, group and number; the first of a group (MM = 00) is the query, and
    the others are its positives. The query stays in the database and is taken out of its own
    ranking: it is junk to itself.

    Args:
        root: a folder with the photos below it.
        distractors: a folder of further photos to search among.

    Raises:
        SettingsError: no photo is there.
    """
    files = walk(root, leave_out=distractors)
    names, surplus = by_stem(photos_among(files), _HOLIDAYS.fullmatch)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for stem in names:
        groups[stem[:4]].append(stem)
    queries = []
    for group, stems in groups.items():
        first = names.get(f"{group}00", f"{group}00.jpg")
        others = frozenset(names[stem] for stem in stems) - {first}
        queries.append(QueryTruth(first, None, others, frozenset({first}), group))
    return assemble(
        "holidays",
        files={name: files[name] for name in names.values()},
        images=names.values(),
        queries=queries,
        surplus=surplus,
        expected={"images": 1491, "queries": 500},
        distractors=distractors,
    )


def load_ukbench(root: str | Path, distractors: str | Path | None = None) -> Dataset:
    """UKBench (Nistér and Stewénius, CVPR 2006): 10200 photos, four of each of 2550 things.

    A photo is named ukbenchNNNNN.jpg; numbers 4g to 4g+3 are one thing. Each photo is a query, and
    itself one of its four positives. Arguments and errors as for `load_holidays`.
    """
    files = walk(root, leave_out=distractors)
    names, surplus = by_stem(photos_among(files), _UKBENCH.fullmatch)
    queries = []
    for stem, name in names.items():
        group = int(stem.removeprefix("ukbench")) // 4
        members = [f"ukbench{number:05}" for number in range(4 * group, 4 * group + 4)]
        positives = frozenset(names.get(member, f"{member}.jpg") for member in members)
        queries.append(QueryTruth(name, None, positives, group=f"{group:04}"))
    return assemble(
        "ukbench",
        files={name: files[name] for name in names.values()},
        images=names.values(),
        queries=queries,
        surplus=surplus,
        expected={"images": 10200, "queries": 10200},
        distractors=distractors,
        scores_ns=True,
    )
