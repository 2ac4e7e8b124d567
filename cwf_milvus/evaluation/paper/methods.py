"""Each method of the paper's tables, from kept features to the score of every query and image."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.checks import checked_count
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import KINDS, Kind
from cwf_milvus.encode.whitenings import Whitenings, fit_conditions
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.features import KEPT_CLASSES, read_field
from cwf_milvus.evaluation.metrics import Result, evaluate_rankings
from cwf_milvus.evaluation.paper.bow import WORDS, BagOfWords, tf_idf_scores
from cwf_milvus.evaluation.paper.razavian import QUERY_CROPS, spatial_search
from cwf_milvus.evaluation.runner import Inputs
from cwf_milvus.method import aggregation
from cwf_milvus.method.expansion import query_expand
from cwf_milvus.method.whitening import Whitening
from cwf_milvus.search.stage import Context, Stage

DIM = 512  # of every whitening in the paper
_IMAGES_AT_ONCE = 256
_CODEBOOK = 1  # changes with how codebooks are made

POOLED = {
    "Raw": "raw",
    "SPoC": "spoc",
    "uCroW": "raw",
    "CroW": "crow",
    "MAC": "mac",
    "R-MAC": "rmac",
    "GeM": "gem",
}
"""The single-vector baselines, and the field of `FeatureStore` that each comes from."""


def pooled(places: Sequence[Path], field: str, whitening: Whitening | None = None) -> np.ndarray:
    """Return a baseline's vectors of shape (n, K) or, whitened, (n, d).

    R-MAC whitens its regions and sums them, as its paper does; the others whiten their one vector.
    """
    if field != "rmac":
        vectors = np.stack(read_field(places, field))
        return vectors if whitening is None else whitening.transform(vectors)
    sums = [
        (regions if whitening is None else whitening.transform(regions)).sum(axis=0)
        for regions in read_field(places, field)
    ]
    return _unit(np.stack(sums))


def fit_pooled(inputs: Inputs, field: str, dim: int = DIM) -> Whitening:
    """Fit a whitening on a field of the photos given for it.

    With fewer than 4 vectors a dimension, d becomes smaller, with a `ReducedDimensionWarning`.

    Raises:
        SettingsError: no photos were given for it.
    """
    return _fitted(_to_fit(inputs, field), dim)


def fit_classes(inputs: Inputs, n_classes: int, dim: int = DIM, power: float = 0.5) -> Whitening:
    """Fit the whitening of class vectors on the top classes of the photos given for it.

    Args:
        inputs: whose `fit` photos count.
        n_classes: the paper's N_pca, the class vectors that each photo gives.
        dim: d.
        power: of the eigenvalues; the paper's is 0.5.

    Raises:
        SettingsError: no photos were given for it.
    """
    vectors = (of_photo[:n_classes] for of_photo in _to_fit(inputs, "class_vectors"))
    return _fitted(vectors, dim, power)


def fit_encoder(encoder: Encoder, inputs: Inputs) -> Encoder:
    """Return the encoder with whitenings fitted as `Encoder.fit` does, from kept features.

    Raises:
        SettingsError: no photos were given for it.
    """
    n = encoder.settings.n_fit_classes
    dim = min(encoder.settings.dim, encoder.backbone.n_features)
    of_classes = fit_classes(inputs, n, dim)
    of_regions = fit_pooled(inputs, "region_vectors", dim)
    least = min(len(of_classes.components_), len(of_regions.components_))
    fitted = copy.copy(encoder)  # the same network
    fitted.settings = replace(encoder.settings, dim=least)
    fitted.whitenings = Whitenings(
        of_classes,
        of_regions,
        f"fitted on {len(inputs.fit)} photos",
        fit_conditions(encoder.settings),
    ).used_at(fitted.settings)
    return fitted


def paper_encoder(encoder: Encoder, inputs: Inputs, n_fit_classes: int) -> Encoder:
    """Return the encoder as the paper's: the sum of 64 classes, whitened to 512 dimensions.

    Args:
        encoder: whose network it has.
        inputs: whose `fit` photos count.
        n_fit_classes: the paper's N_pca.

    Raises:
        SettingsError: no photos were given for it.
    """
    papers = copy.copy(encoder)  # the same network
    papers.settings = replace(
        encoder.settings,
        descriptor="classes",
        n_classes=KEPT_CLASSES,
        n_pooled=KEPT_CLASSES,
        n_fit_classes=n_fit_classes,
        dim=DIM,
        class_whiten_power=0.5,
    )
    return fit_encoder(papers, inputs)


class OnTop(Stage):
    """A stage on the first few hits alone; the others follow in the order that they had.

    What it made of a query's hits it remembers, so that settings which differ in what follows
    share it.

    Args:
        stage: what to run.
        hits: on how many, such as the paper's R.
    """

    def __init__(self, stage: Stage, hits: int) -> None:
        self.stage = stage
        self.hits = checked_count("hits", hits)
        self.name = stage.name
        self._made: dict[object, list[Hit]] = {}

    @property
    def needed(self) -> tuple[Kind, ...]:
        """What the stage needs, and descriptors, which it may change for those that follow."""
        return tuple({*self.stage.needed, "descriptor"})

    def __call__(self, query: Query, hits: Sequence[Hit], context: Context) -> list[Hit]:
        """Return the hits, the first few as the stage leaves them."""
        top = hits[: self.hits]
        key = (query.name, query.box, tuple((hit.uri, hit.score) for hit in top))
        if key not in self._made:
            self._made[key] = self.stage(query, top, replace(context, wanted=frozenset(KINDS)))
        return [*self._made[key], *hits[self.hits :]]


@torch.no_grad()
def offline_descriptors(places: Sequence[Path], n_classes: int, whitening: Whitening) -> np.ndarray:
    """Return the paper's offline aggregation (OfA) of the top n classes, of shape (n, d)."""
    return np.concatenate(
        [
            aggregation.offline(whitening.transform(vectors[:, :n_classes])).numpy()
            for vectors, _ in _class_vectors(places)
        ]
    )


@torch.no_grad()
def online_scores(inputs: Inputs, n_classes: int, whitening: Whitening) -> np.ndarray:
    """Return the paper's online aggregation (OnA): images described by the query's classes.

    From the 64 class vectors that are kept of an image: the query's classes that it lacks are
    left out, and an image with none keeps its offline descriptor.

    Returns:
        Cosines of shape (Q, N).
    """
    queries = torch.from_numpy(offline_descriptors(inputs.queries, n_classes, whitening))
    asked = [torch.from_numpy(ids[:n_classes]) for ids in read_field(inputs.queries, "class_ids")]
    columns = []
    for vectors, ids in _class_vectors(inputs.images):
        whitened = whitening.transform(vectors)
        fallback = aggregation.offline(whitened[:, :n_classes])
        columns.append(
            np.stack(
                [
                    (aggregation.online(whitened, ids, own, fallback) @ query).numpy()
                    for own, query in zip(asked, queries, strict=True)
                ]
            )
        )
    return np.concatenate(columns, axis=1)


def expanded(
    queries: np.ndarray, images: np.ndarray, n: int, scores: np.ndarray | None = None
) -> np.ndarray:
    """Return queries expanded by their top n images (plain QE), of shape (Q, d).

    Args:
        queries: of shape (Q, d).
        images: of shape (N, d).
        n: how many.
        scores: of shape (Q, N), where the first ranking is another than that of the vectors.
    """
    first = queries @ images.T if scores is None else scores
    order = np.argsort(-first, axis=1, kind="stable")[:, :n]
    return np.stack([query_expand(images[top]) for top in order])


def bow_scores(inputs: Inputs, *, whiten: bool, words: int = WORDS) -> tuple[np.ndarray, int]:
    """Return the cosines of bags of words (`bow`), of shape (Q, N), and the size of the codebook.

    Needs kept cells.

    Args:
        inputs: the codebook comes from its `fit` photos.
        whiten: PCA-whiten the local features first.
        words: the size of the codebook, which is made smaller where there are few features.
    """
    turn: Callable[[np.ndarray], np.ndarray] = np.asarray
    if whiten:
        turn = fit_pooled(inputs, "cells").transform
    bags = BagOfWords(words)
    what = [_CODEBOOK, whiten, words, bags.seed, *(place.stem for place in inputs.fit)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    name = f"words-{key}"
    kept = inputs.store.read(name)  # every dataset has the same one
    if kept is None:
        bags.fit([turn(cells) for cells in _to_fit(inputs, "cells")])
        inputs.store.write(name, bags.words_)
    else:
        bags.words_ = kept
    counts = {
        place: bags.counts([turn(cells) for cells in read_field([place], "cells")])
        for place in dict.fromkeys([*inputs.images, *inputs.queries])  # often the same photos
    }
    queries, images = (
        sparse.vstack([counts[place] for place in places], format="csr")
        for places in (inputs.queries, inputs.images)
    )
    return tf_idf_scores(queries, images), len(bags.words_)


def razavian_scores(inputs: Inputs, *, whiten: bool) -> np.ndarray:
    """Return the scores of Razavian's spatial search, of shape (Q, N)."""
    turn: Callable[[np.ndarray], np.ndarray] = np.asarray
    if whiten:
        turn = fit_pooled(inputs, "crops").transform
    images = [turn(crops) for crops in read_field(inputs.images, "crops")]
    return np.stack(
        [
            spatial_search(turn(crops[:QUERY_CROPS]), images)
            for crops in read_field(inputs.queries, "crops")
        ]
    )


def score(inputs: Inputs, scores: np.ndarray) -> Result:
    """Return how the images, ranked by scores of shape (Q, N), answer the queries."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return evaluate_rankings(inputs.dataset, list(order))


def _class_vectors(places: Sequence[Path]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield class vectors (B, N, K) and their ids (B, N), some photos at once."""
    for start in range(0, len(places), _IMAGES_AT_ONCE):
        part = places[start : start + _IMAGES_AT_ONCE]
        yield (
            torch.from_numpy(np.stack(read_field(part, "class_vectors"))),
            torch.from_numpy(np.stack(read_field(part, "class_ids"))),
        )


def _to_fit(inputs: Inputs, field: str) -> Iterator[np.ndarray]:
    if not inputs.fit:
        raise SettingsError(
            "a whitening has to be fitted, on other photos than those searched: name a folder of "
            "them with --whiten-from"
        )
    for place in inputs.fit:
        yield read_field([place], field)[0]


def _fitted(vectors: Iterable[np.ndarray], dim: int, power: float = 0.5) -> Whitening:
    """Fit on vectors of photos, each of shape (K,) or (n, K), in few large pieces."""
    whitening, waiting = Whitening(dim, power=power), []
    for of_photo in vectors:
        waiting.append(np.atleast_2d(of_photo))
        if len(waiting) == _IMAGES_AT_ONCE:
            whitening.partial_fit(np.concatenate(waiting))
            waiting = []
    if waiting:
        whitening.partial_fit(np.concatenate(waiting))
    whitening.dim = min(dim, whitening.n_features_in_)
    return whitening


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
