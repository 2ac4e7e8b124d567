"""The interface of `pymilvus-model`: an embedding function and a rerank function, for photos.

It is a convention, not a base class, so nothing of that package is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np

from cwf_milvus.encode.encoder import Encoder, FurtherOptions
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import SettingsError
from cwf_milvus.method.late_interaction import late_interaction
from cwf_milvus.photos.box import BoxLike
from cwf_milvus.photos.listing import is_one_photo
from cwf_milvus.sharing import shared_encoder


class ClassWeightedEmbeddingFunction:
    """Photos to descriptors, for a collection of your own with a FLOAT_VECTOR and the metric IP.

    Args:
        model_name: a backbone's name, or a folder that `Encoder.save` wrote.
        batch_size: photos in one forward pass.
        device: "cpu", "cuda", ...; None for the GPU where there is one.
        normalize_embeddings: descriptors are unit vectors; there are no others to be had.
        options: of `Encoder`, such as weights, whitening and settings.

    Raises:
        SettingsError: an unknown name or setting, or ``normalize_embeddings=False``.
        WeightsError: no weights to be had, or damaged ones.

    Example:
        >>> embed = ClassWeightedEmbeddingFunction()
        >>> vectors = embed.encode_documents(["a.jpg", "b.jpg"])
        >>> (query,) = embed.encode_queries([("query.jpg", (279, 100, 601, 862))])
    """

    def __init__(
        self,
        model_name: str = "efficientnet_lite0",
        batch_size: int = 32,
        device: str | None = None,
        normalize_embeddings: bool = True,
        **options: Unpack[FurtherOptions],
    ) -> None:
        if not normalize_embeddings:
            raise SettingsError(
                "normalize_embeddings=False: descriptors are sums of unit vectors, and have no "
                "length of their own; leave it out"
            )
        self.encoder: Encoder = shared_encoder(
            model_name, batch_size=batch_size, device=device, **options
        )

    def __call__(self, texts: Sequence[object]) -> list[np.ndarray]:
        """Return the descriptors of photos; see `encode_documents`."""
        return self.encode_documents(texts)

    def encode_documents(self, documents: Sequence[object]) -> list[np.ndarray]:
        """Return the descriptors of photos, each of shape (d,), unit, float32.

        Args:
            documents: paths, urls, bytes, arrays, PIL images or tensors.

        Raises:
            ImageError: a photo that cannot be decoded.
        """
        return [encoding.descriptor for encoding in self.encoder.encode(documents)]

    def encode_queries(self, queries: Sequence[object]) -> list[np.ndarray]:
        """Return the descriptors of queries, each of shape (d,), unit, float32.

        Args:
            queries: photos, or pairs of a photo and the box of the thing in it.

        Raises:
            ImageError: a photo that cannot be decoded.
            BoxError: a box that is malformed, empty or outside its photo.
            SettingsError: one query in place of a list.
        """
        if is_one_photo(queries):
            raise SettingsError(
                "encode_queries takes several queries: give a list, as in encode_queries([photo])"
            )
        pairs = [query if isinstance(query, tuple) else (query, None) for query in queries]
        return [encoding.descriptor for encoding in self.encoder.encode_queries(pairs)]

    @property
    def dim(self) -> int:
        """d, of every descriptor."""
        return self.encoder.dim


@dataclass(frozen=True)
class RerankResult:
    """A photo's place in an answer.

    Attributes:
        text: the photo's uri.
        score: higher is better.
        index: its place among the documents given.
    """

    text: str
    score: float
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds."""
        return {"text": self.text, "score": self.score, "index": self.index}


class InstanceRerankFunction:
    """Photos ordered by how well their parts answer to a query's: late interaction, squared.

    Every photo is encoded anew at each call. Where the photos are in an `InstanceCollection`,
    whose search re-ranks by what is stored, this is not needed.

    Args:
        model_name: a backbone's name, or a folder that `Encoder.save` wrote.
        batch_size: photos in one forward pass.
        device: "cpu", "cuda", ...; None for the GPU where there is one.
        method: "regions" or "classes", which vectors meet.
        options: of `Encoder`, such as weights, whitening and settings.

    Raises:
        SettingsError: an unknown name, setting or method.
        WeightsError: no weights to be had, or damaged ones.

    Example:
        >>> rerank = InstanceRerankFunction()
        >>> results = rerank("query.jpg", ["a.jpg", "b.jpg"], top_k=1, box=(279, 100, 601, 862))
    """

    def __init__(
        self,
        model_name: str = "efficientnet_lite0",
        batch_size: int = 32,
        device: str | None = None,
        method: Literal["regions", "classes"] = "regions",
        **options: Unpack[FurtherOptions],
    ) -> None:
        if method not in ("regions", "classes"):
            raise SettingsError(f"method={method!r}: give 'regions' or 'classes'")
        self.method = method
        self.encoder: Encoder = shared_encoder(
            model_name, batch_size=batch_size, device=device, **options
        )

    def __call__(
        self,
        query: object,
        documents: Sequence[object],
        top_k: int = 5,
        box: BoxLike | None = None,
    ) -> list[RerankResult]:
        """Return the best photos, best first; of equal ones the first given.

        Args:
            query: a photo, as `encode_documents` takes it.
            documents: photos.
            top_k: how many to return.
            box: of the thing in the query, in pixels of the upright original; None for the whole.

        Raises:
            ImageError: a photo that cannot be decoded.
            BoxError: a box that is malformed, empty or outside its photo.
        """
        asked = self._vectors([self.encoder.encode_query(query, box)])[0]
        encodings = self.encoder.encode(documents)
        scores = late_interaction(asked, self._vectors(encodings)).scores
        order = np.argsort(-scores, kind="stable")[: max(top_k, 0)]
        return [RerankResult(encodings[i].uri, float(scores[i]), int(i)) for i in order]

    def _vectors(self, encodings: Iterable[Encoding]) -> list[np.ndarray]:
        of_regions = self.method == "regions"
        return [one.region_vectors if of_regions else one.class_vectors for one in encodings]
