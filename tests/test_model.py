"""The conventions of pymilvus-model, on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from operator_photos import fitted
from small_encoders import CHELSEA, COFFEE, ROCKET

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.model import ClassWeightedEmbeddingFunction, InstanceRerankFunction, RerankResult

BOX = (90, 5, 355, 275)  # the cat's head


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(descriptor="both").save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embed(saved: Path) -> ClassWeightedEmbeddingFunction:
    return ClassWeightedEmbeddingFunction(str(saved), batch_size=2, device="cpu")


def test_documents_become_the_encoders_descriptors(
    embed: ClassWeightedEmbeddingFunction, saved: Path
) -> None:
    vectors = embed.encode_documents([CHELSEA, COFFEE, ROCKET])
    expected = Encoder.load(saved, batch_size=2).encode([CHELSEA, COFFEE, ROCKET])
    assert isinstance(vectors, list)
    assert [vector.shape for vector in vectors] == [(embed.dim,)] * 3
    assert all(vector.dtype == np.float32 for vector in vectors)
    for vector, encoding in zip(vectors, expected, strict=True):
        assert np.abs(vector - encoding.descriptor).max() < 1e-6
    assert (np.stack(embed([CHELSEA, COFFEE, ROCKET])) == np.stack(vectors)).all()


def test_queries_may_have_a_box_each(embed: ClassWeightedEmbeddingFunction) -> None:
    boxed, whole = embed.encode_queries([(CHELSEA, BOX), CHELSEA])
    assert np.abs(whole - embed.encode_documents([CHELSEA])[0]).max() < 1e-6
    expected = embed.encoder.encode_query(CHELSEA, BOX).descriptor
    assert np.abs(boxed - expected).max() < 1e-6
    assert np.abs(boxed - whole).max() > 1e-3


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(SettingsError, match="normalize_embeddings"):
        ClassWeightedEmbeddingFunction(normalize_embeddings=False)


def test_settings_of_the_encoder_can_be_given() -> None:
    embed = ClassWeightedEmbeddingFunction(
        "timm:test_resnet", weights="random", whitening=None, image_size=96, descriptor="classes"
    )
    assert embed.encoder.settings.image_size == 96
    assert embed.encode_documents([ROCKET])[0].shape == (96,)


@pytest.mark.parametrize("method", ["regions", "classes"])
def test_reranking_puts_the_photo_with_the_thing_first(saved: Path, method: str) -> None:
    rerank = InstanceRerankFunction(str(saved), method=method)
    results = rerank(CHELSEA, [COFFEE, ROCKET, CHELSEA[20:, 30:], COFFEE], top_k=3, box=BOX)
    assert results[0].index == 2
    assert len(results) == 3
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert results[0].to_dict() == {"text": results[0].text, "score": scores[0], "index": 2}


def test_equal_photos_keep_their_order_and_are_named(saved: Path, tmp_path: Path) -> None:
    rerank = InstanceRerankFunction(str(saved))
    results = rerank(COFFEE, [ROCKET, COFFEE, COFFEE], top_k=9)
    assert [result.index for result in results] == [1, 2, 0]
    assert results[0] == RerankResult(results[1].text, results[1].score, 1)
    assert rerank(COFFEE, []) == []


def test_a_photo_that_cannot_be_read_and_an_unknown_method_are_refused(saved: Path) -> None:
    with pytest.raises(ImageError, match="absent"):
        InstanceRerankFunction(str(saved))(COFFEE, ["absent.jpg"])
    with pytest.raises(SettingsError, match="magic"):
        InstanceRerankFunction(method="magic")  # type: ignore[arg-type]


def test_both_functions_share_one_network(
    saved: Path, embed: ClassWeightedEmbeddingFunction
) -> None:
    assert InstanceRerankFunction(str(saved), 2, "cpu").encoder is embed.encoder
