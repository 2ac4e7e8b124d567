"""A backbone with its settings: photos in, what the network sees of them out, not yet whitened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cwf_milvus.backbones import create_backbone
from cwf_milvus.backbones.alone import alone
from cwf_milvus.backbones.kept import Runtime
from cwf_milvus.backbones.weights import RANDOM
from cwf_milvus.checks import checked_count
from cwf_milvus.encode.batching import in_batches
from cwf_milvus.encode.kept import LastUsed
from cwf_milvus.encode.local_vectors import LocalVectors, pool_local
from cwf_milvus.encode.seen import FeatureCache
from cwf_milvus.encode.settings import QUERY_KEYPOINTS, EncoderSettings
from cwf_milvus.encode.views import Prepared, prepare, prepare_query
from cwf_milvus.errors import SettingsError
from cwf_milvus.method import cam, regions
from cwf_milvus.method.keypoint_codes import Keypoints
from cwf_milvus.method.sending import sent
from cwf_milvus.photos.box import Box, BoxLike
from cwf_milvus.photos.images import Image, load_image, resized_there

_KEYPOINT_BYTES = 128 * 2**20  # of photos that were read again, some 600


class Network:
    """What an `Encoder` is before its whitening; the arguments are the encoder's.

    Attributes:
        settings: every setting that can change a vector.
        weights: the checkpoint, as an absolute path; None for the backbone's own source.
        backbone: the network, cut in two at its features.
        weights_digest: SHA-256 of the weights, in hex.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        weights: str | Path | None,
        device: str | torch.device | None,
        batch_size: int | None,
        max_pixels: int,
        runtime: Runtime,
    ) -> None:
        self.settings = settings
        # Absolute, so that the encoder can be restored from another folder.
        self.weights = None if weights is None else str(weights)
        if self.weights not in (None, RANDOM):
            self.weights = str(Path(self.weights).expanduser().absolute())
        self.backbone = create_backbone(
            settings.backbone,
            weights=weights,
            layer=settings.layer,
            cams_from=settings.cams_from,
            device=device,
            runtime=runtime,
            network_dtype=settings.network_dtype,
        )
        self.weights_digest = self.backbone.digest()
        self.seen = FeatureCache()
        self.keypoints_read: LastUsed[Keypoints] = LastUsed(_KEYPOINT_BYTES)
        if settings.classes and max(settings.classes) >= len(self.class_names):
            raise SettingsError(
                f"classes names {max(settings.classes)}: {settings.backbone} has classes 0 to "
                f"{len(self.class_names) - 1}"
            )
        usual = 32 if self.device.type == "cuda" else 8
        self.batch_size = usual if batch_size is None else checked_count("batch_size", batch_size)
        self.max_pixels = max_pixels

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.backbone.device

    @property
    def n_classes(self) -> int:
        """N, the class vectors of an image."""
        wanted = len(self.settings.classes or ()) or self.settings.n_classes
        return min(wanted, len(self.class_names))

    @property
    def n_regions(self) -> int:
        """R, the most region vectors that an image can have."""
        grid = sum(level * level for level in self.settings.region_levels)
        return grid + (len(regions.THRESHOLDS) if self.settings.cam_regions else 0)

    @property
    def n_keypoints(self) -> int:
        """The most keypoints that an image can have."""
        return self.settings.keypoints

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the network's classes, in the order of their ids."""
        return self.backbone.class_names

    @property
    def at_least(self) -> int | None:
        """Longest side in pixels that a photo must keep when it is decoded; None for all."""
        return self.settings.at_least

    # From a name to what the network takes

    def read(
        self, image: object, box: BoxLike | None = None, *, max_pixels: int | None = None
    ) -> Image:
        """Decode a photo, no larger than what is in the box needs.

        Args:
            image: anything that `encode` takes.
            box: as in `encode_query`.
            max_pixels: in place of the encoder's own.

        Raises:
            ImageError: a photo that cannot be decoded.
            BoxError: a box that is malformed.
        """
        limit = self.max_pixels if max_pixels is None else max_pixels
        return load_image(image, at_least=self.at_least, box=Box.of(box), max_pixels=limit)

    def prepare(self, image: Image) -> Prepared:
        """Make a photo ready for the network, with its keypoints; for the threads that decode."""
        ready = prepare(image, self.settings, self.backbone.stride)
        return replace(ready, keypoints=self.keypoints(image, self.settings.keypoints))

    def keypoints(self, image: Image, limit: int) -> Keypoints | None:
        """Return the strongest keypoints of a photo; None for a limit of 0."""
        if not limit:
            return None
        from cwf_milvus.encode.keypoints import extract_keypoints  # OpenCV takes a while

        return extract_keypoints(image.pixels, image.width, image.height, limit)

    def prepare_query(self, image: object, box: BoxLike | None = None) -> Prepared:
        """Resize a query for the network; with a box, the class view is the crop alone.

        Raises:
            ImageError: a photo that cannot be decoded.
            BoxError: a box that is malformed, empty or outside the photo.
        """
        wanted = Box.of(box)
        photo = self.read(image, wanted)
        if wanted is None:
            ready = prepare(photo, self.settings, self.backbone.stride)
        else:
            ready = prepare_query(photo, wanted, self.settings, self.backbone.stride)
        limit = self.settings.keypoints and max(QUERY_KEYPOINTS, self.settings.keypoints)
        return replace(ready, keypoints=self.keypoints(photo, limit))

    # From what the network takes to maps and vectors

    @alone()
    def class_maps(self, batch: Sequence[Prepared]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the network on photos of one grid: what it sees, and where.

        Returns:
            Features X of shape (B, K, H, W); the top classes' ids and softmax of shape (B, N);
            their class activation maps (Eq. 1) of shape (B, N, H, W), in [0, 1].
        """
        views, class_views = self._views(batch)
        maps = self.backbone(self._stack(views))
        logits = maps.logits
        if class_views:
            logits = torch.stack(  # of a query's box, each may have a shape of its own
                in_batches(class_views, len(batch), lambda view: view.shape, self._predict)
            )
        ids, scores = cam.top_classes(logits, self.n_classes, self.settings.classes)
        height, width = maps.features.shape[-2:]
        class_maps = cam.class_activation_maps(
            maps.class_source, maps.class_weights(ids), (height, width)
        )
        return maps.features, ids, scores, class_maps

    @alone()
    def local_vectors(self, batch: Sequence[Prepared]) -> LocalVectors:
        """Return class and region vectors of photos of one grid, before whitening."""
        features, ids, scores, class_maps = self.class_maps(batch)
        return pool_local(features, class_maps, ids, scores, [p.box for p in batch], self.settings)

    def views(self, batch: Sequence[Prepared]) -> Tensor:
        """Return the features' views of photos of one grid, (B, 3, h, w), where the network is."""
        return self._stack(self._views(batch)[0])

    def _views(self, batch: Sequence[Prepared]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the views of the features and, where they differ, of the classes, in their size.

        Those that were resized by the CPU are still there, the others on the device.
        """
        there: dict[int, Tensor] = {}

        def in_size(view: Tensor, size: tuple[int, int] | None) -> Tensor:
            if size is None:
                return view
            if id(view) not in there:
                there[id(view)] = sent(view, self.device)
            return resized_there(there[id(view)], *size)

        return (
            [in_size(photo.view, photo.size) for photo in batch],
            [in_size(p.class_view, p.class_size) for p in batch if p.class_view is not None],
        )

    def _predict(self, views: Sequence[Tensor]) -> Tensor:
        return self.backbone.predict(self._stack(views))

    def _stack(self, views: Sequence[Tensor]) -> Tensor:
        return sent(torch.stack(list(views)), self.device)
