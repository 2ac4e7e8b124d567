"""`InstanceCollection`: photos and their vectors in Milvus, with the encoder that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cwf_milvus.errors import CollectionError
from cwf_milvus.index.altogether import PhotosAltogether
from cwf_milvus.search.registry import AUTO, CANDIDATES
from cwf_milvus.store.client import Store
from cwf_milvus.store.layout import Layout
from cwf_milvus.store.making import check_made_alike, make_rows
from cwf_milvus.store.names import Names
from cwf_milvus.store.packing import PRECISIONS, Precision
from cwf_milvus.store.refusals import check_name, checked_index
from cwf_milvus.store.sidecar import Sidecar

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    import torch

    from cwf_milvus.answers.answer import Hits
    from cwf_milvus.backbones.kept import Runtime
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.index.metadata import MetadataSource
    from cwf_milvus.index.report import Report
    from cwf_milvus.photos.box import BoxLike
    from cwf_milvus.search.choose import Expand, Rerank
    from cwf_milvus.search.stage import Stage


class InstanceCollection(PhotosAltogether):
    """Photos in Milvus, one row each; made by `create` or `open`, best used in a ``with``.

    Several threads may use one. On Milvus Lite, one process at a time may have the database open;
    on a server several may write, but each photo one at a time.

    Example:
        >>> photos = InstanceCollection.create("photos.db", "holiday", Encoder())
        >>> report = photos.add("photos/")
        >>> hits = photos.search("query.jpg", box=(279, 100, 601, 862))

    Attributes:
        sidecar: what the collection keeps beside its rows.
    """

    sidecar: Sidecar

    @classmethod
    def create(
        cls,
        uri: str | Path,
        name: str,
        encoder: Encoder,
        *,
        token: str | None = None,
        class_rows: bool = False,
        precision: Precision | None = None,
        exist_ok: bool = False,
        index: Mapping[str, Any] | None = None,
    ) -> InstanceCollection:
        """Create a collection that comes with its encoder.

        Args:
            uri: a path that ends in ``.db``, for Milvus Lite; or ``http(s)://host:port``.
            name: letters, digits and underscores.
            encoder: a fitted encoder.
            token: for a server.
            class_rows: keep each class vector as a row of its own in ``<name>_classes`` as well,
                for searches by class in Milvus itself.
            precision: how class and region vectors are kept: "int4", the default, "int8", which
                takes twice the room, or "float16", which takes four times as much.
            exist_ok: open the collection where there is one, made with the same encoder.
            index: of the descriptor, for a server, such as
                ``{"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}``; None for
                FLAT, which is exact.

        Raises:
            StoreError: Milvus cannot be reached, or refuses.
            CollectionError: it is there already.
            MismatchError: it is there, and was made otherwise.
            SettingsError: a name or index that cannot be used, or more vectors than fit a row.
            WhiteningError: the encoder has not been fitted.
        """
        check_name(name)
        layout = Layout(
            encoder.dim,
            encoder.n_classes,
            encoder.n_regions,
            precision or PRECISIONS[0],
            encoder.n_keypoints,
        )
        encoder.state()  # an unfitted one is refused before anything is made
        store = Store(uri, token=token, make=True)
        try:
            kind = checked_index(index, store.is_lite)
            is_new = make_rows(
                store, name, encoder, layout, class_rows=class_rows, index=kind, exist_ok=exist_ok
            )
            made = cls(store, name, encoder=encoder)
            if not is_new:
                check_made_alike(made, class_rows=class_rows, precision=precision)
            return made
        except BaseException:
            store.close()
            raise

    @classmethod
    def open(
        cls,
        uri: str | Path,
        name: str,
        *,
        token: str | None = None,
        encoder: Encoder | None = None,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        runtime: Runtime = "auto",
    ) -> InstanceCollection:
        """Open a collection; its encoder is restored from Milvus when it is first needed.

        Args:
            uri: as in `create`.
            name: as in `create`.
            token: for a server.
            encoder: the encoder to use, in place of restoring it; must be the same.
            weights: the network's checkpoint, for an encoder to be restored.
            device: where the restored network runs.
            runtime: what runs it on a CPU, as in `Encoder`.

        Raises:
            StoreError: Milvus cannot be reached, or refuses.
            CollectionError: there is no such collection, or it is damaged.
            MismatchError: the encoder is another than the collection's; names what differs.
        """
        check_name(name)
        store = Store(uri, token=token)
        try:
            return cls(
                store, name, encoder=encoder, weights=weights, device=device, runtime=runtime
            )
        except BaseException:
            store.close()
            raise

    @classmethod
    def exists(cls, uri: str | Path, name: str, *, token: str | None = None) -> bool:
        """Tell whether there is such a collection.

        Raises:
            StoreError: Milvus cannot be reached, or refuses.
        """
        check_name(name)
        try:
            store = Store(uri, token=token)
        except CollectionError:  # no such .db
            return False
        try:
            return bool(store.call("has_collection", name))
        finally:
            store.close()

    @classmethod
    def describe(cls, uri: str | Path, name: str, *, token: str | None = None) -> dict[str, Any]:
        """Return `info` of a collection, without keeping it open; no network is loaded."""
        with cls.open(uri, name, token=token) as collection:
            return collection.info()

    # Photos and searches

    def add(
        self,
        photos: object,
        *,
        metadata: MetadataSource = None,
        replace_metadata: bool = False,
        exif: bool = False,
        prune: bool = False,
        prune_anyway: bool = False,
        progress: bool = True,
        report_file: str | Path | None = None,
        workers: int | None = None,
        max_pixels: int | None = None,
        shard: str | None = None,
    ) -> Report:
        """Read, encode and store photos.

        Photos with the bytes that the collection holds are skipped, so that a run that was killed
        goes on where it stopped, and ends in the collection that an undisturbed run gives.

        Args:
            photos: a file, folder, glob or fsspec url, several of them, a sequence of images
                (bytes, arrays, PIL), or a mapping of uri to image.
            metadata: a mapping of uri, path or file name to a dict, or a CSV or JSONL file with a
                column ``file_name``; None to use ``metadata.jsonl`` or ``metadata.csv`` in a folder
                named by `photos`, where there is one, whose fields never take the place of given
                ones. What is said of a stored photo is added to what it has.
            replace_metadata: what is said of a stored photo takes the place of all that it has.
            exif: date, place, camera and orientation as fields too, where a photo has them; see
                `photos.exif.exif_fields`.
            prune: remove the rows under the named local folders whose files are gone; refused for
                a folder without any photo, or that lost over a fifth of its rows (and over one).
            prune_anyway: remove them whatever share they are; a named folder may itself be gone.
            progress: show a progress bar on standard error.
            report_file: a file to write, a line for each file that was met: CSV or Parquet by its
                ending, or else JSON lines, with one of the counts at the end. A report of an
                earlier run is gone on with; any other file is refused.
            workers: threads that read and decode; None for one a core, at most 16.
            max_pixels: largest photo that is read, in place of the encoder's own limit.
            shard: ``3/8`` for the third of eight parts of these photos, told by their uris: eight
                workers that know nothing of each other add all of them, each photo once. Not with
                `prune`; photos that changed places keep the rows of their names.

        Returns:
            The counts, and each failed photo with its reason: one bad photo never ends a run.

        Raises:
            ImageError: a named source that does not exist.
            SettingsError: a metadata or report file that cannot be used, metadata that Milvus
                cannot hold, or nothing to prune under; all before any photo is read. Also so many
                rows to prune that the folder may be out of reach, once the photos are added.
            StoreError: Milvus went away; what was finished stays, and a new run goes on from there.
        """
        from cwf_milvus.index.indexing import index_photos  # torch takes seconds

        return index_photos(
            self,
            photos,
            metadata=metadata,
            replace_metadata=replace_metadata,
            exif=exif,
            prune=prune,
            prune_anyway=prune_anyway,
            progress=progress,
            report_file=report_file,
            workers=workers,
            max_pixels=max_pixels,
            shard=shard,
        )

    @overload
    def search(  # type: ignore[overload-overlap]  # a list is an object too
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        box: BoxLike | Sequence[BoxLike | None] | None = None,
        limit: int = 20,
        filter: str | None = None,
        candidates: int = CANDIDATES,
        rerank: Rerank = AUTO,
        expand: Expand = AUTO,
        stages: Sequence[Stage] | None = None,
        like: Names = (),
        unlike: Names = (),
        augmented: bool = False,
        min_certainty: float | None = None,
        max_pixels: int | None = None,
    ) -> list[Hits]: ...
    @overload
    def search(
        self,
        images: object = None,
        *,
        box: BoxLike | Sequence[BoxLike | None] | None = None,
        limit: int = 20,
        filter: str | None = None,
        candidates: int = CANDIDATES,
        rerank: Rerank = AUTO,
        expand: Expand = AUTO,
        stages: Sequence[Stage] | None = None,
        like: Names = (),
        unlike: Names = (),
        augmented: bool = False,
        min_certainty: float | None = None,
        max_pixels: int | None = None,
    ) -> Hits: ...
    def search(
        self,
        images: object = None,
        *,
        box: BoxLike | Sequence[BoxLike | None] | None = None,
        limit: int = 20,
        filter: str | None = None,
        candidates: int = CANDIDATES,
        rerank: Rerank = AUTO,
        expand: Expand = AUTO,
        stages: Sequence[Stage] | None = None,
        like: Names = (),
        unlike: Names = (),
        augmented: bool = False,
        min_certainty: float | None = None,
        max_pixels: int | None = None,
    ) -> Hits | list[Hits]:
        """Find photos of the thing in a query photo.

        Args:
            images: a path, url, bytes, array, PIL image, tensor or `Image`; or a list or tuple of
                them, which takes one call to Milvus for all. None with `like`.
            box: x1, y1, x2, y2 of the thing, in pixels of the upright original, half open; None for
                the whole photo. For several queries a list with one box, or None, for each.
            limit: hits for each query, from 1 to 16,384.
            filter: a Milvus filter expression on the collection's or the user's fields, such as
                ``"year > 2015 and array_contains(class_ids, 698)"``.
            candidates: how many of the first search's hits the stages see. Where `limit` is larger,
                the hits beyond them follow in the order of the first search.
            rerank: "auto", the best that the collection can do: "regions", then "spatial" where
                keypoints are stored; "regions", "classes", "spatial", "online", "class-matched" or
                "cam" (docs/reranking.md), a `Stage`, or a list of these; "none" or None for the
                order of the first search.
            expand: "local", "aqe" or "qe", alone or with a number of hits as in ``("local", 3)``; a
                number, for "aqe" over so many hits; a `Stage`; "none" or None for none. "auto" is
                "graph" where there is one, if `rerank` is "auto" too, and else none.
            stages: in place of `rerank` and `expand`, `Stage` objects in any order.
            like: one stored photo or several, by uri or as `add` took them; in place of `images`,
                look for more like these.
            unlike: stored photos to look away from, beside `like`. With these,
                "auto" is "none": only descriptors can look away from something.
            augmented: search the augmented descriptors, which `augment` made.
            min_certainty: leave out hits that are less certain, from 0 to 1 (docs/certainty.md), or
                of which it cannot be told.
            max_pixels: largest query that is read, in place of the encoder's own limit.

        Returns:
            `Hits`, best first; a list of `Hits` for a list of queries. The query's own photo is
            among them where it is in the collection; photos named in `like` and `unlike` are not.
            Where the regions were compared, hits have their `certainty`, and `Hits.found` says
            whether the thing is there at all.

        Raises:
            ImageError: a query that cannot be decoded.
            BoxError: a box that is malformed, empty or outside its photo.
            FilterError: Milvus refused the filter, or it names a field that no photo has.
            SettingsError: a limit or stage that cannot be, boxes that do not go with the queries,
                both `images` and `like`, or `min_certainty` where certainty cannot be told.
            CollectionError: a uri in `like` or `unlike` that is not stored, or augmented
                descriptors that were never made.
            StoreError: Milvus failed.
        """
        from cwf_milvus.search.search import search  # torch takes seconds

        return search(
            self,
            images,
            box=box,
            limit=limit,
            filter=filter,
            candidates=candidates,
            rerank=rerank,
            expand=expand,
            stages=stages,
            like=like,
            unlike=unlike,
            augmented=augmented,
            min_certainty=min_certainty,
            max_pixels=max_pixels,
        )

    def drop(self) -> None:
        """Delete the collection with its encoder and all its photos' rows, and close.

        Raises:
            StoreError: Milvus failed.
        """
        with self._lock:
            # The main collection last but one: while it is there, nobody else makes these anew.
            if self.class_rows is not None:
                self.class_rows.drop()
            self.undo_augmentation()
            self.drop_graph()
            self.ledger.drop()
            self.store.call("drop_collection", self.name)
            self.sidecar.drop()
            self.close()
