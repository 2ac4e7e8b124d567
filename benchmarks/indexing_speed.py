"""Indexing, from JPEG files to Milvus Lite, over the bare forward pass on the same photos.

    python benchmarks/indexing_speed.py PHOTOS [--photos 96] [--rounds 3] [--keypoints 0]

The bare forward pass is the network alone, on views that are resized and stacked beforehand: the
features' view and the classes' view of each photo, in the batches that indexing forms. Both are
timed in turn, and the median of the ratios of neighbours is shown. Building the index of the
search is not part of either.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import islice
from pathlib import Path

import torch
from figures import seconds, show

from cwf_milvus.backbones.kept import Runtime
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.photos.listing import list_photos


@torch.no_grad()
def forward(encoder: Encoder, ready: list) -> None:
    for views, class_views in ready:
        encoder.backbone(views.to(encoder.device))
        if class_views is not None:
            encoder.backbone.predict(class_views.to(encoder.device))
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()


def index_seconds(encoder: Encoder, photos: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "photos.db")
        with InstanceCollection.create(uri, "photos", encoder) as collection:
            spent = seconds(lambda: collection.add(photos, progress=False))
            assert collection.count() == len(photos)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of JPEG files")
    parser.add_argument("--photos", dest="n", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keypoints", type=int, default=EncoderSettings.keypoints)
    parser.add_argument("--runtime", default="auto", help="of the network")
    show(indexing_speed(**vars(parser.parse_args())))


def indexing_speed(
    photos: str,
    n: int = 96,
    rounds: int = 3,
    keypoints: int = EncoderSettings.keypoints,
    runtime: Runtime = "auto",
) -> dict[str, float]:
    """Return photos a second of both, and the median, least and largest share of the bare pass."""
    encoder = Encoder(keypoints=keypoints, runtime=runtime)
    files = list(islice((p for p in list_photos(photos) if p.endswith(".jpg")), n))
    prepared = (encoder.prepare(encoder.read(photo)) for photo in files)
    ready = [
        (
            torch.stack([one.view for one in batch]),
            None
            if batch[0].class_view is None
            else torch.stack([one.class_view for one in batch if one.class_view is not None]),
        )
        for batch in batches(prepared, encoder.batch_size, lambda one: one.grid)
    ]
    ratios, rates = [], []
    forward(encoder, ready[:2])
    for _ in range(rounds):
        bare = seconds(lambda: forward(encoder, ready))
        index = index_seconds(encoder, files)
        ratios.append(bare / index)
        rates.append((len(files) / bare, len(files) / index))
    forward_rate, index_rate = (statistics.median(rate) for rate in zip(*rates, strict=True))
    return {
        "bare forward pass, photos/s": forward_rate,
        "indexing, photos/s": index_rate,
        "indexing over the bare forward pass": statistics.median(ratios),
        "least ratio": min(ratios),
        "largest ratio": max(ratios),
    }


if __name__ == "__main__":
    main()
