"""Rows and hits in the words of the wire."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from cwf_milvus.answers.hits import Hit
from cwf_milvus.errors import CwfError, StoreError
from cwf_milvus.store.rows import Row
from cwf_milvus.web.searching import Step
from cwf_milvus.web.wire import Answer, Asked, HitFound, Likeness, Photo, QueryShown

_WORDS = ((0.9, "almost certainly"), (0.6, "probably"), (0.3, "perhaps"), (0.0, "probably not"))
_MOST_MATCHES = 3
_MOST_POINTS = 200  # of a hit, spread over those there are


def name_of(uri: str) -> str:
    """Return the file name in a uri, for people."""
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    return PurePosixPath(path).name or uri


def event(name: str, told: BaseModel) -> str:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {told.model_dump_json()}\n\n"


def words_of(error: CwfError) -> str:
    """Return what is said of an error; what Milvus says may name the server's address."""
    if isinstance(error, StoreError):
        return "the collection cannot be reached: try again in a moment"
    return str(error)


def photo_of(row: Row, shown: str) -> Photo:
    """Return a stored photo, and what it is called on the wire."""
    return Photo(
        uri=shown,
        name=name_of(row.uri),
        width=row.width,
        height=row.height,
        fields=row.metadata,
    )


def answer_of(step: Step, asked: Asked, shown: Callable[[str], str]) -> Answer:
    """Return a step of a search, the page of it that was asked for.

    Args:
        step: of the search.
        asked: what was.
        shown: what a photo of this uri is called on the wire.
    """
    hits, last = step.hits, asked.offset + asked.limit
    query = hits.query
    is_photo = bool(query.encoding.content)
    certain = [hit.certainty for hit in hits if hit.certainty is not None]
    return Answer(
        step="final" if step.is_final else "descriptor",
        found=hits.found,
        certainty=max(certain, default=None),
        threshold=step.threshold,
        query=QueryShown(
            width=query.encoding.width if is_photo else None,
            height=query.encoding.height if is_photo else None,
            box=None if query.box is None else list(query.box),
        ),
        hits=[
            _hit(hit, rank, step.is_final, shown)
            for rank, hit in enumerate(hits[asked.offset : last], start=asked.offset + 1)
        ],
        more=len(hits) > last,
        seconds=step.seconds,
    )


def _hit(hit: Hit, rank: int, is_final: bool, shown: Callable[[str], str]) -> HitFound:
    points: list[list[float]] = []
    if is_final and hit.points is not None:
        spread = -(-len(hit.points) // _MOST_POINTS) or 1
        points = [[round(number, 1) for number in point] for point in hit.points[::spread].tolist()]
    by_stage = {stage.stage: stage for stage in hit.stages}
    return HitFound(
        rank=rank,
        uri=shown(hit.uri),
        name=name_of(hit.uri),
        score=hit.score,
        certainty=hit.certainty,
        certainty_words=_words(hit.certainty),
        box=None if hit.box is None else list(hit.box),
        polygon=None if hit.polygon is None else [list(corner) for corner in hit.polygon],
        framed_by={"keypoints": "points", "region": "region"}.get(hit.framed_by),  # type: ignore[arg-type]
        inliers=hit.inliers,
        points=points,
        width=hit.width,
        height=hit.height,
        fields=hit.metadata,
        stage_scores={name: stage.score for name, stage in by_stage.items()},
        stage_ranks={name: stage.rank for name, stage in by_stage.items()},
        moved_by=_mover(hit),
        classes=list(hit.classes),
        matches=[Likeness.model_validate(match.to_dict()) for match in hit.matches[:_MOST_MATCHES]]
        if is_final
        else [],
        note=hit.note or None,
    )


def _words(certainty: float | None) -> str | None:
    if certainty is None:
        return None
    return next(words for least, words in _WORDS if certainty >= least)


def _mover(hit: Hit) -> str | None:
    """Return the stage that moved a hit the furthest; None for one that stayed."""
    moves = [(abs(old.rank - new.rank), new.stage) for old, new in pairwise(hit.stages)]
    most = max(moves, default=(0, ""))
    return most[1] if most[0] else None
