"""The operators and two pipelines for Towhee 1.1.3; the only module that imports it.

Importing this registers ``ops.cwf.cam_vgg_embed`` and its five fellows, and
``AutoPipes.pipeline("cwf_image_index")`` and ``"cwf_image_search"`` with their ``AutoConfig``.
Towhee shares an operator among all threads of a pipeline, and what is asked for alike is shared by
all pipelines of a process, so that a network is in memory once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from towhee import AutoConfig, AutoPipes, ops, pipe, register
from towhee.operator import NNOperator
from towhee.runtime.auto_config import set_config_name
from towhee.runtime.auto_pipes import set_pipe_name
from towhee.runtime.runtime_pipeline import RuntimePipeline

from cwf_milvus import operators
from cwf_milvus.errors import ImageError
from cwf_milvus.photos.listing import list_photos
from cwf_milvus.search.registry import AUTO, NONE

AUTHOR = "cwf"
# Towhee's nodes wait for one another in a pool of threads: with fewer threads than the nodes of
# all calls under way, a long input stands still.
_THREADS = 64


def _registered(name: str, core: type[operators.Operator]) -> Any:
    """Return a core as a Towhee operator, known by its name."""
    signature = inspect.signature(core)

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        NNOperator.__init__(self)
        given = signature.bind(*args, **options)
        configured = "device" in signature.parameters and self._device_id >= 0
        if configured and given.arguments.get("device") is None:
            given.arguments["device"] = f"cuda:{self._device_id}"
        core.__init__(self, *given.args, **given.kwargs)

    about = {
        "__init__": __init__,
        "__doc__": core.__doc__,
        "__module__": __name__,
        "__signature__": signature,
    }
    made = type(core.__name__, (core, NNOperator), about)
    return register(name=f"{AUTHOR}/{name}")(made)


CamVggEmbed = _registered("cam_vgg_embed", operators.CamVggEmbed)
ClassWeightPool = _registered("class_weight_pool", operators.ClassWeightPool)
PcaWhiten = _registered("pca_whiten", operators.PcaWhiten)
CamRerank = _registered("cam_rerank", operators.CamRerank)
InstanceInsert = _registered("instance_insert", operators.InstanceInsert)
InstanceSearch = _registered("instance_search", operators.InstanceSearch)


@dataclass
class ImageIndexConfig:
    """What ``AutoPipes.pipeline("cwf_image_index")`` is made with.

    Attributes:
        uri: a path that ends in ``.db``, or ``http(s)://host:port``.
        collection: its name; made if it is not there.
        encoder: of a collection to be made: a backbone's name, or a saved encoder's folder.
        batch_size: photos handed to the operator at a time, which encodes them in batches.
        device: the number of a GPU, -1 for the CPU, a name such as "cuda:1", or None for the GPU
            where there is one.
    """

    uri: str = "photos.db"
    collection: str = "photos"
    encoder: str = "efficientnet_lite0"
    batch_size: int = 64
    device: int | str | None = None


@dataclass
class ImageSearchConfig:
    """What ``AutoPipes.pipeline("cwf_image_search")`` is made with.

    Attributes:
        uri: as in `ImageIndexConfig`.
        collection: its name.
        limit: rows for a query.
        filter: a Milvus filter expression.
        output_fields: what follows id and score in a row; see `InstanceSearch`.
        rerank: as in `InstanceCollection.search`; None for the order of the descriptors.
        expand: the same; 0 for none.
        device: as in `ImageIndexConfig`.
    """

    uri: str = "photos.db"
    collection: str = "photos"
    limit: int = 10
    filter: str | None = None
    output_fields: Sequence[str] = ()
    rerank: str | None = AUTO
    expand: int | str = AUTO
    device: int | str | None = None


def image_index(config: ImageIndexConfig | None = None) -> RuntimePipeline:
    """Return the pipeline from photos (a folder, glob, url or list) to rows of id and error."""
    chosen = config or ImageIndexConfig()
    insert = ops.cwf.instance_insert(
        chosen.uri, chosen.collection, encoder=chosen.encoder, device=_device(chosen.device)
    )
    size = chosen.batch_size
    return _running(
        pipe.input("photos")
        .flat_map("photos", "photo", _each)
        .window("photo", ("ids", "errors"), size, size, insert)
        .flat_map(("ids", "errors"), ("id", "error"), zip)
        .output("id", "error")
    )


def image_search(config: ImageSearchConfig | None = None) -> RuntimePipeline:
    """Return the pipeline from a query photo and a box to a list of rows.

    The box of a whole photo is "": Towhee passes no None on, and would give no answer.
    """
    chosen = config or ImageSearchConfig()
    search = ops.cwf.instance_search(
        chosen.uri,
        chosen.collection,
        limit=chosen.limit,
        filter=chosen.filter,
        output_fields=tuple(chosen.output_fields),
        device=_device(chosen.device),
        rerank=chosen.rerank or NONE,
        expand=chosen.expand or NONE,
    )
    return _running(pipe.input("image", "box").map(("image", "box"), "hits", search).output("hits"))


def _each(photos: object) -> Iterator[object]:
    """Yield the photos that an input names; images, and what is not there, as they are."""
    for one in photos if isinstance(photos, list | tuple) else [photos]:
        try:
            yield from list_photos([one]) if isinstance(one, str) else [one]
        except ImageError:  # for the operator to say, as of any bad photo
            yield one


def _running(made: RuntimePipeline) -> RuntimePipeline:
    running = RuntimePipeline(made.dag_repr, max_workers=_THREADS)
    running.preload()
    return running


def _device(device: int | str | None) -> str | None:
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return device


for _name, _config, _pipeline in (
    ("cwf_image_index", ImageIndexConfig, image_index),
    ("cwf_image_search", ImageSearchConfig, image_search),
):
    with set_config_name(_name):
        AutoConfig.register(_config)
    with set_pipe_name(_name):
        AutoPipes.register(_pipeline)
