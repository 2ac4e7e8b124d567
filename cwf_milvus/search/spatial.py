"""The stage `spatial`: is it the same thing, and where; by keypoints that agree.

Keypoints are stored with the photos. Where they are not, the hits' photos are read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_count
from cwf_milvus.encode.settings import QUERY_KEYPOINTS, EncoderSettings
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.method.spatial import Verified, spatial_score, verify_hits
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import Image
from cwf_milvus.search.fetch import fetch_vectors
from cwf_milvus.search.stage import Context, Stage, reranked, stored_of

if TYPE_CHECKING:  # torch takes seconds, and stored photos are verified without it
    from cwf_milvus.encode.encoder import Encoder

_READERS = 4


class Spatial(Stage):
    """Verify the first hits by their keypoints: which agree with one map of the query's box.

    ``score + .1 * clip((inliers - 5) / 10, 0, 1)`` (METHOD §10). A verified hit's `box` becomes the
    query's box in it, with its corners in `polygon` and the matched points in `points`; where
    nothing was verified the box that it had stays. Hits after the first `n` follow as they were.

    A query made of several stored photos is verified by the first one in `like`. A photo without
    stored keypoints is read again; one that cannot be read keeps its place, and a note says why.

    Args:
        n: how many of the best hits are verified.
        mirrored: look for the thing with left and right exchanged too, at twice the time.

    Raises:
        SettingsError: n under 1.
    """

    name = "spatial"
    needs = ("keypoints",)
    fetches = True

    def __init__(self, n: int = 60, *, mirrored: bool = False) -> None:
        self.n = checked_count("n", n)
        self.mirrored = mirrored

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits in the order of their scores; see `Stage`.

        Raises:
            SettingsError: mirrored things of a query without a photo.
        """
        first = hits[: self.n]
        asked = _of_query(query, context)
        mirrored = _mirrored(query, context, len(asked)) if self.mirrored else None
        of_hits, reasons = _of_hits(first, context)
        can = [i for i, found in enumerate(of_hits) if found is not None]
        found = verify_hits(asked, [of for of in of_hits if of is not None], query.box, mirrored)
        verified = dict(zip(can, found, strict=True))
        inliers = np.array([_inliers(verified.get(i)) for i in range(len(first))])
        scores = spatial_score(np.array([hit.score for hit in first]), inliers)
        scores[[i for i in range(len(first)) if i not in verified]] = np.nan
        done = reranked(
            self.name,
            first,
            scores,
            lambda i: _changes(verified[i]),
            lambda i: reasons.get(i, "no keypoints are stored with it"),
        )
        return [*done, *hits[self.n :]]


def _inliers(found: Verified | None) -> int:
    return 0 if found is None else found.inliers


def _changes(found: Verified | None) -> dict[str, Any]:
    if found is None:
        return {"inliers": 0}
    return {
        "inliers": found.inliers,
        "box": Box(*found.box),
        "framed_by": "keypoints",
        "polygon": tuple((float(x), float(y)) for x, y in found.polygon),
        "points": np.concatenate([found.query_points, found.hit_points], axis=1),
    }


def _of_query(query: Query, context: Context) -> Keypoints:
    """Return a query's keypoints: its own, or its photo's.

    Raises:
        SettingsError: it has neither.
        ImageError: its photo cannot be read.
    """
    if query.encoding.keypoints is not None:
        return query.encoding.keypoints
    if context.gallery is None:
        raise SettingsError(
            "the query has no keypoints: give an Encoding of an Encoder with keypoints"
        )
    encoder = context.gallery.encoder
    photo = query.image or encoder.read(query.encoding.uri, query.box)
    found = encoder.keypoints(photo, QUERY_KEYPOINTS)
    assert found is not None  # of a limit above 0
    return found


def _mirrored(query: Query, context: Context, limit: int) -> Keypoints | None:
    """Return the keypoints of the query's photo with left and right exchanged."""
    if query.image is None or context.gallery is None:
        raise SettingsError(
            "mirrored=True takes the query's photo, and this query has none: leave it out"
        )
    turned = replace(query.image, pixels=np.ascontiguousarray(query.image.pixels[:, ::-1]))
    return context.gallery.encoder.keypoints(turned, max(limit, 1))


def _of_hits(
    hits: Sequence[Hit], context: Context
) -> tuple[list[Keypoints | None], dict[int, str]]:
    """Return the keypoints of hits, and, by their index, why some have none."""
    if context.gallery is None:
        return [stored_of(hit).keypoints for hit in hits], {}
    fetched = fetch_vectors(context.gallery, [hits], Spatial.needs)[0]
    found = [stored_of(hit).keypoints for hit in fetched]
    missing = [i for i, keypoints in enumerate(found) if keypoints is None]
    reasons: dict[int, str] = {}
    if missing:
        encoder = context.gallery.encoder
        with ThreadPoolExecutor(_READERS) as readers:
            again = readers.map(lambda i: _read_again(encoder, hits[i]), missing)
            for i, outcome in zip(missing, again, strict=True):
                if isinstance(outcome, str):
                    reasons[i] = outcome
                else:
                    found[i] = outcome
    return found, reasons


def _read_again(encoder: Encoder, hit: Hit) -> Keypoints | str:
    """Return a stored photo's keypoints, or why there are none."""
    content = stored_of(hit).content
    kept = encoder.keypoints_read.get((hit.uri, content))
    if kept is not None:
        return kept
    try:
        photo: Image = encoder.read(hit.uri)
    except ImageError as error:
        return str(error)
    if content and photo.content != content:
        return "its photo is another than the one that was stored; add it again"
    found = encoder.keypoints(photo, EncoderSettings.keypoints)
    assert found is not None  # of a limit above 0
    encoder.keypoints_read.put((hit.uri, content), found, found.nbytes)
    return found
