"""Errors and warnings: what was wrong, which value, and what to do about it."""

_MOST = 200  # characters of a value in a message


def quoted(value: object) -> str:
    """Return a value from outside as a message shows it: escaped, and cut to 200 characters."""
    if isinstance(value, str | bytes | bytearray) and len(value) > _MOST:
        kind = "bytes" if isinstance(value, bytes | bytearray) else "characters"
        return f"{value[: _MOST // 2]!r}... ({len(value):,} {kind})"
    shown = repr(value)
    return shown if len(shown) <= 2 * _MOST else f"{shown[:_MOST]}... ({len(shown):,} characters)"


class CwfError(Exception):
    """Base of every error that cwf-milvus raises on purpose."""


class ImageError(CwfError, ValueError):
    """A photo that cannot be read or decoded, or is outside the size limits."""


class BoxError(CwfError, ValueError):
    """A box that is malformed, empty, or outside its image."""


class SettingsError(CwfError, ValueError):
    """A setting or argument with a value that cannot work."""


class WeightsError(CwfError):
    """Network weights that are missing, unsafe, damaged, or of another network."""


class WhiteningError(CwfError, ValueError):
    """A whitening that is missing, was fitted on too little, or is of another dimension."""


class MismatchError(CwfError):
    """An encoder and a collection (or file) that were not made for each other."""


class CollectionError(CwfError):
    """A collection that is missing, already there, or damaged."""


class StoreError(CwfError):
    """Milvus cannot be reached, refuses, or failed half-way."""


class FilterError(CwfError, ValueError):
    """A Milvus filter expression that the server refused."""


class PhotoWarning(UserWarning):
    """What a decoder had to say of a photo that it read; starts with the photo's name."""


class BoxWarning(UserWarning):
    """A box that was cut to its photo, or is less than a cell of the features."""
