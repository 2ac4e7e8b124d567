"""Image to maps, maps to class vectors, class vectors to the descriptor: the method's steps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from cwf_milvus.encode.batching import in_batches
from cwf_milvus.encode.describe import describe
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.saved import Saved, is_encoder, read_folder
from cwf_milvus.encode.settings import EncoderSettings, FurtherSettings, Settings
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import SettingsError, WhiteningError
from cwf_milvus.method import aggregation, pooling, regions
from cwf_milvus.method.whitened import FittedWhitening
from cwf_milvus.method.whitening import Whitening
from cwf_milvus.operators.common import Operator, as_photo, is_list, listed, tensor
from cwf_milvus.sharing import shared_collection, shared_encoder


class CamVggEmbed(Operator):
    """Image to features, class maps and class ids: one forward pass, and Eq. 1.

    Args:
        model_name: a name that `cwf-milvus backbones` lists, or any torchvision or timm
            classifier's.
        layer: the layer that gives the features; None for the backbone's own, conv5_1 of VGG-16.
        n_classes: N, the class maps of an image, its most likely class first.
        weights: a checkpoint; None for the backbone's own source.
        device: "cpu", "cuda:1", ...; None for the GPU where there is one.
        image_size: pixels of the side that the backbone's settings name; None for its own.
        settings: further fields of `EncoderSettings`, such as `class_image_size`.

    Raises:
        SettingsError: an unknown name or setting, or a value that cannot work.
        WeightsError: no weights to be had, or damaged ones.

    Example:
        >>> features, class_maps, class_ids = CamVggEmbed("efficientnet_lite0")("photo.jpg")
    """

    def __init__(
        self,
        model_name: str = "vgg16",
        layer: str | None = None,
        n_classes: int = 64,
        weights: str | None = None,
        device: str | None = None,
        image_size: int | None = None,
        **settings: Unpack[FurtherSettings],
    ) -> None:
        asked: Settings = {**settings, "layer": layer, "n_classes": n_classes}
        if image_size is not None:
            asked["image_size"] = image_size
        self.encoder = shared_encoder(
            model_name, weights=weights, device=device, whitening=None, **asked
        )

    def __call__(self, images: object) -> tuple[Any, Any, Any]:
        """Embed an image, or a list in batches of equal size.

        Args:
            images: a path, url, bytes, array (of Towhee's, its mode is heeded; others are RGB),
                PIL image or tensor; or a list of them.

        Returns:
            Features X of shape (K, H, W), class maps of shape (N, H, W) in [0, 1], float32, and
            class ids of shape (N,), int64; for a list three lists of these.

        Raises:
            ImageError: a photo that cannot be decoded.
        """
        encoder = self.encoder
        prepared = [encoder.prepare(encoder.read(as_photo(image))) for image in listed(images)]

        def embedded(batch: list[Prepared]) -> Iterator[tuple[np.ndarray, ...]]:
            features, ids, _, class_maps = encoder.class_maps(batch)
            columns = (column.cpu().numpy() for column in (features, class_maps, ids))
            return zip(*columns, strict=True)

        rows = in_batches(prepared, encoder.batch_size, lambda photo: photo.grid, embedded)
        if not is_list(images):
            return rows[0][0], rows[0][1], rows[0][2]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


class ClassWeightPool(Operator):
    """Features and class maps to class vectors, Eq. 2 to 4.

    Args:
        channel_weights: weight the channels by Eq. 3; False to leave them alike.
        feature_weighting: "crow" weights the features by CroW's spatial map first.
        region_levels: l for a grid of l x l regions, several for several scales: their max-pooled
            vectors come too, for descriptors that sum regions. () for none.

    Example:
        >>> class_vectors = ClassWeightPool()(features, class_maps)
    """

    def __init__(
        self,
        channel_weights: bool = True,
        feature_weighting: str | None = None,
        region_levels: Sequence[int] = (),
    ) -> None:
        # Checked as an encoder's are.
        checked = EncoderSettings.from_dict(
            {"feature_weighting": feature_weighting, "region_levels": region_levels or (1,)}
        )
        self.channel_weights = channel_weights
        self.feature_weighting = checked.feature_weighting
        self.region_levels = checked.region_levels if region_levels else ()

    def __call__(self, features: Any, class_maps: Any) -> Any:
        """Pool one image's maps, or a list's.

        Args:
            features: X of shape (K, H, W), array or tensor; or a list of them.
            class_maps: of shape (N, H, W); or a list.

        Returns:
            Unit class vectors of shape (N, K), float32; with `region_levels` also unit region
            vectors of shape (R, K). For a list, lists of these.

        Raises:
            SettingsError: shapes that do not go together.
        """
        lists = listed(features), listed(class_maps)
        if len(lists[0]) != len(lists[1]):
            raise SettingsError(f"{len(lists[0])} features for {len(lists[1])} class maps")
        rows = [self._pool(tensor(x), tensor(maps)) for x, maps in zip(*lists, strict=True)]
        if not self.region_levels:
            vectors = [row[0] for row in rows]
            return vectors if is_list(features) else vectors[0]
        columns = [row[0] for row in rows], [row[1] for row in rows]
        return columns if is_list(features) else rows[0]

    def _pool(self, features: Tensor, class_maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
        if features.ndim != 3 or class_maps.ndim != 3 or features.shape[1:] != class_maps.shape[1:]:
            raise SettingsError(
                f"features of shape {tuple(features.shape)} and class maps of shape "
                f"{tuple(class_maps.shape)}: give (K, H, W) and (N, H, W)"
            )
        x = weighted = features[None]
        weights = pooling.channel_weights(x)
        if not self.channel_weights:
            weights = torch.ones_like(weights)
        if self.feature_weighting == "crow":
            weighted = x * pooling.crow_spatial_weights(x)[:, None]
        class_vectors = pooling.class_vectors(weighted, class_maps[None], weights)[0]
        if not self.region_levels:
            return class_vectors.numpy(), np.zeros((0, len(features)), np.float32)
        height, width = features.shape[1:]
        boxes = regions.grid_boxes(height, width, self.region_levels)
        region_vectors = pooling.l2_normalize(pooling.region_vectors(x, boxes)[0] * weights)
        return class_vectors.numpy(), region_vectors.numpy()


class PcaWhiten(Operator):
    """Class vectors to the descriptor, or to whitened class vectors.

    With `aggregate` and a source that is an encoder or a collection, the descriptor is the very
    one that the encoder gives: the sum of the classes, of the regions, or of both, as it was set.
    A whitening file says nothing of that: its descriptor is the sum of the classes.

    Args:
        source: a whitening file; the folder of a saved encoder; a collection, as
            ``"photos.db#holiday"`` or ``"http://host:19530#holiday"``; or a `Whitening`,
            `Whitenings` or `Encoder`. No network is loaded.
        aggregate: False for whitened class vectors.

    Raises:
        WhiteningError: no whitening to be read there.
        SettingsError: a damaged encoder.
        StoreError: Milvus cannot be reached.
        CollectionError: there is no such collection.

    Example:
        >>> descriptor = PcaWhiten("photos.db#holiday")(class_vectors, region_vectors)
    """

    def __init__(self, source: Any, aggregate: bool = True) -> None:
        self.aggregate = aggregate
        self._settings, classes, self._regions = _whitening_of(source)
        self._classes = classes

    @property
    def dim(self) -> int | None:
        """d, of what is returned; None for an encoder without whitening."""
        return None if self._classes is None else int(self._classes.components_.shape[0])

    def __call__(self, class_vectors: Any, region_vectors: Any = None) -> Any:
        """Whiten one image's vectors, or a list's.

        Args:
            class_vectors: of shape (N, K), array or tensor; or a list of them.
            region_vectors: of shape (R, K), or a list; needed where the encoder's descriptor sums
                regions.

        Returns:
            The descriptor of shape (d,), unit, float32; without `aggregate` the whitened class
            vectors of shape (N, d). For a list, a list.

        Raises:
            WhiteningError: vectors of another dimension than the whitening's.
            SettingsError: fewer vectors than the encoder's descriptor sums.
        """
        many = listed(class_vectors)
        of_regions = [None] * len(many) if region_vectors is None else listed(region_vectors)
        if len(of_regions) != len(many):
            raise SettingsError(f"{len(of_regions)} region vectors for {len(many)} images")
        done = [self._whiten(*pair) for pair in zip(many, of_regions, strict=True)]
        return done if is_list(class_vectors) else done[0]

    def _whiten(self, class_vectors: Any, region_vectors: Any) -> np.ndarray:
        whitened = _transform(self._classes, tensor(class_vectors))
        if not self.aggregate:
            return whitened.numpy()
        settings = self._settings
        if settings is None:
            return aggregation.offline(whitened[None])[0].numpy()
        wanted = len(settings.classes or ()) or min(settings.n_pooled, settings.n_classes)
        if len(whitened) < wanted:
            raise SettingsError(
                f"{len(whitened)} class vectors, the encoder's descriptor sums {wanted}: give "
                f"cam_vgg_embed n_classes={wanted}"
            )
        if settings.descriptor == "classes":
            return describe(whitened[None], [], settings)[0].numpy()
        if region_vectors is None:
            raise SettingsError(
                f"the encoder's descriptor is of {settings.descriptor!r} and no region vectors "
                f"came: give class_weight_pool region_levels={settings.region_levels} and pass "
                "both its outputs on, or take class vectors alone by aggregate=False"
            )
        local = _transform(self._regions, tensor(region_vectors))
        return describe(whitened[None], [local], settings)[0].numpy()


def _whitening_of(
    source: Any,
) -> tuple[EncoderSettings | None, FittedWhitening | None, FittedWhitening | None]:
    """Return the encoder's settings, if there is one, and the whitenings of classes and regions."""
    if isinstance(source, FittedWhitening):
        return None, source, None
    if isinstance(source, Whitenings):
        return None, source.classes, source.regions
    if isinstance(source, Encoder):
        return _kept(source.state(), repr(source))
    if not isinstance(source, str | os.PathLike):
        raise WhiteningError(
            f"source={source!r}: give a whitening file, an encoder's folder or 'photos.db#name'"
        )
    path = Path(source)
    if is_encoder(path):
        return _kept(read_folder(path), str(source))
    uri, hash_sign, name = str(source).rpartition("#")
    if hash_sign and not path.exists():
        collection = shared_collection(uri, name)  # closed with its last user
        return _kept(collection.sidecar.state(), str(source))
    try:
        both = Whitenings.from_file(path)
    except WhiteningError as error:
        try:
            return None, Whitening.load(path), None
        except WhiteningError:
            raise error from None
    return None, both.classes, both.regions


def _kept(
    state: Mapping[str, bytes], name: str
) -> tuple[EncoderSettings, FittedWhitening | None, FittedWhitening | None]:
    saved = Saved.from_files(state, name=repr(name))
    if saved.whitenings is None:
        return saved.settings, None, None
    return saved.settings, saved.whitenings.classes, saved.whitenings.regions


def _transform(whitening: FittedWhitening | None, vectors: Tensor) -> Tensor:
    return vectors if whitening is None else whitening.transform(vectors)
