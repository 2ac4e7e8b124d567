"""A photo in, its vectors out: backbone, pooling, whitening and their settings, as one object."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from cwf_milvus.backbones.alone import alone
from cwf_milvus.backbones.kept import Runtime
from cwf_milvus.encode.batching import batches, in_order
from cwf_milvus.encode.describe import describe, encodings, whiten
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.encode.network import Network
from cwf_milvus.encode.saved import Saved, fingerprint_of, read_folder, write_folder
from cwf_milvus.encode.settings import Settings, default_settings, full_name
from cwf_milvus.encode.views import Prepared
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import MismatchError, SettingsError, WhiteningError
from cwf_milvus.method import aggregation
from cwf_milvus.photos.box import BoxLike
from cwf_milvus.photos.images import MAX_PIXELS
from cwf_milvus.photos.listing import is_one_photo, photo_items


class FurtherOptions(Settings, total=False):
    """What `Encoder` takes by name, beside where and in which batches it runs."""

    weights: str | Path | None
    whitening: str | Path | Whitenings | None
    max_pixels: int


class EncoderOptions(FurtherOptions, total=False):
    """What `Encoder` takes by name."""

    device: str | torch.device | None
    batch_size: int | None
    runtime: Runtime


class Encoder(Network):
    """Turns photos into vectors; whole in itself once fitted, saved, or restored.

    Args:
        backbone: a name that `list_backbones` knows, or any torchvision or timm classifier's.
        weights: a checkpoint (safetensors, or a torch file of tensors alone); None for the
            backbone's own source.
        device: "cpu", "cuda", ...; None for the GPU where there is one.
        whitening: "default" for the one that the package ships, a file or saved encoder, a
            `Whitenings`, or None to go without.
        batch_size: photos in one forward pass; None for 8 on a CPU, 32 on a GPU. Not part of the
            fingerprint.
        max_pixels: largest photo that is read, as in `load_image`. Not part of the fingerprint.
        runtime: what runs the network on a CPU: "openvino", in half the time, "torch", or "auto"
            for OpenVINO where it is installed and gives the same maps. Not part of the fingerprint.
        settings: any field of `EncoderSettings`.

    Raises:
        SettingsError: an unknown setting or a value that cannot work.
        WeightsError: no weights to be had, or damaged ones.

    Example:
        >>> encoder = Encoder("efficientnet_lite0")
        >>> encoding = encoder.encode(["photo.jpg"])[0]
        >>> encoding.descriptor.shape
        (1024,)
    """

    @alone()
    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        whitening: str | Path | Whitenings | None = "default",
        batch_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
        runtime: Runtime = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            default_settings(full_name(backbone), **settings),
            weights,
            device,
            batch_size,
            max_pixels,
            runtime,
        )
        self._unfitted = ""
        self.whitenings: Whitenings | None = None
        if whitening is not None:
            self._take_whitening(whitening)
        elif settings.get("dim") in (None, self.backbone.n_features):
            self.settings = replace(self.settings, dim=self.backbone.n_features)
        else:
            raise SettingsError(
                f"dim={settings['dim']!r} asked for without a whitening, which gives the "
                f"{self.backbone.n_features} dimensions of {backbone}: leave one of the two out"
            )

    def _take_whitening(self, source: str | Path | Whitenings) -> None:
        try:
            if isinstance(source, Whitenings):
                found = source
            elif source == "default":
                found = Whitenings.default(self.settings.backbone)
            else:
                found = Whitenings.from_file(source)
            found.check_fits(self.settings)
        except WhiteningError as error:
            if source != "default":
                raise
            self._unfitted = str(error)  # an encoder made to be fitted: refused at first use
        else:
            self.whitenings = found.used_at(self.settings)

    def __repr__(self) -> str:
        return (
            f"Encoder({self.settings.backbone!r}, dim={self.dim}, "
            f"image_size={self.settings.image_size}, whitening={self.whitening_origin!r}, "
            f"device={str(self.device)!r})"
        )

    @property
    def dim(self) -> int:
        """d, of the descriptor and of every class and region vector."""
        return self.settings.dim

    @property
    def whitening_origin(self) -> str:
        """Which whitening is used, in words."""
        if self.whitenings is not None:
            return self.whitenings.origin
        return "none yet: call fit" if self._unfitted else "none"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that can change a vector: settings, weights, whitening."""
        return fingerprint_of(self.settings, self.weights_digest, self.whitenings)

    # Encoding

    def encode(self, images: Iterable[object]) -> list[Encoding]:
        """Encode photos, in the order given; equal grids share a forward pass.

        Args:
            images: paths, urls, bytes, arrays, PIL images, tensors or `Image`s.

        Raises:
            ImageError: a photo that cannot be decoded.
            SettingsError: one photo in place of a list.
            WhiteningError: the encoder was made without a whitening and has not been fitted.
        """
        if is_one_photo(images):
            raise SettingsError("encode takes several photos: give a list, as in encode([photo])")
        return self._encode_any(self.prepare(self.read(image)) for image in images)

    def encode_query(self, image: object, box: BoxLike | None = None) -> Encoding:
        """Encode a query: classes from the crop alone, features of the whole photo in the box.

        Args:
            image: anything that `encode` takes.
            box: x1, y1, x2, y2 in pixels of the upright original; None for the whole photo.

        Raises:
            ImageError: a photo that cannot be decoded.
            BoxError: a box that is malformed, empty or outside the photo.
        """
        return self.encode_queries([(image, box)])[0]

    def encode_queries(self, queries: Iterable[tuple[object, BoxLike | None]]) -> list[Encoding]:
        """Encode several (image, box) queries; see `encode_query`.

        Raises:
            SettingsError: one photo or pair in place of a list of pairs.
        """
        pairs = [] if is_one_photo(queries) else list(queries)
        if is_one_photo(queries) or not all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
        ):
            raise SettingsError(
                "encode_queries takes several queries, each a photo and its box: give a list, as "
                "in encode_queries([(photo, box)])"
            )
        return self._encode_any(self.prepare_query(image, box) for image, box in pairs)

    @alone()
    def encode_prepared(self, batch: Sequence[Prepared]) -> list[Encoding]:
        """Encode photos of one grid in one forward pass.

        Raises:
            WhiteningError: the encoder was made without a whitening and has not been fitted.
        """
        return self._begun(batch)()

    def encode_batches(
        self, batches: Iterable[Sequence[Prepared]]
    ) -> Generator[list[Encoding], None, None]:
        """Encode batches of photos of one grid each, in their order, as `encode_prepared` does.

        While a GPU computes one, the next is taken and sent to it.

        Raises:
            WhiteningError: the encoder was made without a whitening and has not been fitted.
        """
        if self.device.type != "cuda":
            yield from map(self.encode_prepared, batches)
            return
        under_way: deque[Callable[[], list[Encoding]]] = deque()
        for batch in batches:
            with alone():
                under_way.append(self._begun(batch))
            if len(under_way) > 1:
                yield under_way.popleft()()
        for arrived in under_way:
            yield arrived()

    def _begun(self, batch: Sequence[Prepared]) -> Callable[[], list[Encoding]]:
        if self._unfitted and self.whitenings is None:
            raise WhiteningError(self._unfitted)
        return encodings(self.local_vectors(batch), self.whitenings, self.settings, batch)

    @alone()
    def whiten(self, vectors: Tensor, kind: str) -> Tensor:
        """Whiten "classes" or "regions" vectors of shape (..., K) to (..., d), unit length."""
        return whiten(vectors, self.whitenings, kind)

    @alone()
    def describe(self, class_vectors: Tensor, region_vectors: Sequence[Tensor]) -> Tensor:
        """Return the descriptors (B, d) of whitened class vectors (B, N, d) and B (R, d)."""
        return describe(class_vectors, region_vectors, self.settings)

    def _encode_any(self, prepared: Iterable[Prepared]) -> list[Encoding]:
        return in_order(prepared, self.batch_size, lambda photo: photo.grid, self.encode_batches)

    # Fitting

    def fit(
        self,
        photos: object,
        *,
        origin: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Encoder:
        """Fit both whitenings on photos, streaming; best on others than those to be searched.

        Args:
            photos: files, folders, globs, urls, or a sequence of anything that `encode` takes.
            origin: the words that `info` shows for this whitening.
            progress: called with (photos done, photos in all).

        Returns:
            self. A photo that cannot be read is passed over with a warning. With fewer than
            4 * d class or region vectors, d is reduced, with a warning.

        Raises:
            WhiteningError: too few photos for any whitening.
        """
        from cwf_milvus.encode.fitting import fit_whitenings, readable  # scikit-learn: a second

        items = photo_items(photos)
        ready = readable(items, lambda item: self.prepare(self.read(item)), progress)
        with alone():
            whitenings = fit_whitenings(
                map(self.local_vectors, batches(ready, self.batch_size, lambda photo: photo.grid)),
                self.settings,
                self.backbone.n_features,
                origin=origin,
                n_photos=len(items),
            )
        self.settings = replace(self.settings, dim=whitenings.dim)
        self.whitenings = whitenings.used_at(self.settings)
        self._unfitted = ""
        return self

    def predefine_classes(self, photos: object, n: int) -> tuple[int, ...]:
        """Count a predefined class list from representative queries, the most frequent first.

        Pass it to a new encoder as ``classes=``.

        Args:
            photos: as in `fit`.
            n: how many classes; fewer come back when fewer occur.

        Raises:
            ImageError: a photo that cannot be decoded.
            SettingsError: n is under 1, or there is no photo.
        """
        prepared = (self.prepare(self.read(item)) for item in photo_items(photos))
        top: list[Tensor] = []
        for batch in batches(prepared, self.batch_size, lambda photo: photo.grid):
            _, ids, _, _ = self.class_maps(batch)
            top += ids.cpu()
        return tuple(aggregation.count_classes(top, n))

    # Keeping

    def state(self) -> dict[str, bytes]:
        """Return all that restores this encoder, but for the network's weights, as small files.

        Raises:
            WhiteningError: the encoder has not been fitted.
        """
        if self._unfitted and self.whitenings is None:
            raise WhiteningError(self._unfitted)
        return Saved(
            self.settings, self.weights, self.weights_digest, self.fingerprint, self.whitenings
        ).to_files()

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, bytes],
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        runtime: Runtime = "auto",
    ) -> Encoder:
        """Restore an encoder from `state`.

        Args:
            state: what `state` gave.
            weights: the network's checkpoint; None for where it was when the state was made.
            device: as in `Encoder`.
            batch_size: as in `Encoder`.
            runtime: as in `Encoder`.

        Raises:
            MismatchError: the weights to be had are not those that the state was made with.
            SettingsError: a damaged state, or one of a newer version.
            WeightsError: the weights are not to be had.
            WhiteningError: a damaged whitening.
        """
        saved = Saved.from_files(state)
        settings = saved.settings
        encoder = cls(
            weights=weights or saved.weights,
            device=device,
            batch_size=batch_size,
            runtime=runtime,
            whitening=saved.whitenings,
            **settings.to_dict(),
        )
        if encoder.weights_digest != saved.weights_digest:
            raise MismatchError(
                f"the encoder {settings.backbone!r} was restored with weights of SHA-256 "
                f"{encoder.weights_digest}, it was made with {saved.weights_digest}: pass the "
                "original weights with weights=FILE (`--weights FILE`)"
            )
        if encoder.fingerprint != saved.fingerprint:
            raise MismatchError(
                f"the encoder {settings.backbone!r} was restored with the fingerprint "
                f"{encoder.fingerprint}, it was made with {saved.fingerprint}: its settings or "
                "whitening were changed since; restore them, or make it anew"
            )
        return encoder

    def save(self, folder: str | Path) -> Path:
        """Write the encoder to a folder as JSON and safetensors; returns the folder.

        Raises:
            SettingsError: the folder cannot be written.
            WhiteningError: the encoder has not been fitted.
        """
        return write_folder(self.state(), folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        runtime: Runtime = "auto",
    ) -> Encoder:
        """Read an encoder that `save` wrote; options as in `from_state`.

        Raises:
            SettingsError: not the folder of an encoder.
        """
        state = read_folder(folder)
        return cls.from_state(
            state, weights=weights, device=device, batch_size=batch_size, runtime=runtime
        )
