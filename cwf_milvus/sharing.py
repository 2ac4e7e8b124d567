"""One network and one connection for all who ask alike, let go with their last user."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder, EncoderOptions
from cwf_milvus.encode.saved import SETTINGS_FILE
from cwf_milvus.errors import SettingsError

T = TypeVar("T")
_OF_A_SAVED_ENCODER = {"weights", "device", "batch_size"}


class _Shared(Generic[T]):
    """Makes a thing once for each key; holds it no longer than its users do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: weakref.WeakValueDictionary[str, T] = weakref.WeakValueDictionary()

    def get(self, key: object, make: Callable[[], T]) -> T:
        with self._lock:
            thing = self._things.get(repr(key))
            if thing is None:
                thing = self._things[repr(key)] = make()
            return thing


_encoders: _Shared[Encoder] = _Shared()
_collections: _Shared[InstanceCollection] = _Shared()


def shared_encoder(
    name: str | Path = "efficientnet_lite0", **options: Unpack[EncoderOptions]
) -> Encoder:
    """Return the encoder that all in this process share who ask for it alike.

    Args:
        name: a backbone's name, or a folder that `Encoder.save` wrote.
        options: of `Encoder`; of a saved one only weights, device and batch_size.

    Raises:
        SettingsError: an unknown name or option, or one that a saved encoder has already.
        WeightsError: no weights to be had, or damaged ones.
    """
    given: Any = {key: value for key, value in options.items() if value is not None}
    if "whitening" in options:  # here None says something: without one
        given["whitening"] = options["whitening"]
    settings_file = Path(name) / SETTINGS_FILE
    if not settings_file.is_file():
        return _encoders.get(
            (str(name), sorted(given.items())), lambda: Encoder(str(name), **given)
        )
    fixed = sorted(set(given) - _OF_A_SAVED_ENCODER)
    if fixed:
        raise SettingsError(
            f"{', '.join(fixed)} given for the saved encoder {str(name)!r}: it has its own"
        )
    key = (str(settings_file.resolve()), settings_file.stat().st_mtime_ns, sorted(given.items()))
    return _encoders.get(key, lambda: Encoder.load(name, **given))


def shared_collection(
    uri: str | Path,
    name: str,
    *,
    create_with: str | Path | None = None,
    device: str | None = None,
) -> InstanceCollection:
    """Return the open collection that all in this process share; closed with its last user.

    A server's token is read from the environment variable MILVUS_TOKEN: frameworks print the
    arguments of what they build, and a token must not be among them.

    Args:
        uri: a path that ends in ``.db``, or ``http(s)://host:port``.
        name: the collection's name.
        create_with: the encoder of a collection that is not there yet, a backbone's name or a
            saved encoder's folder; None to refuse one.
        device: where the network runs; None for the GPU where there is one.

    Raises:
        StoreError: Milvus cannot be reached, or refuses.
        CollectionError: there is no such collection, or it is damaged.
    """
    token = os.environ.get("MILVUS_TOKEN")

    def make() -> InstanceCollection:
        if create_with is None or InstanceCollection.exists(uri, name, token=token):
            collection = InstanceCollection.open(uri, name, token=token, device=device)
        else:
            encoder = shared_encoder(create_with, device=device)
            collection = InstanceCollection.create(uri, name, encoder, token=token, exist_ok=True)
        weakref.finalize(collection, collection.store.close)
        return collection

    return _collections.get((_place(uri), name, device), make)


def _place(uri: str | Path) -> str:
    text = str(uri)
    return text if "://" in text else str(Path(text).absolute())
