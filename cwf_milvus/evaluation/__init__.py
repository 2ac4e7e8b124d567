"""Measure a search: datasets with their ground truth, and the scores of their protocols."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwf_milvus.evaluation.datasets.names import DATASETS as DATASETS
    from cwf_milvus.evaluation.datasets.names import load_dataset as load_dataset
    from cwf_milvus.evaluation.datasets.truth import Dataset as Dataset
    from cwf_milvus.evaluation.datasets.truth import QueryTruth as QueryTruth
    from cwf_milvus.evaluation.features import FeatureStore as FeatureStore
    from cwf_milvus.evaluation.metrics import Result as Result
    from cwf_milvus.evaluation.metrics import average_precision as average_precision
    from cwf_milvus.evaluation.metrics import evaluate_rankings as evaluate_rankings
    from cwf_milvus.evaluation.metrics import precision_at as precision_at
    from cwf_milvus.evaluation.runner import Evaluation as Evaluation
    from cwf_milvus.evaluation.runner import evaluate as evaluate
    from cwf_milvus.evaluation.runner import gather as gather

_PLACES = {
    "DATASETS": "datasets.names",
    "Dataset": "datasets.truth",
    "Evaluation": "runner",
    "FeatureStore": "features",
    "QueryTruth": "datasets.truth",
    "Result": "metrics",
    "average_precision": "metrics",
    "evaluate": "runner",
    "evaluate_rankings": "metrics",
    "gather": "runner",
    "load_dataset": "datasets.names",
    "precision_at": "metrics",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: the command line reads its options quickly."""
    if name in _PLACES:
        return getattr(import_module(f"cwf_milvus.evaluation.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'cwf_milvus.evaluation' has no attribute {name!r}")
