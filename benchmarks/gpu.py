"""Encoding on a GPU: the network, class weighting on top of it, and from files to encodings.

    python benchmarks/gpu.py PHOTOS [--device cuda] [--dtype bfloat16] [--batch 32] [--quick]

VGG-16 (random weights: the time is the same) on views of 1024 x 720 that lie on the device; then
the same with class maps, class vectors, whitening and aggregation; then photos from JPEG files, by
the default network. `--quick` is for trying the command where there is no GPU: fewer and smaller.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from figures import show

from cwf_milvus.encode.describe import on_device
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.views import Prepared
from cwf_milvus.photos.listing import list_photos


def gpu_speed(
    photos: Sequence[str],
    device: str = "cuda",
    dtype: str = "float32",
    batch: int = 32,
    quick: bool = False,
) -> dict[str, float]:
    """Return images a second, and the shares of class weighting and of decoding."""
    height, width, rounds = (96, 128, 1) if quick else (720, 1024, 10)
    encoder = Encoder(
        "vgg16",
        weights="random",
        whitening=None,
        device=device,
        network_dtype=dtype,  # type: ignore[arg-type]
        image_size=width,
        class_image_size=None,
        keypoints=0,
    )
    there = torch.device(device)
    view = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    views = torch.stack([view] * batch).to(there)
    prepared = [Prepared(view, None, f"{i}", "", width, height) for i in range(batch)]

    def network() -> None:
        encoder.backbone(views)

    def weighted() -> None:
        on_device(encoder.local_vectors(prepared), encoder.whitenings, encoder.settings)

    with torch.no_grad():
        bare = seconds(network, there, rounds)
        whole = seconds(weighted, there, rounds)
    found = {
        "VGG-16, images/s in the network": batch / bare,
        "class weighting and sending over the network": whole / bare - 1,
    }
    ours = Encoder(device=device, network_dtype=dtype, batch_size=batch)  # type: ignore[arg-type]
    some = list(photos)[: 8 if quick else 1000]
    spent = {}
    for what, run in (
        ("from files to encodings", lambda: ours.encode(some)),
        ("reading and resizing alone", lambda: [ours.prepare(ours.read(one)) for one in some]),
    ):
        start = time.perf_counter()
        run()
        spent[what] = time.perf_counter() - start
        found[f"default network, {what}, photos/s"] = len(some) / spent[what]
    return found


def seconds(run: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Return the median of some rounds, the first not counted, each waited for."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of JPEG files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="to try the command, on any device")
    options = parser.parse_args()
    photos = list_photos([options.photos])
    show(gpu_speed(photos, options.device, options.dtype, options.batch, options.quick))


if __name__ == "__main__":
    main()
