"""Photos into a collection, and queries to its rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.errors import CollectionError, ImageError, SettingsError
from cwf_milvus.operators.common import Operator, as_many, as_photo, is_list, listed
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.sources import uri_of
from cwf_milvus.search.choose import Expand, Rerank, chosen_stages, run_stages
from cwf_milvus.search.registry import AUTO, CANDIDATES, NONE
from cwf_milvus.search.search import as_hit, ask
from cwf_milvus.search.stage import Context
from cwf_milvus.sharing import shared_collection
from cwf_milvus.store.rows import Row as Stored

Row = list[Any]


class InstanceInsert(Operator):
    """Photos into a collection, made if it is not there; rows of id and error.

    Args:
        uri: a path that ends in ``.db``, or ``http(s)://host:port`` with the token in the
            environment variable MILVUS_TOKEN.
        collection: its name.
        encoder: of a collection to be made: a backbone's name, or a saved encoder's folder.
        device: where the network runs; None for the GPU where there is one.

    Raises:
        StoreError: Milvus cannot be reached, or refuses.
        CollectionError: the collection is damaged.

    Example:
        >>> ids, errors = InstanceInsert("photos.db", "holiday")(["a.jpg", "b.jpg"])
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        encoder: str = "efficientnet_lite0",
        device: str | None = None,
    ) -> None:
        self.photos = shared_collection(uri, collection, create_with=encoder, device=device)

    def __call__(self, images: object, uris: Any = None, metadata: Any = None) -> tuple[Any, Any]:
        """Store an image, or a list in batches; what is there unchanged is passed over.

        Args:
            images: as `CamVggEmbed` takes them.
            uris: the name to store, or a list; None or "" for the path, or the content's hash.
            metadata: your own fields, a dict, or a list of them; None for none.

        Returns:
            The id, and "" or what is wrong with the photo, which then is not stored: a bad photo
            ends no run. For a list two lists.

        Raises:
            StoreError: Milvus failed; what was finished stays.
            SettingsError: metadata that Milvus cannot hold, or lists of different length.
        """
        many = listed(images)
        names = as_many(uris, len(many), is_list(images), "uris")
        notes = as_many(metadata, len(many), is_list(images), "metadata")
        ids: list[str] = []
        errors: dict[str, str] = {}
        items: dict[str, object] = {}
        for image, uri in zip(many, names, strict=True):
            try:
                name, source = _named(image, uri or None, self.photos.encoder.at_least)
            except ImageError as error:
                name = str(uri or f"image {len(ids)}")
                errors[name] = str(error)
            else:
                items[name] = source
            ids.append(name)
        told = {
            name: note
            for name, note in zip(ids, notes, strict=True)
            if note is not None and name in items
        }
        report = self.photos.add(items, metadata=told or None, progress=False)
        errors.update(report.failed)
        reasons = [errors.get(name, "") for name in ids]
        return (ids, reasons) if is_list(images) else (ids[0], reasons[0])


class InstanceSearch(Operator):
    """Query image, box or descriptor to rows of id, score and more, best first.

    Args:
        uri: as in `InstanceInsert`.
        collection: its name.
        limit: rows for a query.
        filter: a Milvus filter expression on the collection's or your own fields.
        output_fields: what follows id and score in a row: "box" (of the match, in the hit's
            pixels, or []), "inliers" (keypoints that agree, or 0), "classes", "width", "height", or
            fields of your own.
        device: where the network runs; None for the GPU where there is one.
        rerank: as in `InstanceCollection.search`, such as "none".
        expand: as in `InstanceCollection.search`, such as 5.
        candidates: as in `InstanceCollection.search`.
        augmented: search the augmented descriptors.
        max_pixels: largest query that is read, in place of the encoder's own limit.

    Raises:
        StoreError: Milvus cannot be reached, or refuses.
        CollectionError: there is no such collection, or it is damaged.

    Example:
        >>> search = InstanceSearch("photos.db", "holiday", limit=5)
        >>> rows = search("query.jpg", (279, 100, 601, 862))
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        limit: int = 10,
        filter: str | None = None,
        output_fields: Sequence[str] = (),
        device: str | None = None,
        rerank: Rerank = AUTO,
        expand: Expand = AUTO,
        candidates: int = CANDIDATES,
        augmented: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        self.photos = shared_collection(uri, collection, device=device)
        self.output_fields = tuple(output_fields)
        self._limits: dict[str, Any] = {"limit": limit, "filter": filter}
        self._of_photos: dict[str, Any] = {
            "rerank": rerank,
            "expand": expand,
            "augmented": augmented,
            "max_pixels": max_pixels,
        }
        self._candidates = candidates

    def __call__(self, images: Any, box: Any = None) -> Any:
        """Answer one query, or a list of them in one call to Milvus.

        Args:
            images: as `CamVggEmbed` takes them; or descriptors of shape (d,), from `PcaWhiten`.
            box: x1, y1, x2, y2 of the thing, in pixels of the upright original; None or "" for
                the whole photo. For a list a list with one for each.

        Returns:
            A list of rows; for a list a list of such lists.

        Raises:
            ImageError: a query that cannot be decoded.
            BoxError: a box that is malformed, empty or outside its photo.
            FilterError: Milvus refused the filter.
            SettingsError: descriptors where a box or re-ranking was asked for.
        """
        many = listed(images)
        boxes = [_box(one) for one in as_many(box, len(many), is_list(images), "boxes")]
        if many and all(_is_descriptor(one) for one in many):
            bare = (AUTO, NONE, None, False)  # the best that a descriptor can do is the bare search
            asked = [name for name, value in self._of_photos.items() if value not in bare]
            if asked or any(one is not None for one in boxes):
                raise SettingsError(
                    f"a descriptor was asked for with {', '.join(asked) or 'a box'}, which "
                    "takes the photo: give that, or leave it out"
                )
            stacked = np.stack([np.asarray(one, np.float32) for one in many])
            answers: Sequence[Any] = self.photos.search_vectors(stacked, **self._limits)
        else:
            photos = [as_photo(image) for image in many]
            answers = self.photos.search(
                photos,
                box=boxes,
                candidates=self._candidates,
                **self._limits,
                **self._of_photos,
            )
        rows = [as_rows(answer, self.output_fields) for answer in answers]
        return rows if is_list(images) else rows[0]


class CamRerank(Operator):
    """Query image, box and hits to better hits: the second stage of any first search.

    Args:
        uri: as in `InstanceInsert`.
        collection: its name; it must hold the hits.
        method: "auto", the best that the collection can do; "regions", "spatial", "classes",
            "online", "class-matched"; or "cam", the paper's own, which reads the hits' photos.
        expand: hits that query expansion then uses; it searches the collection anew, for as many
            hits as came. 0 for none. Other expansions by name, as in `InstanceCollection.search`.
        output_fields: as in `InstanceSearch`.
        device: where the network runs; None for the GPU where there is one.

    Raises:
        SettingsError: an unknown method, or an expansion that cannot be.
        StoreError: Milvus cannot be reached, or refuses.
        CollectionError: there is no such collection, or it is damaged.

    Example:
        >>> rerank = CamRerank("photos.db", "holiday", method="regions", output_fields=["box"])
        >>> rows = rerank("query.jpg", (279, 100, 601, 862), [["a.jpg", 0.7], ["b.jpg", 0.6]])
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        method: str = AUTO,
        expand: int | str = AUTO,
        output_fields: Sequence[str] = (),
        device: str | None = None,
    ) -> None:
        chosen_stages(method, expand or None)  # what cannot be is refused before Milvus is asked
        self.photos = shared_collection(uri, collection, device=device)
        self._stages = chosen_stages(method, expand or None, gallery=self.photos)
        self.output_fields = tuple(output_fields)

    def __call__(self, image: Any, box: Any, hits: Sequence[Any]) -> list[Row]:
        """Order hits anew.

        Args:
            image: the query, as `CamVggEmbed` takes it.
            box: x1, y1, x2, y2 of the thing, or None or "" for the whole photo.
            hits: rows that begin with id and score, or ids alone, best first.

        Returns:
            Rows of id, the last stage's score and the output fields, best first.

        Raises:
            ImageError: a query that cannot be decoded.
            BoxError: a box that is malformed, empty or outside its photo.
            CollectionError: a hit that is not in the collection.
        """
        query = ask(self.photos.encoder, [as_photo(image)], [_box(box)])[0]
        named = [(hit, 0.0) if isinstance(hit, str) else (hit[0], float(hit[1])) for hit in hits]
        given = [
            replace(self._stored(uri, row), score=score)
            for (uri, score), row in zip(
                named, self.photos.get([uri for uri, _ in named]), strict=True
            )
        ]
        context = Context(self.photos, self._find, len(given))
        answers = run_stages(
            self._stages, [query], [self._hits(query, given)], context, max(len(given), 1)
        )
        return as_rows(answers[0], self.output_fields)

    def _stored(self, uri: str, row: Stored | None) -> Stored:
        if row is None:
            raise CollectionError(
                f"the hit {uri!r} is not in the collection {self.photos.name!r}: insert it first"
            )
        return row

    def _find(
        self, queries: Sequence[Query], descriptors: np.ndarray, limit: int
    ) -> list[list[Hit]]:
        found = self.photos.search_vectors(descriptors, limit=limit)
        return [self._hits(query, rows) for query, rows in zip(queries, found, strict=True)]

    def _hits(self, query: Query, rows: Sequence[Stored]) -> list[Hit]:
        names = self.photos.encoder.class_names
        return [as_hit(query, row, rank, names) for rank, row in enumerate(rows, start=1)]


def as_rows(found: Sequence[Any], fields: Sequence[str]) -> list[Row]:
    """Return hits, or rows of a collection, as lists of id, score and the fields named."""
    return [[one.uri, one.score, *(_field(one, name) for name in fields)] for one in found]


def _field(found: Any, name: str) -> Any:
    """Return a field of a hit; what it lacks is "" or [], as Towhee loses rows over a None."""
    if name == "inliers":
        return getattr(found, name, None) or 0
    if name not in ("box", "classes", "width", "height"):
        value = found.metadata.get(name)
        return "" if value is None else value
    value = getattr(found, name, None)
    return list(value or ()) if name in ("box", "classes") else value


def _box(box: Any) -> Any:
    """Return a box, or None for what says the whole photo where None cannot pass."""
    is_empty = hasattr(box, "__len__") and len(box) == 0
    return None if box is None or is_empty else box


def _named(image: Any, uri: str | None, at_least: int | None) -> tuple[str, object]:
    if isinstance(image, str | os.PathLike):
        return uri or uri_of(os.fspath(image)), str(image)
    photo = load_image(as_photo(image), uri=uri, at_least=at_least)
    return photo.uri, photo


def _is_descriptor(image: Any) -> bool:
    return isinstance(image, np.ndarray | Tensor) and image.ndim == 1
