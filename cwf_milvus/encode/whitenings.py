"""The two whitenings of an encoder, one for class vectors and one for region vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.errors import WhiteningError
from cwf_milvus.method.whitened import FittedWhitening

# What the vectors that a whitening is fitted on depend on; the rest may differ from use to fit.
_FITTED_AT = (
    "backbone",
    "layer",
    "cams_from",
    "image_size",
    "class_image_size",
    "resize",
    "feature_weighting",
    "region_levels",
    "region_channel_weights",
    "n_fit_classes",
    "paper_compat",
)


@dataclass(frozen=True, eq=False)
class Whitenings:
    """A whitening for class vectors and one for region vectors, of equal output dimension.

    Attributes:
        classes: fitted on class vectors of shape (n, K).
        regions: fitted on region vectors of shape (n, K).
        origin: where they come from, in words, for people.
        fitted_at: the settings that their vectors depended on.
    """

    classes: FittedWhitening
    regions: FittedWhitening
    origin: str
    fitted_at: Mapping[str, object]

    @property
    def dim(self) -> int:
        """d, the dimension that both give."""
        return int(self.classes.components_.shape[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over both whitenings' arrays."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_fits(self, settings: EncoderSettings) -> None:
        """Raise `WhiteningError` if these were fitted on vectors of other settings."""
        for name, here in fit_conditions(settings).items():
            there = self.fitted_at.get(name)
            if there != here:
                raise WhiteningError(
                    f"the whitening ({self.origin}) was fitted at {name}={there!r}, the encoder "
                    f"has {name}={here!r}: fit one with Encoder.fit(photos) (`--fit`), or go "
                    "without by whitening=None (`--no-whitening`)"
                )
        if settings.dim > self.dim:
            raise WhiteningError(
                f"dim={settings.dim} asked of a whitening ({self.origin}) of {self.dim} "
                f"dimensions: ask for at most {self.dim}, or fit one on more photos"
            )

    def used_at(self, settings: EncoderSettings) -> Whitenings:
        """Return these cut to `settings.dim` components, with the settings' powers.

        The components are rounded to float16, which is how they are stored, so that an encoder
        and its restored copy give the same vectors bit for bit.
        """
        return Whitenings(
            _cut(self.classes, settings.dim, settings.class_whiten_power),
            _cut(self.regions, settings.dim, settings.region_whiten_power),
            self.origin,
            self.fitted_at,
        )

    def to_bytes(self) -> bytes:
        """Serialise as safetensors, arrays and strings only, components in float16."""
        meta = {"origin": self.origin, "fitted_at": json.dumps(dict(self.fitted_at))}
        return save(self._tensors(), meta)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": tensor
            for kind, whitening in (("classes", self.classes), ("regions", self.regions))
            for name, tensor in whitening.to_tensors(dtype=torch.float16).items()
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "whitening") -> Whitenings:
        """Read `to_bytes` back.

        Raises:
            WhiteningError: damaged bytes, or tensors that are no whitening; names `name`.
        """
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            meta = header["__metadata__"]
            fitted_at = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in json.loads(meta["fitted_at"]).items()
            }
            # It is shown on terminals, so it must not steer them.
            origin = "".join(filter(str.isprintable, meta["origin"]))
            classes, regions = (
                FittedWhitening.from_tensors(
                    {
                        key.removeprefix(f"{kind}."): tensor
                        for key, tensor in tensors.items()
                        if key.startswith(f"{kind}.")
                    }
                )
                for kind in ("classes", "regions")
            )
            if classes.components_.shape != regions.components_.shape:
                raise ValueError("the shapes of its two parts differ")
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise WhiteningError(
                f"{name} is no whitening of cwf-milvus ({error}): fit one with `--fit`"
            ) from error
        return cls(classes, regions, origin, fitted_at)

    @classmethod
    def from_file(cls, path: str | Path) -> Whitenings:
        """Read a whitening file, or the one in a saved encoder's folder."""
        file = Path(path)
        if file.is_dir():
            file = file / "whitening.safetensors"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise WhiteningError(
                f"cannot read the whitening {str(path)!r} ({error.strerror}): give a file that "
                "`Encoder.save` wrote"
            ) from error
        return cls.from_bytes(data, name=str(path))

    @classmethod
    def default(cls, backbone: str) -> Whitenings:
        """Return the whitening that the package ships for a backbone.

        Raises:
            WhiteningError: there is none; says what to do instead.
        """
        file = resources.files("cwf_milvus") / "data" / f"{backbone}.safetensors"
        if not file.is_file():
            raise WhiteningError(
                f"no whitening ships for {backbone!r}: fit one on your own photos with "
                "Encoder.fit(photos) (`--fit`), or go without by whitening=None (`--no-whitening`)"
            )
        return cls.from_bytes(file.read_bytes(), name=f"the default whitening of {backbone}")


def fit_conditions(settings: EncoderSettings) -> dict[str, object]:
    """Return the settings that the vectors before whitening depend on."""
    values = settings.to_dict()
    return {name: values[name] for name in _FITTED_AT}


def _cut(whitening: FittedWhitening, dim: int, power: float) -> FittedWhitening:
    tensors = whitening.to_tensors(dtype=torch.float16)
    return FittedWhitening.from_tensors(
        {
            **tensors,
            "components": tensors["components"][:dim],
            "explained_variance": tensors["explained_variance"][:dim],
            "power": torch.tensor(power, dtype=torch.float64),
        }
    )
