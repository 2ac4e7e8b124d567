"""What is asked and what is answered: `Query`, `Hit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np

from cwf_milvus.encode.encoding import Encoding, Vectors
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image

NOT_HERE = "probably not here"
"""What is said of a thing that no hit is certain enough to show."""

_SHARED_AMONG = 10  # classes of the query and of the hit that are compared, the most likely first


@dataclass(frozen=True, eq=False)
class Query:
    """A question to a collection.

    Attributes:
        encoding: the query's vectors.
        name: what to call it where it is shown.
        image: the photo, where there is one to show.
        box: x1, y1, x2, y2 in pixels of the upright original; None for the whole photo.
    """

    encoding: Encoding
    name: str
    image: Image | None = None
    box: Box | None = None


@dataclass(frozen=True)
class StageScore:
    """What one stage made of a hit.

    Attributes:
        stage: the stage's name, "descriptor" being the first.
        score: the stage's score, higher is better.
        rank: the hit's place after the stage, from 1.
    """

    stage: str
    score: float
    rank: int


@dataclass(frozen=True)
class Match:
    """One of the query's vectors, and the hit's vector that answers to it best.

    Attributes:
        query: the query's region in pixels of the query photo, or the name of its class.
        hit: the hit's region in pixels of the hit, or the name of its class.
        cosine: of the two.
    """

    query: Box | str
    hit: Box | str
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        query, hit = (
            list(side) if isinstance(side, Box) else side for side in (self.query, self.hit)
        )
        return {"query": query, "hit": hit, "cosine": self.cosine}


class Matches(Sequence[Match]):
    """The matching regions of a hit, each made when it is looked at: few of many hits are shown.

    Args:
        asked: the query's regions.
        own: the hit's regions, of shape (R, 4), in its pixels.
        picks: of each match which of the query's, which of the hit's, and their cosine.
    """

    def __init__(
        self, asked: Sequence[Box], own: np.ndarray, picks: Sequence[tuple[int, int, float]]
    ) -> None:
        self._asked, self._own, self._picks = asked, own, picks

    def __len__(self) -> int:
        return len(self._picks)

    @overload
    def __getitem__(self, index: int) -> Match: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Match]: ...
    def __getitem__(self, index: int | slice) -> Match | Sequence[Match]:
        if isinstance(index, slice):
            return Matches(self._asked, self._own, self._picks[index])
        q, v, cosine = self._picks[index]
        return Match(self._asked[q], Box(*self._own[v].tolist()), cosine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, eq=False)
class Hit:
    """One photo of an answer.

    Attributes:
        uri: where the photo is.
        score: of the last stage, higher is better.
        classes: names of the likely classes that query and hit share, the query's first first.
        metadata: the user's own fields.
        width: of the upright photo, in pixels.
        height: of the upright photo, in pixels.
        box: of the match, in the hit's own pixels; None where no stage tells.
        framed_by: what `box` is: "keypoints", the query's box where keypoints that agree put it,
            or "region", the region alike; "" where there is none.
        polygon: the four corners of the query's box in the hit, (x, y) each, clipped to it; None
            where nothing was verified.
        inliers: keypoints that agree; 0 for a hit that was tried in vain, None where none were
            looked for.
        points: of shape (inliers, 4), x and y in the query's pixels and x and y in the hit's.
        certainty: chance that the thing is there, from 0 to 1; None where it cannot be told.
        stages: what each stage made of it, the first stage first.
        note: what a stage could not do with it, "" if nothing.
        matches: the query's vectors that it answers to best, the best first.
        vectors: its stored vectors, for stages; None where none were fetched.
    """

    uri: str
    score: float
    classes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    height: int = 0
    box: Box | None = None
    framed_by: Literal["keypoints", "region", ""] = ""
    polygon: tuple[tuple[float, float], ...] | None = None
    inliers: int | None = None
    points: np.ndarray | None = field(default=None, repr=False)
    certainty: float | None = None
    stages: tuple[StageScore, ...] = ()
    note: str = ""
    matches: Sequence[Match] = ()
    vectors: Vectors | None = field(default=None, repr=False)

    def scored(self, stage: str, score: float, rank: int, **changes: Any) -> Hit:
        """Return the hit as a stage leaves it."""
        done = (*self.stages, StageScore(stage, score, rank))
        return self.but(score=score, stages=done, **changes)

    def but(self, **changes: Any) -> Hit:
        """Return the hit with other attributes; `dataclasses.replace`, only quicker."""
        hit = object.__new__(type(self))
        hit.__dict__.update(self.__dict__, **changes)
        return hit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds, without vectors."""
        return {
            "uri": self.uri,
            "score": self.score,
            "classes": list(self.classes),
            "box": None if self.box is None else list(self.box),
            "framed_by": self.framed_by,
            "polygon": None if self.polygon is None else [list(xy) for xy in self.polygon],
            "inliers": self.inliers,
            "certainty": self.certainty,
            "width": self.width,
            "height": self.height,
            "metadata": self.metadata,
            "stages": [vars(stage) for stage in self.stages],
            "matches": [match.to_dict() for match in self.matches],
        } | ({"note": self.note} if self.note else {})


def shared_classes(
    query_ids: np.ndarray, hit_ids: np.ndarray, names: Sequence[str]
) -> tuple[str, ...]:
    """Return the names of the first classes that a query (N,) and a hit (N',) share."""
    among = set(hit_ids[:_SHARED_AMONG].tolist())
    shared = (i for i in query_ids[:_SHARED_AMONG].tolist() if i in among)
    # Stored ids may be of any number.
    return tuple(names[i] if 0 <= i < len(names) else f"class {i}" for i in shared)
