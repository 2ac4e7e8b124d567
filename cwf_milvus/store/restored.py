"""The encoder that a collection comes with, restored when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cwf_milvus.encode.class_names import keep_class_names, kept_class_names
from cwf_milvus.store.refusals import check_encoder
from cwf_milvus.store.sidecar import Sidecar

if TYPE_CHECKING:  # torch takes seconds, and much is done without it
    from cwf_milvus.encode.encoder import Encoder


class WithEncoder:
    """What `PhotoRows` has of its encoder.

    Attributes:
        name: of the collection.
        sidecar: what keeps the encoder.
    """

    name: str
    sidecar: Sidecar
    _restore: dict[str, Any]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that the collection was made with, restored from Milvus at first use.

        Raises:
            MismatchError: the network's weights to be had are not those it was made with.
            WeightsError: the network's weights are not to be had.
            CollectionError: the stored encoder is damaged.
        """
        from cwf_milvus.encode.encoder import Encoder  # torch takes seconds

        encoder = Encoder.from_state(self.sidecar.state(), **self._restore)
        check_encoder(encoder, self.sidecar.manifest, self.name)
        keep_class_names(encoder.fingerprint, encoder.class_names)
        return encoder

    @cached_property
    def class_names(self) -> Sequence[str]:
        """The names of the encoder's classes, in the order of their ids; no network is loaded.

        They are kept in the cache folder, once an encoder of this fingerprint was restored.
        """
        kept = kept_class_names(str(self.sidecar.manifest["fingerprint"]))
        return self.encoder.class_names if kept is None else kept
