"""`cwf-milvus index --ray`: the cluster that encodes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cwf_milvus.errors import SettingsError

if TYPE_CHECKING:  # --help need not wait for what reads photos
    from cwf_milvus.collection import InstanceCollection
    from cwf_milvus.index.indexing import Elsewhere


def elsewhere_of(collection: InstanceCollection, arguments: argparse.Namespace) -> Elsewhere:
    """Return what encodes by the cluster that the command line names."""
    if arguments.exif:
        raise SettingsError("--exif reads each photo here: give --ray without it")
    try:
        from cwf_milvus.ray import encoded_by_ray  # an extra, and takes seconds
    except ImportError as error:
        raise SettingsError(f"--ray needs Ray ({error}): pip install 'cwf-milvus[ray]'") from error
    return encoded_by_ray(
        collection.encoder,
        arguments.ray,
        workers=arguments.workers,
        max_pixels=arguments.max_pixels,
    )
