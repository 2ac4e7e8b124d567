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
import time
from itertools import islice
from pathlib import Path

import torch

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.photos.listing import list_photos


@torch.no_grad()
def forward_seconds(encoder: Encoder, ready: list) -> float:
    start = time.perf_counter()
    for views, class_views in ready:
        encoder.backbone(views.to(encoder.device))
        if class_views is not None:
            encoder.backbone.predict(class_views.to(encoder.device))
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def index_seconds(encoder: Encoder, photos: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "photos.db")
        with InstanceCollection.create(uri, "photos", encoder) as collection:
            start = time.perf_counter()
            report = collection.add(photos, progress=False)
            seconds = time.perf_counter() - start
            assert report.added == len(photos), report
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="PHOTOS", help="a folder of JPEG files")
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keypoints", type=int, default=EncoderSettings.keypoints)
    parser.add_argument("--runtime", default="auto", help="of the network")
    options = parser.parse_args()
    encoder = Encoder(keypoints=options.keypoints, runtime=options.runtime)
    photos = list(
        islice((p for p in list_photos(options.folder) if p.endswith(".jpg")), options.photos)
    )
    prepared = (encoder.prepare(encoder.read(photo)) for photo in photos)
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
    forward_seconds(encoder, ready[:2])
    for _ in range(options.rounds):
        forward = forward_seconds(encoder, ready)
        index = index_seconds(encoder, photos)
        ratios.append(forward / index)
        rates.append((len(photos) / forward, len(photos) / index))
    forward_rate, index_rate = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"{len(photos)} photos, {len(ready)} batches, device {encoder.device}")
    print(f"bare forward pass  {forward_rate:6.1f} photos/s")
    print(f"indexing           {index_rate:6.1f} photos/s")
    print(
        f"throughput         {statistics.median(ratios):6.1%} of the bare forward pass "
        f"({min(ratios):.1%} to {max(ratios):.1%})"
    )


if __name__ == "__main__":
    main()
