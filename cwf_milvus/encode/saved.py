"""An encoder as small files: its settings and its whitening, without the network's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cwf_milvus.encode.settings import EncoderSettings, fingerprinted, settings_kept
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import SettingsError

SETTINGS_FILE = "settings.json"
WHITENING_FILE = "whitening.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """What the files say.

    Attributes:
        settings: of the encoder.
        weights: the checkpoint's path; None for the backbone's own source.
        weights_digest: SHA-256 of the weights, in hex.
        fingerprint: SHA-256 of all that can change a vector, in hex.
        whitenings: None for an encoder that goes without.
    """

    settings: EncoderSettings
    weights: str | None
    weights_digest: str
    fingerprint: str
    whitenings: Whitenings | None

    def with_keypoints(self, n: int) -> Saved:
        """Return what the files of the same encoder say that keeps n keypoints of a photo."""
        settings = replace(self.settings, keypoints=n)
        changed = fingerprint_of(settings, self.weights_digest, self.whitenings)
        return replace(self, settings=settings, fingerprint=changed)

    def to_files(self) -> dict[str, bytes]:
        """Return the files by name."""
        about = {
            "format": _FORMAT,
            "settings": self.settings.to_dict(),
            "weights_sha256": self.weights_digest,
            "weights": self.weights,
            "fingerprint": self.fingerprint,
        }
        files = {SETTINGS_FILE: json.dumps(about, indent=2).encode()}
        if self.whitenings is not None:
            files[WHITENING_FILE] = self.whitenings.to_bytes()
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], name: str = "the state") -> Saved:
        """Read what `to_files` gave.

        Args:
            files: by name.
            name: of the encoder, in an error.

        Raises:
            SettingsError: damaged, or of a newer version.
            WhiteningError: a damaged whitening.
        """
        try:
            about = json.loads(files[SETTINGS_FILE])
            settings = settings_kept(about["settings"])
            version = about["format"]
            fingerprint, digest = str(about["fingerprint"]), str(about["weights_sha256"])
            weights = about["weights"]
            if not isinstance(weights, str | None):
                raise TypeError(f"weights are {weights!r}")
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise SettingsError(
                f"{name} holds no encoder, it is not the state of an encoder "
                f"({repr(error)[:200]}): the settings are missing or damaged"
            ) from error
        if version != _FORMAT:
            raise SettingsError(
                f"an encoder of format {version!r}, this version reads {_FORMAT}: update cwf-milvus"
            )
        data = files.get(WHITENING_FILE)
        whitenings = None if data is None else Whitenings.from_bytes(data, name=name)
        return cls(settings, weights, digest, fingerprint, whitenings)


def fingerprint_of(
    settings: EncoderSettings, weights_digest: str, whitenings: Whitenings | None
) -> str:
    """Return SHA-256, in hex, of all that can change a vector: settings, weights, whitening."""
    what = {
        "settings": fingerprinted(settings),
        "weights": weights_digest,
        "whitening": whitenings.digest if whitenings else None,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def write_folder(files: Mapping[str, bytes], folder: str | Path) -> Path:
    """Write an encoder's files to a folder, in place of those of another; returns the folder.

    Raises:
        SettingsError: the folder cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / WHITENING_FILE).unlink(missing_ok=True)  # of another encoder saved before
        for name, data in files.items():
            (path / name).write_bytes(data)
    except OSError as error:
        raise SettingsError(
            f"cannot write the encoder to {str(folder)!r} ({error.strerror}): name a folder "
            "that can be written"
        ) from error
    return path


def is_encoder(folder: str | Path) -> bool:
    """Tell whether a folder holds a saved encoder."""
    return (Path(folder) / SETTINGS_FILE).is_file()


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """Return the files of a saved encoder.

    Raises:
        SettingsError: not the folder of an encoder.
    """
    path = Path(folder)
    if not is_encoder(path):
        raise SettingsError(
            f"no encoder in {str(folder)!r}: {SETTINGS_FILE} is missing; give a folder that "
            "`Encoder.save` wrote"
        )
    names = (SETTINGS_FILE, WHITENING_FILE)
    return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
