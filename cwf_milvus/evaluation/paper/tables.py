"""The paper's tables and figures on any dataset, with its published figures beside ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.features import KEPT_CLASSES, read_field
from cwf_milvus.evaluation.metrics import Result
from cwf_milvus.evaluation.paper import methods
from cwf_milvus.evaluation.paper.published import DATASETS, SECONDS, in_words, published
from cwf_milvus.evaluation.runner import Evaluation, Inputs, evaluate, score_vectors
from cwf_milvus.method import aggregation, pooling
from cwf_milvus.method.whitening import Whitening
from cwf_milvus.search.choose import Expand, Rerank
from cwf_milvus.search.online import Online
from cwf_milvus.search.registry import CANDIDATES
from cwf_milvus.search.seen_again import Cam

TABLES = ("1a", "1b", "2a", "2b")
MAPS_TIMED = (1, 8, 32, 64)
RERANKED = 100
"""How many hits the paper's re-ranking sees in its table 2b, the first of its two settings."""

SWEEP = {"classes": (1, 4, 16, 64), "pca": (1, 8)}
_TIMED_PHOTOS = 12
_FEATURE_BYTES = 4 * 2**30  # every query shows many of the same photos again


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        method: what was measured.
        value: mAP, or seconds an image.
        dim: numbers in the vector of a photo, in words where there is more than one vector.
        published: the paper's own figures for it, in words; "" where it reports none.
        setting: of a sweep, its setting by name.
    """

    method: str
    value: float
    dim: str = ""
    published: str = ""
    setting: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Lines that belong together.

    Attributes:
        title: what they show.
        unit: of `Line.value`.
        lines: in the paper's order.
    """

    title: str
    unit: str
    lines: list[Line]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return {
            "title": self.title,
            "unit": self.unit,
            "lines": [{**vars(line), "setting": dict(line.setting)} for line in self.lines],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text, its head first."""
        of_paper = f"the papers' ({', '.join(DATASETS)})" if self.unit == "mAP" else "the paper's"
        columns = ["method", "dim", self.unit, of_paper]
        rows = [(line.method, line.dim, f"{line.value:.3f}", line.published) for line in self.lines]
        used = [i for i in range(4) if i in (0, 2) or any(row[i] for row in rows)]
        return [tuple(row[i] for i in used) for row in [tuple(columns), *rows]]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *lines])

    def to_markdown(self) -> str:
        """Return the table as Markdown, under its title."""
        head, *rows = self.rows()
        lines = [_piped(head), _piped(["---"] * len(head)), *map(_piped, rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


class Measure:
    """Scores vectors of one dataset and network, by Milvus or exactly, as lines.

    Args:
        inputs: the dataset as the network sees it.
        backbone: the network's name, for the published figures.
        exact: as in `score_vectors`.
        uri: as in `score_vectors`.
        token: as in `score_vectors`.
    """

    def __init__(
        self,
        inputs: Inputs,
        backbone: str,
        *,
        exact: bool = False,
        uri: str | None = None,
        token: str | None = None,
    ) -> None:
        self.inputs = inputs
        self.backbone = backbone
        self._where: dict[str, Any] = {"exact": exact, "uri": uri, "token": token}

    def vectors(
        self,
        method: str,
        queries: np.ndarray,
        images: np.ndarray,
        setting: Mapping[str, int] | None = None,
    ) -> Line:
        """Measure one vector a photo."""
        result = score_vectors(self.inputs.dataset, queries, images, **self._where)
        return self.line(method, result, str(images.shape[1]), setting)

    def searched(
        self,
        encoder: Encoder,
        *,
        rerank: Rerank = None,
        expand: Expand = None,
        candidates: int = CANDIDATES,
    ) -> Evaluation:
        """Measure a search with stages, as `runner.evaluate` does."""
        return evaluate(
            self.inputs,
            encoder,
            rerank=rerank,
            expand=expand,
            candidates=candidates,
            **self._where,
        )

    def line(
        self, method: str, result: Result, dim: str, setting: Mapping[str, int] | None = None
    ) -> Line:
        """Return a result as a line with the published figures."""
        figures = in_words(published(method, self.backbone))
        return Line(method, result.mean_ap, dim, figures, setting or {})

    def pooled(self, method: str, name: str, whitening: Whitening | None = None) -> Line:
        """Measure a pooling that `methods.POOLED` names, under a method's name."""
        queries, images = (
            methods.pooled(places, methods.POOLED[name], whitening)
            for places in (self.inputs.queries, self.inputs.images)
        )
        return self.vectors(method, queries, images)

    def offline(
        self, method: str, n: int, whitening: Whitening, setting: Mapping[str, int] | None = None
    ) -> Line:
        """Measure the offline aggregation of n classes."""
        queries, images = (
            methods.offline_descriptors(places, n, whitening)
            for places in (self.inputs.queries, self.inputs.images)
        )
        return self.vectors(method, queries, images, setting)


def table_1a(measures: Sequence[Measure], pca: int = 8) -> Table:
    """Raw sums, CroW, PCA, and each network raw and with 64 class maps.

    Args:
        measures: one a network; the first gives the lines of its poolings.
        pca: class vectors a photo that whitenings are fitted on.
    """
    first = measures[0]
    lines = []
    for name in ("Raw", "CroW"):
        label = "Raw" if name == "Raw" else "Raw + CroW"
        whitening = methods.fit_pooled(first.inputs, methods.POOLED[name])
        lines += [
            first.pooled(label, name),
            first.pooled(f"{label} + PCA", name, whitening),
        ]
    for measure in measures:
        whitening = methods.fit_classes(measure.inputs, pca)
        prefix = "" if measure is first else f"{measure.backbone} "
        if prefix:
            lines.append(measure.pooled(f"{prefix}raw", "Raw"))
        lines.append(measure.offline(f"{prefix}OfA {KEPT_CLASSES}", KEPT_CLASSES, whitening))
    title = f"Table 1a: {', '.join(m.backbone for m in measures)} on {_name(first)}"
    return Table(title, "mAP", lines)


def table_1b(encoder: Encoder, photos: Sequence[object]) -> Table:
    """Seconds an image, from file to descriptor, by number of class maps; photos one by one."""
    chosen = list(photos[:_TIMED_PHOTOS])
    whitening = encoder.whitenings.classes if encoder.whitenings is not None else None

    @torch.no_grad()
    def raw(image: object) -> None:
        prepared = encoder.prepare(encoder.read(image))
        vector = pooling.raw_sum(encoder.backbone.features_only(encoder.views([prepared])))
        if whitening is not None:
            whitening.transform(vector)

    @torch.no_grad()
    def maps(n: int, image: object) -> None:
        prepared = encoder.prepare(encoder.read(image))
        features, _, _, class_maps = encoder.class_maps([prepared])
        vectors = pooling.class_vectors(features, class_maps[:, :n])
        aggregation.offline(vectors if whitening is None else whitening.transform(vectors))

    cases: dict[str, Callable[[object], None]] = {"Raw + PCA": raw}
    cases |= {f"{n}": partial(maps, n) for n in MAPS_TIMED}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case(chosen[0])  # the first pass warms up
    for image in chosen:  # in turn, so that a machine that slows down slows all
        for name, case in cases.items():
            started = time.perf_counter()
            case(image)
            seconds[name].append(time.perf_counter() - started)
    lines = [
        Line(
            name if name == "Raw + PCA" else f"{name} class maps",
            statistics.median(measured),
            published=f"{SECONDS[name]}",
        )
        for name, measured in seconds.items()
    ]
    title = f"Table 1b: {encoder.settings.backbone} on {encoder.device.type}"
    return Table(title, "seconds an image", lines)


def table_2a(measure: Measure, pca: int = 8, *, bow_words: int | None = None) -> Table:
    """Every baseline, with and without PCA-whitening, and the paper's two aggregations.

    Args:
        measure: the dataset and network.
        pca: class vectors a photo that the classes' whitening is fitted on.
        bow_words: size of the codebook of the bag of words; None to leave it out.
    """
    inputs = measure.inputs
    lines = []
    for name, field_name in methods.POOLED.items():
        if name == "uCroW":  # the raw sum by another name
            continue
        label = "Raw, uCroW" if name == "Raw" else name
        whitening = methods.fit_pooled(inputs, field_name)
        lines += [
            measure.pooled(f"{label}, not whitened", name),
            measure.pooled("uCroW" if name == "Raw" else name, name, whitening),
        ]
    for whiten in (False, True):
        after = "" if whiten else ", not whitened"
        if bow_words:
            scores, words = methods.bow_scores(inputs, whiten=whiten, words=bow_words)
            found = methods.score(inputs, scores)
            lines.append(measure.line(f"BoW{after}", found, f"{words} words"))
        found = methods.score(inputs, methods.razavian_scores(inputs, whiten=whiten))
        crops = read_field(inputs.images[:1], "crops")[0]
        dim = methods.DIM if whiten else crops.shape[1]
        lines.append(measure.line(f"Razavian{after}", found, f"{len(crops)} x {dim}"))
    whitening = methods.fit_classes(inputs, pca)
    lines.append(measure.offline(f"OfA {KEPT_CLASSES}", KEPT_CLASSES, whitening))
    online = methods.score(inputs, methods.online_scores(inputs, KEPT_CLASSES, whitening))
    dim = f"{KEPT_CLASSES} x {len(whitening.components_)}"
    lines.append(measure.line(f"OnA {KEPT_CLASSES}", online, dim))
    return Table(f"Table 2a: {measure.backbone} on {_name(measure)}", "mAP", lines)


def table_2b(
    measure: Measure, more: Iterable[Line] = (), pca: int = 8, *, encoder: Encoder | None = None
) -> Table:
    """The paper's aggregations with query expansion, and with its re-ranking.

    Args:
        measure: the dataset and network.
        more: further lines.
        pca: as in `table_2a`.
        encoder: of the network, which re-ranking shows the candidates again; None to leave the
            lines with R out.
    """
    inputs, n = measure.inputs, KEPT_CLASSES
    whitening = methods.fit_classes(inputs, pca)
    queries, images = (
        methods.offline_descriptors(places, n, whitening)
        for places in (inputs.queries, inputs.images)
    )
    online = methods.online_scores(inputs, n, whitening)
    lines = [
        measure.vectors(f"OfA {n}", queries, images),
        measure.line(f"OnA {n}", methods.score(inputs, online), ""),
    ]
    for hits in (3, 10):
        grown = methods.expanded(queries, images, hits)
        lines.append(measure.vectors(f"OfA {n} + QE {hits}", grown, images))
        grown = methods.expanded(queries, images, hits, online)
        lines.append(measure.vectors(f"OnA {n} + QE {hits}", grown, images))
    if encoder is not None:
        lines += _with_regions(measure, methods.paper_encoder(encoder, inputs, pca))
    title = f"Table 2b: {measure.backbone} on {_name(measure)}"
    return Table(title, "mAP", [*lines, *more])


def _with_regions(measure: Measure, encoder: Encoder) -> list[Line]:
    """Measure the paper's re-ranking of the top 100, alone and with query expansion."""
    encoder.seen.batches.most_bytes = _FEATURE_BYTES
    lines = []
    for name, first in (("OfA", []), ("OnA", [Online(KEPT_CLASSES)])):
        top = methods.OnTop(Cam(), RERANKED)
        for hits in (None, 3, 10):
            found = measure.searched(
                encoder,
                rerank=[*first, top],
                expand=None if hits is None else ("qe", hits),
                candidates=len(measure.inputs.images),
            )
            label = f"{name} {KEPT_CLASSES} + R {RERANKED}"
            if hits is not None:
                label += f" + QE {hits}"
            lines.append(measure.line(label, found.result, str(encoder.dim)))
    return lines


def sweep(
    measure: Measure, classes: Sequence[int], pca: Sequence[int], dim: int = methods.DIM
) -> Table:
    """mAP of the offline aggregation by number of classes and of classes fitted on (Fig. 4).

    Raises:
        SettingsError: more classes than are kept of a photo.
    """
    kept = len(read_field(measure.inputs.images[:1], "class_ids")[0])
    for name, values in (("classes", classes), ("pca", pca)):
        if not values or min(values) < 1 or max(values) > kept:
            raise SettingsError(
                f"{name}={','.join(map(str, values))}: give numbers from 1 to {kept}"
            )
    lines = []
    for fitted_on in pca:
        whitening = methods.fit_classes(measure.inputs, fitted_on, dim)
        for n in classes:
            setting = {"classes": n, "pca": fitted_on}
            label = f"{n} classes, whitening from {fitted_on} a photo"
            lines.append(measure.offline(label, n, whitening, setting=setting))
    return Table(f"Sweep: {measure.backbone} on {_name(measure)}", "mAP", lines)


def _name(measure: Measure) -> str:
    return measure.inputs.dataset.name


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
