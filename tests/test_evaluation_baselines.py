"""Bags of words and spatial search against references in float64, and the published figures."""

import math

import numpy as np
import pytest
from scipy import sparse

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.paper.bow import BagOfWords, FewerWordsWarning, tf_idf_scores
from cwf_milvus.evaluation.paper.published import DATASETS, FIGURES, in_words, published
from cwf_milvus.evaluation.paper.razavian import spatial_search


def clusters(n: int, seed: int) -> np.ndarray:
    """Features around the eight axes of a space, in turn, each of another length."""
    rng = np.random.default_rng(seed)
    features = np.eye(8)[np.arange(n) % 8] + rng.normal(0, 0.02, (n, 8))
    return (features * rng.uniform(0.5, 5, (n, 1))).astype(np.float32)


def test_tf_idf_scores_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    queries, images = rng.integers(0, 4, (3, 12)), rng.integers(0, 3, (5, 12))
    images[:, 4] = 0  # a word that no image has
    images[:, 5] = 1  # a word that all have, and that so tells nothing
    queries[2] = 0
    expected = np.zeros((3, 5))
    having = [sum(image[w] > 0 for image in images) for w in range(12)]
    weights = [math.log(5 / n) if n else 0.0 for n in having]
    for q, query in enumerate(queries):
        for i, image in enumerate(images):
            a = [float(query[w]) * weights[w] for w in range(12)]
            b = [float(image[w]) * weights[w] for w in range(12)]
            lengths = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
            if lengths:
                expected[q, i] = math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths
    found = tf_idf_scores(
        sparse.csr_matrix(queries.astype(float)), sparse.csr_matrix(images.astype(float))
    )
    assert expected[:2].any(axis=1).all()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_word_is_the_nearest_mean_of_the_features_directions():
    bags = BagOfWords(8, seed=3)
    counts = bags.fit([clusters(200, 0), clusters(40, 1)]).counts([clusters(200, 0)]).toarray()
    means = bags.words_.astype(np.float64)
    expected = np.zeros(8)
    for feature in clusters(200, 0).astype(np.float64):
        direction = feature / np.linalg.norm(feature)
        expected[np.argmin([np.linalg.norm(direction - mean) for mean in means])] += 1
    np.testing.assert_array_equal(counts[0], expected)


def test_features_that_are_all_zero_are_no_words():
    bags = BagOfWords(4).fit([clusters(80, 0)])
    with_zeros = np.concatenate([clusters(16, 1), np.zeros((9, 8), np.float32)])
    assert bags.counts([with_zeros]).sum() == 16
    assert bags.counts([np.zeros((9, 8), np.float32)]).sum() == 0


def test_a_codebook_of_too_few_features_is_made_smaller_and_says_so():
    with pytest.warns(FewerWordsWarning, match=r"from 25000 to 20 words.* 200 local features"):
        bags = BagOfWords().fit([clusters(200, 0)])
    assert len(bags.words_) == 20
    with pytest.raises(SettingsError, match="19 local features make no codebook"):
        BagOfWords().fit([clusters(19, 0)])


def test_spatial_search_averages_the_least_distance_of_each_crop():
    rng = np.random.default_rng(0)

    def crops(n: int) -> np.ndarray:
        vectors = rng.normal(size=(n, 6))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    query, images = crops(3), [crops(2), crops(5), crops(1)]
    images[1][2] = query[1]
    expected = [
        -math.fsum(min(math.dist(q, crop) for crop in image) for q in query) / 3 for image in images
    ]
    np.testing.assert_allclose(spatial_search(query, images), expected, atol=1e-7)


def test_published_figures_stand_beside_the_network_that_they_are_of():
    assert published("OfA 64") == (0.712, 0.805, 0.672, 0.733)
    assert published("OfA 64", "resnet50") == (0.699, 0.804)
    assert published("CroW, not whitened") == ()
    assert in_words(published("OnA 64")) == ".736 / .855"
    assert all(0 < len(figures) <= len(DATASETS) for figures in FIGURES.values())
