"""Bags of local convolutional features (Mohedano et al., ICMR 2016): words, tf-idf, cosine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin

from cwf_milvus.errors import SettingsError

WORDS = 25_000
FEATURES_PER_WORD = 10  # fewer, and most words are single features that nothing else matches
_BATCH = 4096


class FewerWordsWarning(UserWarning):
    """A codebook has fewer words than were asked for."""


class BagOfWords:
    """A codebook of local features, and tf-idf vectors over its words.

    Args:
        words: the size of the codebook.
        seed: of k-means.
    """

    def __init__(self, words: int = WORDS, *, seed: int = 0) -> None:
        self.words = words
        self.seed = seed

    def fit(self, cells: Sequence[np.ndarray]) -> BagOfWords:
        """Learn the codebook by mini-batch k-means; all-zero features do not count.

        Args:
            cells: the local features of each photo, of shape (n_i, K); used at unit length.

        Returns:
            self, with the codebook of shape (words, K) in `words_`; with fewer than 10 features a
            word it is made smaller, with a warning.

        Raises:
            SettingsError: too few features for any codebook.
        """
        features = np.concatenate([_unit(one) for one in cells])
        words = min(self.words, len(features) // FEATURES_PER_WORD)
        if words < 2:
            raise SettingsError(
                f"{len(features)} local features make no codebook: give at least "
                f"{2 * FEATURES_PER_WORD}, better {FEATURES_PER_WORD * self.words}"
            )
        if words < self.words:
            warnings.warn(
                f"codebook reduced from {self.words} to {words} words: there are {len(features)} "
                f"local features, {FEATURES_PER_WORD} are needed for each word",
                FewerWordsWarning,
                stacklevel=2,
            )
        means = MiniBatchKMeans(
            words,
            init="random",  # k-means++ takes words * features distances, which is hours
            n_init=1,
            batch_size=max(_BATCH, words // 4),
            max_iter=2,  # times over all features; 5 took minutes more and no mAP was better
            random_state=self.seed,
            reassignment_ratio=0.0,
        ).fit(features)
        self.words_ = means.cluster_centers_
        return self

    def counts(self, cells: Sequence[np.ndarray]) -> sparse.csr_matrix:
        """Return how often each photo has each word, of shape (len(cells), words)."""
        n_words = len(self.words_)
        features = [_unit(one) for one in cells]
        found = np.zeros(0, np.int64)
        if sum(map(len, features)):
            found = pairwise_distances_argmin(np.concatenate(features), self.words_)
        ends = np.cumsum([len(one) for one in features])
        parts = np.split(found, ends[:-1])
        rows = [sparse.csr_matrix(np.bincount(part, minlength=n_words)[None]) for part in parts]
        return sparse.vstack(rows, format="csr").astype(np.float64)


def tf_idf_scores(queries: sparse.csr_matrix, images: sparse.csr_matrix) -> np.ndarray:
    """Return the cosines of tf-idf vectors, by an inverted index.

    The weight of word w in a photo is its count times ``log(N / N_w)``, with N_w of the N images
    having it (Sivic and Zisserman, ICCV 2003); words that no image has weigh nothing.

    Args:
        queries: counts of shape (Q, words).
        images: counts of shape (N, words).

    Returns:
        Of shape (Q, N).
    """
    having = np.bincount(images.indices, minlength=images.shape[1])
    weights = np.log(images.shape[0] / np.maximum(having, 1)) * (having > 0)
    weighted = [_unit_rows(counts @ sparse.diags(weights)) for counts in (queries, images)]
    inverted = weighted[1].T.tocsr()  # a row a word: the images that have it
    return np.asarray((weighted[0] @ inverted).todense())


def _unit(cells: np.ndarray) -> np.ndarray:
    """Scale features to unit length, leaving out those that are all zero."""
    lengths = np.linalg.norm(cells, axis=1, keepdims=True)
    return (cells / np.maximum(lengths, 1e-12))[lengths[:, 0] > 0].astype(np.float32)


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ matrix
