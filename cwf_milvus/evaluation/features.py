"""What the network gives for each photo, kept on disk, so that many settings cost one pass."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.describe import in_pixels
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.local_vectors import LocalVectors, pool_local
from cwf_milvus.encode.settings import QUERY_KEYPOINTS
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import fit_conditions
from cwf_milvus.errors import SettingsError
from cwf_milvus.files import write_whole
from cwf_milvus.method import pooling, regions
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.sources import read_bytes

KEPT_CLASSES = 64  # the paper's most
CROP_LEVELS = (1, 2, 3, 4)
_FORMAT = 1
_SINGLE = ("raw", "spoc", "crow", "mac", "gem")
_FIELDS = (
    *_SINGLE,
    *("rmac", "crops", "class_ids", "class_scores", "class_vectors"),
    *("region_boxes", "region_vectors", "size"),
)
_POINTS = ("positions", "scales", "angles", "descriptors", "size")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Photo:
    """A photo to look at, and the box in it that counts; None for all of it."""

    file: Path
    box: Box | None = None


class FeatureStore:
    """Vectors before whitening of photos seen by one network at one size, a file a photo.

    Files are named by the photo's bytes and box, so that data sets which share photos share them,
    and written whole or not at all, so that a run that was killed goes on where it stopped.
    Fields, in float16 where they are vectors of K channels:

    * ``class_ids``, ``class_scores`` (N,) and ``class_vectors`` (N, K), of the top 64 classes or
      of the predefined ones;
    * ``region_boxes`` (R, 4) in pixels and ``region_vectors`` (R, K), as the encoder's settings
      say;
    * ``raw``, ``spoc``, ``crow``, ``mac``, ``gem`` (K,), and ``rmac`` (R', K), R-MAC's regions;
    * ``crops`` (30, K), the max-pooled squares of Razavian's spatial search;
    * ``size`` (2,), the photo's width and height;
    * ``cells`` (H * W, K), the local features, kept in a second file and only where asked for;
    * keypoints, as `Keypoints` has them, in a file of their own and only where asked for.

    Args:
        encoder: whose network and settings count; its whitening does not.
        folder: where to keep them; one for many networks and sizes.
        cells: keep the local features too.
        keypoints: keep keypoints too, as many as the encoder's settings say, and a query's.
    """

    def __init__(
        self,
        encoder: Encoder,
        folder: str | Path,
        *,
        cells: bool = False,
        keypoints: bool = False,
    ) -> None:
        self._encoder = copy.copy(encoder)  # the same network, asked for more classes
        most = max(KEPT_CLASSES, encoder.n_classes)
        wanted = _kept_keypoints(encoder) if keypoints else 0
        self._encoder.settings = replace(encoder.settings, n_classes=most, keypoints=wanted)
        self._cells = cells
        what = {
            "format": _FORMAT,
            "weights": encoder.backbone.digest(),
            "n_classes": most,
            "classes": encoder.settings.classes,
            "cam_regions": encoder.settings.cam_regions,
            **fit_conditions(encoder.settings),
        }
        del what["n_fit_classes"]
        # Those that were kept before these could be set stay good.
        for name, usual in (("network_dtype", "float32"), ("resize_on", "host")):
            if (value := getattr(encoder.settings, name)) != usual:
                what[name] = value
        self.fingerprint = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder).expanduser() / self.fingerprint[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"cannot keep features in {str(folder)!r} ({error.strerror}): name a folder that "
                "can be written with --cache"
            ) from error

    def n_keypoints(self, encoder: Encoder) -> tuple[int, int]:
        """Return how many of a photo's keypoints an encoder stores, and how many of a query's."""
        wanted = self._encoder.n_keypoints
        return (min(encoder.n_keypoints, wanted), wanted) if encoder.n_keypoints else (0, 0)

    def collect(self, photos: Sequence[Photo], progress: Progress | None = None) -> list[Path]:
        """Return the file of each photo, running the network on those that have none yet.

        Args:
            photos: in any order; the same one may come twice.
            progress: called with (photos done, photos in all).

        Raises:
            ImageError: a photo that cannot be read; what was finished stays.
        """
        places: dict[Photo, Path] = {}
        wanted = list(dict.fromkeys(photos))
        done = 0

        def missing() -> Iterator[tuple[Photo, Prepared]]:
            nonlocal done
            for photo, place, prepared in self._prepared(wanted):
                places[photo] = place
                if prepared is None:
                    done += 1
                    if progress is not None:
                        progress(done, len(wanted))
                else:
                    yield photo, prepared

        for batch in batches(missing(), self._encoder.batch_size, lambda item: item[1].grid):
            for (photo, _), tensors in zip(batch, self._see([p for _, p in batch]), strict=True):
                cells = tensors.pop("cells")
                if self._cells:
                    _save(places[photo].with_suffix(".cells"), {"cells": cells})
                _save(places[photo], tensors)
            done += len(batch)
            if progress is not None:
                progress(done, len(wanted))
        return [places[photo] for photo in photos]

    def read(self, name: str) -> np.ndarray | None:
        """Return an array kept under a name, made from these features; None where there is none."""
        place = self.folder / f"{name}.safetensors"
        try:
            with safe_open(place, framework="numpy") as tensors:
                return np.asarray(tensors.get_tensor("array"))
        except (OSError, SafetensorError):
            return None

    def write(self, name: str, array: np.ndarray) -> None:
        """Keep an array under a name."""
        _save(self.folder / f"{name}.safetensors", {"array": np.ascontiguousarray(array)})

    def _prepared(self, photos: Sequence[Photo]) -> Iterator[tuple[Photo, Path, Prepared | None]]:
        """Decode ahead, in threads, those that have to be seen."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(photos), 64):
                yield from pool.map(self._prepare, photos[start : start + 64])

    def _prepare(self, photo: Photo) -> tuple[Photo, Path, Prepared | None]:
        data = read_bytes(str(photo.file))
        box = "" if photo.box is None else "-" + "-".join(f"{side:g}" for side in photo.box)
        name = hashlib.sha256(data).hexdigest()
        place = self.folder / name[:2] / f"{name}{box}.safetensors"
        seen = _is_whole(place) and (not self._cells or _is_whole(place.with_suffix(".cells")))
        points = _points_file(place, self._encoder.n_keypoints)
        if seen and (not self._encoder.n_keypoints or _is_whole(points)):
            return photo, place, None
        if photo.box is None:
            image = load_image(data, uri=str(photo.file), at_least=self._encoder.at_least)
            prepared = self._encoder.prepare(image)
        else:
            image = load_image(data, uri=str(photo.file))
            prepared = self._encoder.prepare_query(image, photo.box)
        if prepared.keypoints is not None:
            _save(points, _of_keypoints(prepared.keypoints))
        return photo, place, None if seen else prepared

    @torch.no_grad()
    def _see(self, batch: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        features, ids, scores, class_maps = self._encoder.class_maps(batch)
        boxes = [prepared.box for prepared in batch]
        local = pool_local(features, class_maps, ids, scores, boxes, self._encoder.settings)
        if any(boxes):  # queries: every box crops its own grid
            pooled = [_pooled(_cropped(features[i : i + 1], box))[0] for i, box in enumerate(boxes)]
        else:
            pooled = _pooled(features)
        return [{**pooled[i], **_local(local, i, prepared)} for i, prepared in enumerate(batch)]


def read_field(places: Iterable[Path], name: str) -> list[np.ndarray]:
    """Return one field of each photo; vectors as float32.

    Raises:
        SettingsError: a file that was damaged or removed since.
    """
    found = []
    for place in places:
        file = place.with_suffix(".cells") if name == "cells" else place
        try:
            with safe_open(file, framework="numpy") as tensors:
                array = tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise SettingsError(
                f"cannot read the features in {str(file)!r} ({error}): delete it, and run again"
            ) from error
        found.append(array.astype(np.float32) if array.dtype == np.float16 else array)
    return found


@torch.no_grad()
def encodings(
    encoder: Encoder, names: Sequence[str], places: Sequence[Path], *, keypoints: int = 0
) -> list[Encoding]:
    """Return kept photos as the encoder encodes them, with its whitening; names become uris.

    They differ from `Encoder.encode`'s by the float16 that the vectors were kept in.

    Args:
        encoder: whose whitening and settings count.
        names: of the photos.
        places: of their files.
        keypoints: how many of a photo's, its strongest; a store that keeps them has made the files.
    """
    fields = ("class_ids", "class_scores", "class_vectors", "region_boxes", "region_vectors")
    found = []
    for name, place in zip(names, places, strict=True):
        ids, scores, of_classes, boxes, of_regions, size = (
            read_field([place], field)[0] for field in (*fields, "size")
        )
        n = encoder.n_classes
        class_vectors = encoder.whiten(torch.from_numpy(of_classes[None, :n]), "classes")
        region_vectors = encoder.whiten(torch.from_numpy(of_regions), "regions")
        found.append(
            Encoding(
                encoder.describe(class_vectors, [region_vectors])[0].cpu().numpy(),
                ids[:n].astype(np.int64),
                scores[:n],
                class_vectors[0].cpu().numpy(),
                boxes,
                region_vectors.cpu().numpy(),
                name,
                place.stem[:64],
                int(size[0]),
                int(size[1]),
                _keypoints(_points_file(place, _kept_keypoints(encoder)), keypoints),
            )
        )
    return found


def _kept_keypoints(encoder: Encoder) -> int:
    return max(QUERY_KEYPOINTS, encoder.n_keypoints)


def _points_file(place: Path, n: int) -> Path:
    return place.with_suffix(f".keypoints{n}")


def _keypoints(file: Path, limit: int) -> Keypoints | None:
    if not limit:
        return None
    positions, scales, angles, descriptors, size = (read_field([file], n)[0] for n in _POINTS)
    width, height = (int(side) for side in size)
    return Keypoints(positions, scales, angles, descriptors, width, height)[:limit]


def _of_keypoints(found: Keypoints) -> dict[str, np.ndarray]:
    """Return keypoints as tensors; kept in two bits later, descriptors need no more than 16."""
    size = np.array([found.width, found.height], np.int64)
    kept = (found.positions, found.scales, found.angles, found.descriptors.astype(np.float16), size)
    return {name: np.ascontiguousarray(one) for name, one in zip(_POINTS, kept, strict=True)}


def _cropped(features: torch.Tensor, box: tuple[int, int, int, int] | None) -> torch.Tensor:
    x1, y1, x2, y2 = box or (0, 0, features.shape[-1], features.shape[-2])
    return features[..., y1:y2, x1:x2]


def _pooled(features: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """Pool the features of each photo by each baseline."""
    height, width = features.shape[-2:]
    pooled = {name: pooling.POOLINGS[name](features) for name in _SINGLE}
    for name, boxes in (
        ("rmac", regions.rmac_boxes(height, width)),
        ("crops", regions.grid_boxes(height, width, CROP_LEVELS)),
    ):
        pooled[name] = pooling.region_vectors(features, boxes)
    pooled["cells"] = features.flatten(2).transpose(1, 2)
    return [
        {name: _half(vectors[i]) for name, vectors in pooled.items()} for i in range(len(features))
    ]


def _local(local: LocalVectors, i: int, prepared: Prepared) -> dict[str, np.ndarray]:
    return {
        "class_ids": local.class_ids[i].cpu().numpy(),
        "class_scores": local.class_scores[i].cpu().numpy(),
        "class_vectors": _half(local.class_vectors[i]),
        "region_boxes": in_pixels(local.region_boxes[i], local.cells, prepared),
        "region_vectors": _half(local.region_vectors[i]),
        "size": np.array([prepared.width, prepared.height], np.int64),
    }


def _half(vectors: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.half().cpu().numpy())


def _save(place: Path, tensors: dict[str, np.ndarray]) -> None:
    place.parent.mkdir(exist_ok=True)
    write_whole(place, lambda part: save_file(tensors, part))


def _is_whole(place: Path) -> bool:
    """Whether a file is there and as long as its header says."""
    try:
        with safe_open(place, framework="numpy") as tensors:
            names = set(tensors.keys())
    except (OSError, SafetensorError):
        return False
    if place.suffix.startswith(".keypoints"):
        return names >= set(_POINTS)
    return names >= ({"cells"} if place.suffix == ".cells" else set(_FIELDS))
