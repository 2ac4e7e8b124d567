"""Print docs/keypoints.md's table: what each setting of keypoints and verification gains.

    python benchmarks/spatial.py --data DIR [--cache DIR] [--only WORD]

DIR holds objects_dev (with boxes.json) and landmarks_dev. Queries are whole photos, ranked by
squared late interaction of the 200 nearest by descriptor, then the first 30, 60 and 100 verified.
Features are kept in the cache, as `cwf-milvus evaluate` keeps them. One setting is changed at a
time; --only prints the lines whose label has the word.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from cwf_milvus import Encoder, load_image
from cwf_milvus.encode import keypoints as extraction
from cwf_milvus.evaluation.datasets.names import load_dataset
from cwf_milvus.evaluation.features import FeatureStore, encodings
from cwf_milvus.evaluation.metrics import evaluate_rankings
from cwf_milvus.evaluation.runner import ask_whole, gather
from cwf_milvus.method import spatial
from cwf_milvus.method.keypoint_codes import Keypoints, pack_keypoints, unpack_keypoints

SETS = ("objects_dev", "landmarks_dev")
CANDIDATES = 200
DEPTHS = (30, 60, 100)
QUERY_LIMIT = 1000


@dataclass(frozen=True)
class Line:
    """One line of the table: what differs from the default."""

    label: str
    stored: int = 800
    view: int = extraction.VIEW
    contrast: float = extraction.CONTRAST
    packed: bool = True
    settings: Mapping[str, object] | None = None


def by_opencv(fit: Callable[..., tuple[np.ndarray | None, np.ndarray]], method: int) -> Callable:
    """Return OpenCV's robust estimation in place of `spatial._affine`; first-order at the centre
    of the matches where it is a homography's."""

    def estimated(near: Keypoints, far: Keypoints) -> spatial._Map | None:
        cv2.setRNGSeed(0)
        tolerance = spatial.TOLERANCE * max(far.width, far.height)
        matrix, mask = fit(near.positions, far.positions, method, tolerance)
        if matrix is None or mask.sum() < spatial.MIN_INLIERS:
            return None
        inside = mask.ravel().astype(bool)
        if len(matrix) == 3:
            x, y = near.positions[inside].mean(axis=0)
            u, v, w = matrix @ (x, y, 1)
            linear = (matrix[:2, :2] - np.outer((u, v), matrix[2, :2]) / w) / w
            matrix = np.column_stack([linear, (u / w, v / w) - linear @ (x, y)])
        if not 0.02 < np.linalg.det(matrix[:, :2]) < 50:
            return None
        return spatial._Map(
            matrix, near.positions[inside], far.positions[inside], far.width, far.height
        )

    return estimated


def affine(near: np.ndarray, far: np.ndarray, method: int, tolerance: float):
    return cv2.estimateAffine2D(
        near, far, method=method, ransacReprojThreshold=tolerance, confidence=0.99
    )


LINES = (
    Line("default"),
    *(Line(f"{n} stored", stored=n) for n in (500, 600, 1000, 1500)),
    *(Line(f"view {view} px", view=view) for view in (400, 512, 800, 1024)),
    *(Line(f"contrast {value}", contrast=value) for value in (0.01, 0.04, 0.06)),
    Line("1000 stored, in float32", stored=1000, packed=False),
    Line("800 stored, in float32", packed=False),
    *(Line(f"ratio {value}", settings={"RATIO": value}) for value in (0.8, 0.85, 0.88, 0.92)),
    *(Line(f"tolerance {value}", settings={"TOLERANCE": value}) for value in (0.01, 0.02, 0.03)),
    *(Line(f"freedom {value}", settings={"_FREEDOM": value}) for value in (0.1, 1.0, 10.0)),
    *(Line(f"rounded {value}", settings={"_ROUNDED": value}) for value in (1.0, 1.25, 2.0)),
    Line("affine, RANSAC", settings={"_affine": by_opencv(affine, cv2.RANSAC)}),
    Line("affine, MAGSAC", settings={"_affine": by_opencv(affine, cv2.USAC_MAGSAC)}),
    Line("homography, RANSAC", settings={"_affine": by_opencv(cv2.findHomography, cv2.RANSAC)}),
    Line(
        "homography, MAGSAC",
        settings={"_affine": by_opencv(cv2.findHomography, cv2.USAC_MAGSAC)},
    ),
)


@contextmanager
def changed(module: object, settings: Mapping[str, object]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class Photos:
    """The photos of one set: their keypoints, and each query's hits by squared late interaction."""

    def __init__(self, folder: Path, encoder: Encoder, cache_folder: str) -> None:
        inputs = gather(ask_whole(load_dataset(folder)), FeatureStore(encoder, cache_folder))
        self.folder = folder
        self.dataset = inputs.dataset
        path = lambda name: str(self.dataset.path(name))  # noqa: E731
        stored = encodings(encoder, [path(name) for name in self.dataset.images], inputs.images)
        asked = encodings(
            encoder, [path(query.image) for query in self.dataset.queries], inputs.queries
        )
        descriptors = np.stack([one.descriptor for one in stored])
        self.hits: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        for query in asked:
            near = np.argsort(-(descriptors @ query.descriptor), kind="stable")[:CANDIDATES]
            cosines = [
                (query.region_vectors @ stored[i].region_vectors.T).max(axis=1) for i in near
            ]
            scores = (np.maximum(0, cosines) ** 2).mean(axis=1)
            order = np.argsort(-scores, kind="stable")
            self.hits.append(near[order])
            self.scores.append(scores[order])

    @cache  # noqa: B019
    def keypoints(
        self, view: int, contrast: float, limit: int
    ) -> tuple[dict[str, Keypoints], float]:
        """Return those of every photo, and milliseconds a photo, of SIFT without decoding."""
        seconds, found = 0.0, {}
        names = {*self.dataset.images, *(query.image for query in self.dataset.queries)}
        with changed(extraction, {"VIEW": view, "CONTRAST": contrast}):
            for name in sorted(names):
                image = load_image(self.dataset.path(name))
                start = time.perf_counter()
                found[name] = extraction.extract_keypoints(
                    image.pixels, image.width, image.height, limit
                )
                seconds += time.perf_counter() - start
        return found, 1000 * seconds / len(found)


def measured(photos: Photos, line: Line) -> tuple[str, float, float]:
    """Return mAP by depth and the shares of right and wrong pairs, then ms a photo and a pair."""
    asked, per_photo = photos.keypoints(line.view, line.contrast, max(QUERY_LIMIT, line.stored))
    stored = as_stored(asked, line)
    seconds = 0.0
    shares: dict[bool, list[int]] = {True: [], False: []}
    inliers = []
    for query, hits in zip(photos.dataset.queries, photos.hits, strict=True):
        names = [photos.dataset.images[i] for i in hits[: max(DEPTHS)]]
        start = time.perf_counter()
        found = spatial.verify_hits(asked[query.image], [stored[name] for name in names])
        seconds += time.perf_counter() - start
        inliers.append(np.array([one.inliers if one else 0 for one in found]))
        for name, n in zip(names, inliers[-1].tolist(), strict=True):
            if name != query.image and name not in query.junk:
                shares[name in query.positives].append(n)
    maps = []
    for depth in DEPTHS:
        rankings = []
        for hits, scores, agreed in zip(photos.hits, photos.scores, inliers, strict=True):
            final = scores.copy()
            final[:depth] = spatial.spatial_score(scores[:depth], agreed[:depth])
            rankings.append(hits[np.argsort(-final, kind="stable")].tolist())
        maps.append(evaluate_rankings(photos.dataset, rankings).mean_ap)
    right, wrong = (np.array(shares[kind]) for kind in (True, False))
    figures = " / ".join(f"{value:.3f}".lstrip("0") for value in maps)
    parts = f"{figures} | {np.mean(right >= 8):.3f} / {np.mean(wrong >= 8):.4f}"
    return parts, per_photo, 1000 * seconds / sum(map(len, inliers))


def as_stored(keypoints: Mapping[str, Keypoints], line: Line) -> dict[str, Keypoints]:
    kept = {name: one[: line.stored] for name, one in keypoints.items()}
    if not line.packed:
        return kept
    return {name: unpack_keypoints(pack_keypoints(one)) for name, one in kept.items()}


def boxes(photos: Photos, line: Line) -> str:
    """Return the share of pairs of boxes.json that are verified, and mean IoU over these."""
    drawn = json.loads((photos.folder / "boxes.json").read_text())
    asked, _ = photos.keypoints(line.view, line.contrast, max(QUERY_LIMIT, line.stored))
    stored = as_stored(asked, line)
    overlaps: list[float | None] = []
    for one in drawn:
        for other in drawn:
            if one["group"] == other["group"] and one["image"] != other["image"]:
                found = spatial.verify(
                    asked[one["image"]], stored[other["image"]], tuple(map(float, one["box"]))
                )
                overlaps.append(iou(found.box, other["box"]) if found else None)
    found = np.array([overlap for overlap in overlaps if overlap is not None])
    if not len(found):
        return "none"
    return f"{len(found) / len(overlaps):.3f}, {found.mean():.3f}, {np.mean(found > 0.5):.3f}"


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="the folder with the data sets")
    parser.add_argument("--cache", default="~/.cache/cwf-milvus", help="features")
    parser.add_argument("--only", default="", help="lines whose label has this word")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sets = [Photos(options.data / name, Encoder(), options.cache) for name in SETS]
    heads = [head for name in SETS for head in (f"`{name}`, first {DEPTHS}", "right / wrong >= 8")]
    print(f"| | {' | '.join(heads)} | boxes: verified, IoU, above .5 | ms a photo, a pair |")
    print("|---|" + "---|" * (len(heads) + 2))
    for line in LINES:
        if options.only not in line.label:
            continue
        with changed(spatial, line.settings or {}):
            columns = [measured(photos, line) for photos in sets]
            framed = boxes(sets[0], line)
        figures = " | ".join(column[0] for column in columns)
        per_photo, per_pair = np.mean([column[1:] for column in columns], axis=0)
        print(
            f"| {line.label} | {figures} | {framed} | {per_photo:.0f}, {per_pair:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
