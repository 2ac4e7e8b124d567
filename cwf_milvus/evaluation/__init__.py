"""Measure a search: datasets with their ground truth, and the scores of their protocols."""

from cwf_milvus.evaluation.datasets import DATASETS, load_dataset
from cwf_milvus.evaluation.metrics import Result, average_precision, evaluate_rankings, precision_at
from cwf_milvus.evaluation.truth import Dataset, QueryTruth

__all__ = [
    "DATASETS",
    "Dataset",
    "QueryTruth",
    "Result",
    "average_precision",
    "evaluate_rankings",
    "load_dataset",
    "precision_at",
]
