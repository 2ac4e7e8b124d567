"""The benchmarks by name, and any folder with a ground-truth file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.buildings import (
    load_oxford5k,
    load_paris6k,
    load_revisited,
)
from cwf_milvus.evaluation.datasets.ground_truth import load_ground_truth
from cwf_milvus.evaluation.datasets.groups import load_holidays, load_ukbench
from cwf_milvus.evaluation.datasets.truth import Dataset, QueryTruth

__all__ = [
    "DATASETS",
    "Dataset",
    "QueryTruth",
    "load_dataset",
    "load_ground_truth",
    "load_holidays",
    "load_oxford5k",
    "load_paris6k",
    "load_revisited",
    "load_ukbench",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "oxford5k": load_oxford5k,
    "paris6k": load_paris6k,
    "oxford105k": load_oxford5k,
    "paris106k": load_paris6k,
    "roxford5k": partial(load_revisited, name="roxford5k"),
    "rparis6k": partial(load_revisited, name="rparis6k"),
    "holidays": load_holidays,
    "ukbench": load_ukbench,
}
"""Name to loader, called with root and distractors."""

_NEEDS_DISTRACTORS = ("oxford105k", "paris106k")
_GROUND_TRUTH = "gnd.json"


def load_dataset(
    name_or_path: str | Path,
    root: str | Path | None = None,
    distractors: str | Path | None = None,
) -> Dataset:
    """A benchmark by its name, or one's own by its ground-truth file.

    Args:
        name_or_path: a name in `DATASETS`; or a JSON file (docs/ground-truth.md); or a folder
            with such a file, `gnd.json`, in it.
        root: the folder of the photos. Needed with a name; else the file's own folder by default.
        distractors: a folder of further photos to search among.

    Raises:
        SettingsError: there is no such dataset or file, or it is not usable: the message says why.

    Example:
        >>> dataset = load_dataset("paris6k", "data/paris")    # doctest: +SKIP
        >>> print(dataset, *dataset.check(), sep="\\n")         # doctest: +SKIP
    """
    if name_or_path in DATASETS:
        if root is None:
            raise SettingsError(f"{name_or_path} needs root, the folder where you keep it")
        if name_or_path in _NEEDS_DISTRACTORS and distractors is None:
            raise SettingsError(f"{name_or_path} needs distractors, the folder of its 100k photos")
        return DATASETS[str(name_or_path)](root, distractors=distractors)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / _GROUND_TRUTH
    if not path.is_file():
        raise SettingsError(
            f"there is no dataset and no ground-truth file {str(path)!r}; "
            f"give a JSON file, a folder with {_GROUND_TRUTH}, or one of {', '.join(DATASETS)}"
        )
    return load_ground_truth(path, root, distractors)
