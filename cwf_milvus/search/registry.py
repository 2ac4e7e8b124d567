"""The stages by name: what each does, what it needs stored, and where it is.

A further stage is named here, once. `InstanceCollection.search`, the options and help of the
command line, the Towhee operators and the table of docs/reranking.md know it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line's help need not wait for numpy
    from cwf_milvus.encode.encoding import Kind

CANDIDATES = 200  # hits that the stages see, unless it is said: docs/reranking.md
AUTO, NONE = "auto", "none"
"""What `rerank` and `expand` take beside the names: the best there is, and nothing."""

CLASSES_DESCRIPTOR_WEIGHT = 0.3  # docs/decisions.md


@dataclass(frozen=True)
class Registered:
    """A stage that can be asked for by name.

    Attributes:
        option: where it is asked for.
        place: module in `cwf_milvus.search` and class; imported when it is asked for, as most
            stages need torch, which takes seconds.
        needs: the kinds of vectors that it reads of the rows.
        about: what its score is, a line.
        preset: arguments that the name stands for.
        hits: of an expansion, how many hits it takes unless a number is given.
    """

    option: Literal["rerank", "expand"]
    place: str
    needs: tuple[Kind, ...]
    about: str
    preset: Mapping[str, float] = field(default_factory=dict)
    hits: int = 0


STAGES: dict[str, Registered] = {
    "regions": Registered(
        "rerank",
        "stored:Regions",
        ("regions",),
        "mean over the query's region vectors of the best cosine among the hit's, squared",
    ),
    "classes": Registered(
        "rerank",
        "stored:Classes",
        ("classes",),
        "the same with class vectors, and .3 of the first search's score",
        {"descriptor_weight": CLASSES_DESCRIPTOR_WEIGHT},
    ),
    "online": Registered(
        "rerank",
        "online:Online",
        ("classes",),
        "cosine of the sums over the query's classes, the paper's online aggregation",
    ),
    "class-matched": Registered(
        "rerank",
        "online:ClassMatched",
        ("classes",),
        "mean cosine of the vectors of equal classes",
    ),
    "spatial": Registered(
        "rerank",
        "spatial:Spatial",
        ("keypoints",),
        "the score so far, and up to .1 for keypoints that agree: the first 60 hits are verified",
    ),
    "cam": Registered(
        "rerank",
        "seen_again:Cam",
        (),
        "the paper's: the best box of the query's class maps on the photo, which is read again",
    ),
    "local": Registered(
        "expand",
        "expansion:LocalExpansion",
        ("regions",),
        "the best-answering stored vectors of the top hits score the candidates again",
        hits=1,
    ),
    "graph": Registered(
        "expand",
        "graph:GraphExpansion",
        (),
        "what resembles the best hits on the graph of the photos that `cwf-milvus graph` builds",
    ),
    "aqe": Registered(
        "expand",
        "expansion:AlphaExpansion",
        ("descriptor",),
        "a new search with the query and its top hits, weighed by their cosines",
        hits=5,
    ),
    "qe": Registered(
        "expand",
        "expansion:QueryExpansion",
        ("descriptor",),
        "a new search with the sum of the top hits, without the query",
        hits=5,
    ),
}


def stage_names(option: Literal["rerank", "expand"]) -> list[str]:
    """Return the names that `rerank` or `expand` takes."""
    return [name for name, stage in STAGES.items() if stage.option == option]
