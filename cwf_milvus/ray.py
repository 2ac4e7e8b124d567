"""Ray Data: photos encoded by many computers, and a sink that stores them in Milvus.

`EncodePhotos` is for ``Dataset.map_batches``, `MilvusDatasink` for ``Dataset.write_datasink``; both
are what ``cwf-milvus index --ray`` is made of. Needs the extra ``ray``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, Datasink, from_items
from ray.data.block import Block, BlockAccessor

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.views import Prepared
from cwf_milvus.errors import ImageError, SettingsError, StoreError
from cwf_milvus.index.indexing import Elsewhere
from cwf_milvus.index.report import Report
from cwf_milvus.method.keypoint_codes import DIM, Keypoints
from cwf_milvus.photos.images import load_image

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import TaskContext
    from ray.data.datasource import WriteResult

_READERS = 4
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries to write


class EncodePhotos:
    """Encodes photos, a batch at a time.

    Of a photo that cannot be read the vectors are 0, and the column ``reason`` says why: one bad
    photo never ends a run.

    Args:
        encoder: its files, from `Encoder.state`, or the name of a saved one that
            every worker can read.
        uri: the column of the photos' names.
        photo: the column of their bytes or pixels, (H, W, 3) in uint8; None to read the names.
        device: where the network runs.
        batch_size: photos a forward pass; None for the encoder's own.
        max_pixels: largest photo that is read; None for the encoder's own limit.

    Example:
        >>> photos = ray.data.read_images("s3://photos/", include_paths=True)
        >>> encoded = photos.map_batches(
        ...     EncodePhotos,
        ...     fn_constructor_kwargs={"encoder": state, "uri": "path", "photo": "image"},
        ...     batch_size=32,
        ...     compute=ray.data.ActorPoolStrategy(size=4),
        ... )
    """

    def __init__(
        self,
        encoder: Mapping[str, bytes] | str | Path,
        *,
        uri: str = "uri",
        photo: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        if isinstance(encoder, Mapping):
            self._encoder = Encoder.from_state(dict(encoder), device=device)
        else:
            self._encoder = Encoder.load(encoder, device=device)
        self._uri, self._photo = uri, photo
        self._size = batch_size or self._encoder.batch_size
        self._max_pixels = max_pixels or self._encoder.max_pixels

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode B photos.

        Returns:
            ``uri``, ``content`` (SHA-256 in hex) and ``reason`` ("" where all is well), text;
            ``width`` and ``height``, int64; ``descriptor`` (B, d), ``class_scores`` (B, N),
            ``class_vectors`` (B, N, d), ``region_boxes`` (B, R, 4), ``region_vectors`` (B, R, d),
            float32; ``class_ids`` (B, N), int64, -1 where a photo has fewer; ``n_regions``, int64;
            ``keypoints`` (B, K, 4 + `DIM`), float32: x, y, scale, angle, descriptor;
            ``n_keypoints``, int64, -1 where none were looked for. Other columns stay.

        Raises:
            SettingsError: a column that is not there.
        """
        missing = {self._uri, self._photo} - {None} - batch.keys()
        if missing:
            raise SettingsError(
                f"the batch has no column {min(map(str, missing))!r}, only "
                f"{', '.join(sorted(batch))}: say which with uri= and photo="
            )
        uris = [str(uri) for uri in batch[self._uri]]
        photos = uris if self._photo is None else list(batch[self._photo])
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(self._read, uris, photos))
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for i, one in enumerate(read):
            if isinstance(one, Prepared):
                groups[one.grid].append(i)
        encoded: dict[int, Encoding] = {}
        for places in groups.values():
            for start in range(0, len(places), self._size):
                part = places[start : start + self._size]
                prepared = [one for i in part if isinstance(one := read[i], Prepared)]
                encoded.update(zip(part, self._encoder.encode_prepared(prepared), strict=True))
        reasons = [one if isinstance(one, str) else "" for one in read]
        rest = {name: column for name, column in batch.items() if name != self._photo}
        return {**rest, **self._columns(uris, [encoded.get(i) for i in range(len(uris))], reasons)}

    def _read(self, uri: str, photo: object) -> Prepared | str:
        """Return a photo as the network sees it, or why it cannot be read."""
        try:
            image = load_image(
                photo, uri=uri, at_least=self._encoder.at_least, max_pixels=self._max_pixels
            )
            return self._encoder.prepare(image)
        except ImageError as error:
            return str(error)

    def _columns(
        self, uris: list[str], encoded: Sequence[Encoding | None], reasons: list[str]
    ) -> dict[str, np.ndarray]:
        n, encoder = len(uris), self._encoder
        dim, n_classes, n_regions = encoder.dim, encoder.n_classes, encoder.n_regions
        columns: dict[str, np.ndarray] = {
            "width": np.zeros(n, np.int64),
            "height": np.zeros(n, np.int64),
            "n_regions": np.zeros(n, np.int64),
            "descriptor": np.zeros((n, dim), np.float32),
            "class_ids": np.full((n, n_classes), -1, np.int64),
            "class_scores": np.zeros((n, n_classes), np.float32),
            "class_vectors": np.zeros((n, n_classes, dim), np.float32),
            "region_boxes": np.zeros((n, n_regions, 4), np.float32),
            "region_vectors": np.zeros((n, n_regions, dim), np.float32),
            "n_keypoints": np.full(n, -1, np.int64),
            "keypoints": np.zeros((n, encoder.n_keypoints, 4 + DIM), np.float32),
        }
        for i, one in enumerate(encoded):
            if one is None:
                continue
            columns["width"][i], columns["height"][i] = one.width, one.height
            columns["n_regions"][i] = len(one.region_boxes)
            columns["descriptor"][i] = one.descriptor
            for name in ("class_ids", "class_scores", "class_vectors"):
                columns[name][i, : len(one.class_ids)] = getattr(one, name)
            for name in ("region_boxes", "region_vectors"):
                columns[name][i, : len(one.region_boxes)] = getattr(one, name)
            if (points := one.keypoints) is not None:
                columns["n_keypoints"][i] = len(points)
                columns["keypoints"][i, : len(points)] = np.column_stack(
                    [points.positions, points.scales, points.angles, points.descriptors]
                )
        contents = ["" if one is None else one.content for one in encoded]
        texts = {"uri": uris, "content": contents, "reason": reasons}
        return {**{name: np.array(values, object) for name, values in texts.items()}, **columns}


class MilvusDatasink(Datasink[Report]):
    """Stores what `EncodePhotos` gives in a collection, which must be there.

    A write is done when Milvus has acknowledged its rows; one that is tried again, by this or by
    Ray, stores the same rows under the same keys. On Milvus Lite one process at a time may write:
    give ``write_datasink(sink, concurrency=1)``, and close the collection before.

    Args:
        uri: a ``.db`` path, or a server's address, as the workers see it.
        name: of the collection.
        token: for a server.
        metadata: columns to keep as fields of the photos.

    Attributes:
        report: once all is written, how many photos were stored, and which failed.
    """

    def __init__(
        self,
        uri: str | Path,
        name: str,
        *,
        token: str | None = None,
        metadata: Sequence[str] = (),
    ) -> None:
        self._place, self._token, self._metadata = (str(uri), name), token, tuple(metadata)
        self.report = Report()

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> Report:
        """Store blocks of rows, in a worker.

        Raises:
            StoreError: Milvus failed, and went on failing for half a minute.
        """
        done = Report()
        for block in blocks:
            batch = BlockAccessor.for_block(block).to_batch_format("numpy")
            encodings, failed = encodings_of(batch)
            told = {
                str(uri): {name: _plain(batch[name][i]) for name in self._metadata}
                for i, uri in enumerate(batch["uri"])
            }
            last = {one.uri: one for one in encodings}  # a photo that came twice is one
            self._store(list(last.values()), [told[uri] for uri in last])
            done.added += len(last)
            done.failed += failed
        return done

    def on_write_complete(self, write_result: WriteResult[Report]) -> None:
        """Sum up what the workers stored."""
        for one in write_result.write_returns:
            self.report.added += one.added
            self.report.failed += one.failed

    @property
    def min_rows_per_write(self) -> int:
        """How many rows a worker stores at once, since each opens the collection anew."""
        return 256

    def _store(self, encodings: list[Encoding], told: list[dict[str, Any]]) -> None:
        for pause in (*_PAUSES, None):
            try:
                with InstanceCollection.open(*self._place, token=self._token) as collection:
                    collection.upsert(encodings, told)
                return
            except StoreError:  # it is away, or another worker holds a .db
                if pause is None:
                    raise
                time.sleep(pause)


def encodings_of(
    batch: Mapping[str, np.ndarray],
) -> tuple[list[Encoding], list[tuple[str, str]]]:
    """Return the photos of a batch of `EncodePhotos`, and (uri, reason) of those that failed."""
    encodings, failed = [], []
    for i, uri in enumerate(map(str, batch["uri"])):
        if batch["reason"][i]:
            failed.append((uri, str(batch["reason"][i])))
            continue
        n = int((np.asarray(batch["class_ids"][i]) >= 0).sum())
        n_regions = int(batch["n_regions"][i])
        encodings.append(
            Encoding(
                descriptor=np.asarray(batch["descriptor"][i]),
                class_ids=np.asarray(batch["class_ids"][i])[:n],
                class_scores=np.asarray(batch["class_scores"][i])[:n],
                class_vectors=np.asarray(batch["class_vectors"][i])[:n],
                region_boxes=np.asarray(batch["region_boxes"][i])[:n_regions],
                region_vectors=np.asarray(batch["region_vectors"][i])[:n_regions],
                uri=uri,
                content=str(batch["content"][i]),
                width=int(batch["width"][i]),
                height=int(batch["height"][i]),
                keypoints=_keypoints_of(batch, i),
            )
        )
    return encodings, failed


def _keypoints_of(batch: Mapping[str, np.ndarray], i: int) -> Keypoints | None:
    n = int(batch["n_keypoints"][i])
    if n < 0:
        return None
    points = np.asarray(batch["keypoints"][i])[:n]
    width, height = int(batch["width"][i]), int(batch["height"][i])
    return Keypoints(points[:, :2], points[:, 2], points[:, 3], points[:, 4:], width, height)


def encoded_by_ray(
    encoder: Encoder,
    address: str,
    *,
    workers: int | None = None,
    max_pixels: int | None = None,
    stage: type[EncodePhotos] = EncodePhotos,
) -> Elsewhere:
    """Return what encodes named photos by Ray, for `index_photos`.

    Args:
        encoder: of the collection.
        address: of a cluster, "auto" for the one of this machine, "local" to start one here.
        workers: processes that encode; None for as many as there is room for.
        max_pixels: largest photo that is read.
        stage: what encodes.

    Raises:
        SettingsError: no such cluster.
    """
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            words = str(error).partition("\n")[0]
            raise SettingsError(
                f"no Ray cluster at {address!r} ({words}): give its address, auto, or local to "
                "start one here"
            ) from error
    size, state = encoder.batch_size, encoder.state()
    options = {"encoder": state, "batch_size": size, "max_pixels": max_pixels}

    def encoded(
        uris: Sequence[str],
    ) -> Iterator[tuple[list[Encoding], list[tuple[str, str]]]]:
        if not uris:
            return
        n_blocks = -(-len(uris) // size)
        rows = from_items([{"uri": uri} for uri in uris], override_num_blocks=n_blocks)
        rows.context.enable_progress_bars = False  # photos are counted where they are stored
        gpus = 1 if ray.cluster_resources().get("GPU") else None
        found = rows.map_batches(
            stage,
            fn_constructor_kwargs=options,
            batch_size=size,
            num_gpus=gpus,
            compute=ActorPoolStrategy(min_size=workers or 1, max_size=workers),
        )
        for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
            yield encodings_of(batch)

    return encoded


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
