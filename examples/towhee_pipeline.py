"""Towhee: index and search with ready pipelines, then describe a photo with one of our own.

python examples/towhee_pipeline.py PHOTOS QUERY X1,Y1,X2,Y2
"""

import sys

import numpy as np
from towhee import AutoConfig, AutoPipes, ops, pipe

import cwf_milvus.towhee  # noqa: F401  registers operators and pipelines

URI, COLLECTION = "towhee.db", "photos"


def index(photos: str) -> None:
    """Store photos, in batches; a bad one is told, and ends nothing."""
    config = AutoConfig.load_config("cwf_image_index", uri=URI, collection=COLLECTION)
    for photo_id, error in AutoPipes.pipeline("cwf_image_index", config=config)(photos).to_list():
        print(photo_id, error or "stored")


def search(query: str, box: str) -> None:
    """Find the thing in the box, and where in each hit it is."""
    config = AutoConfig.load_config(
        "cwf_image_search",
        uri=URI,
        collection=COLLECTION,
        limit=5,
        rerank="regions",
        output_fields=("box",),
    )
    (hits,) = AutoPipes.pipeline("cwf_image_search", config=config)(query, box).get()
    for photo_id, score, found_at in hits:
        print(f"{score:.3f}  {photo_id}  {[round(x) for x in found_at]}")


def describe(photo: str) -> np.ndarray:
    """Return a photo's descriptor, step by step: maps, vectors, whitening."""
    steps = (
        pipe.input("image")
        .map(
            "image",
            ("features", "class_maps", "class_ids"),
            ops.cwf.cam_vgg_embed("efficientnet_lite0", n_classes=32),
        )
        .map(
            ("features", "class_maps"),
            ("class_vectors", "region_vectors"),
            ops.cwf.class_weight_pool(region_levels=(1, 2, 3, 4)),
        )
        .map(
            ("class_vectors", "region_vectors"),
            "descriptor",
            ops.cwf.pca_whiten(f"{URI}#{COLLECTION}"),
        )
        .output("descriptor")
    )
    (descriptor,) = steps(photo).get()
    return descriptor


if __name__ == "__main__":
    index(sys.argv[1])
    search(sys.argv[2], sys.argv[3])
    print("descriptor:", describe(sys.argv[2]).shape)
