"""What goes over the wire: requests and answers as JSON, documented in the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cwf_milvus.photos.box import Box

Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Outcome = Literal["added", "updated", "moved", "skipped", "failed"]
Line = Annotated[str, StringConstraints(max_length=4096)]


class Failure(BaseModel):
    """Why there is no answer, and what to do about it."""

    error: str


class Asked(BaseModel):
    """A search.

    The photo is one sent before (`query`), a stored one (`uri`), one at a url, or the file `photo`
    of a form; or there is none, and more is looked for like stored photos.
    """

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, StringConstraints(max_length=64)] | None = None
    uri: Uri | None = None
    url: Uri | None = None
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = None
    filter: Line | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 24
    offset: Annotated[int, Field(ge=0, le=2000)] = 0
    rerank: Annotated[str, StringConstraints(max_length=100)] = "auto"
    expand: Annotated[str, StringConstraints(max_length=100)] = "auto"
    candidates: Annotated[int, Field(ge=1, le=1000)] = 100
    like: Annotated[list[Uri], Field(max_length=100)] = []
    unlike: Annotated[list[Uri], Field(max_length=100)] = []
    min_certainty: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def framed(self) -> Box | None:
        """The box, as the library takes it."""
        return None if self.box is None else Box(*self.box)


class Url(BaseModel):
    """A photo elsewhere."""

    model_config = ConfigDict(extra="forbid")

    url: Uri


class QueryKept(BaseModel):
    """A photo that is kept a while, to be searched with by its name."""

    query: str
    width: int
    height: int


class QueryShown(BaseModel):
    """The photo that was asked with; without a size where it was made of stored photos."""

    width: int | None
    height: int | None
    box: list[float] | None


class Likeness(BaseModel):
    """A region or class of the query, what of the hit answers to it, and their cosine."""

    query: list[float] | str
    hit: list[float] | str
    cosine: float


class HitFound(BaseModel):
    """A photo of an answer. Boxes and points are in pixels of the upright photos."""

    rank: int
    uri: str
    name: str
    score: float
    certainty: float | None
    certainty_words: str | None
    box: list[float] | None
    polygon: list[list[float]] | None
    framed_by: Literal["points", "region"] | None
    inliers: int | None
    points: list[list[float]] = []
    width: int
    height: int
    fields: dict[str, Any]
    stage_scores: dict[str, float]
    stage_ranks: dict[str, int]
    moved_by: str | None
    classes: list[str]
    matches: list[Likeness] = []
    note: str | None = None


class Seconds(BaseModel):
    """What the parts of a search took."""

    encode: float
    search: float
    stages: float


class Answer(BaseModel):
    """The hits of a search, the best first."""

    step: Literal["descriptor", "final"]
    found: bool | None
    certainty: float | None
    threshold: float | None
    query: QueryShown
    hits: list[HitFound]
    more: bool
    seconds: Seconds


class Photo(BaseModel):
    """A stored photo."""

    uri: str
    name: str
    width: int
    height: int
    fields: dict[str, Any]


class PhotoDetails(Photo):
    """A stored photo, and what the network sees in it, the most likely class first."""

    classes: list[str]
    scores: list[float]
    content: str
    in_graph: bool


class PhotoPage(BaseModel):
    """A page of photos; `after` asks for the next, None for the last page."""

    photos: list[Photo]
    after: str | None


class GroupFound(BaseModel):
    """Photos that share a value; `filter` finds them."""

    value: str | int | float | bool
    count: int
    filter: str


class NeighbourFound(BaseModel):
    """A photo that resembles another, by the graph."""

    uri: str
    name: str
    score: float
    inliers: int


class DuplicateGroup(BaseModel):
    """Photos with the same bytes, or of the same scene."""

    representative: str
    uris: list[str]


class FieldFound(BaseModel):
    """A field of the photos: what its values are, in how many photos, and some of them."""

    name: str
    type: str
    count: int
    examples: list[Any]


class Added(BaseModel):
    """What became of a photo that was sent to be stored."""

    done: int
    total: int
    name: str
    outcome: Outcome
    reason: str | None


class AddedCounts(BaseModel):
    """How many photos came to which end."""

    counts: dict[str, int]


class CollectionFound(BaseModel):
    """A collection that is served."""

    name: str
    photos: int
    writable: bool
    urls: bool
    graph: bool
    keypoints: bool
