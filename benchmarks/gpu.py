"""Encoding on a GPU: the network, class weighting on top of it, and from files to encodings.

    python benchmarks/gpu.py PHOTOS [--device cuda] [--dtype bfloat16] [--batch 32] [--limit 1000]
        [--quick]

VGG-16 (random weights: the time is the same) on views of 1024 x 720 that lie on the device; then
the same with class maps, class vectors, whitening and aggregation; what sending the views costs on
top; then photos from JPEG files, by the default network, read and resized ahead by a thread a core,
as `index` does it, by as many threads alone, and by as many processes. `--quick` is for trying the
command where there is no GPU: fewer and smaller.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from figures import show

from cwf_milvus.encode.batching import batches
from cwf_milvus.encode.describe import on_device
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.keypoints import extract_keypoints
from cwf_milvus.encode.settings import EncoderSettings
from cwf_milvus.encode.views import Prepared, prepare
from cwf_milvus.index.indexing import worker_count
from cwf_milvus.photos.images import load_image
from cwf_milvus.photos.listing import list_photos


def gpu_speed(
    photos: Sequence[str],
    device: str = "cuda",
    dtype: str = "float32",
    batch: int = 32,
    quick: bool = False,
    limit: int = 1000,
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
    lying = [Prepared(one, None, f"{i}", "", width, height) for i, one in enumerate(views)]

    def network() -> None:
        encoder.backbone(views)

    def weighted(batch: Sequence[Prepared]) -> None:
        on_device(encoder.local_vectors(batch), encoder.whitenings, encoder.settings)

    with torch.no_grad():
        bare = seconds(network, there, rounds)
        whole = seconds(partial(weighted, lying), there, rounds)
        with_sending = seconds(partial(weighted, prepared), there, rounds)
    found = {
        "VGG-16, images/s in the network": batch / bare,
        "class weighting over the network": whole / bare - 1,
        "sending the views over both": with_sending / whole - 1,
    }
    some = list(photos)[:limit]
    for keypoints in (0, EncoderSettings.keypoints):
        ours = Encoder(
            device=device,
            network_dtype=dtype,  # type: ignore[arg-type]
            batch_size=batch,
            keypoints=keypoints,
        )
        for what, n in reading(some, ours, 1 if quick else 3).items():
            found[f"{keypoints} keypoints, {what}, photos/s"] = n
    return found


def reading(photos: Sequence[str], encoder: Encoder, rounds: int) -> dict[str, float]:
    """Return photos a second from files to encodings, and of reading and resizing alone."""
    n = worker_count()
    read = partial(ready, settings=encoder.settings, stride=encoder.backbone.stride)
    made: dict[str, list[float]] = {}
    with (
        ThreadPoolExecutor(n) as threads,
        ProcessPoolExecutor(
            n, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as processes,
    ):

        def encoded() -> None:
            ahead = in_turn(threads, read, photos, 2 * n + 2 * encoder.batch_size)
            lists = batches(ahead, encoder.batch_size, lambda one: one.grid)
            deque(encoder.encode_batches(lists), maxlen=0)

        runs: dict[str, Callable[[], object]] = {
            "files to encodings": encoded,
            f"reading alone by {n} threads": lambda: deque(threads.map(read, photos), maxlen=0),
            f"reading alone by {n} processes": lambda: deque(
                processes.map(partial(ready_arrays, read), photos), maxlen=0
            ),
        }
        for turn in range(rounds + 1):  # in turn; the first warms up
            for what, run in runs.items():
                start = time.perf_counter()
                run()
                if turn:
                    made.setdefault(what, []).append(len(photos) / (time.perf_counter() - start))
    return {what: statistics.median(speeds) for what, speeds in made.items()}


def ready(photo: str, settings: EncoderSettings, stride: int) -> Prepared:
    """Read and resize a photo, with its keypoints, as `Encoder.prepare` does."""
    image = load_image(photo, at_least=settings.at_least)
    made = prepare(image, settings, stride)
    if settings.keypoints:
        extract_keypoints(image.pixels, image.width, image.height, settings.keypoints)
    return made


def ready_arrays(read: Callable[[str], Prepared], photo: str) -> list[np.ndarray | None]:
    """Return a photo's views as another process sends them, by a pipe."""
    made = read(photo)
    return [None if view is None else view.numpy() for view in (made.view, made.class_view)]


def in_turn(
    pool: Executor, read: Callable[[str], Prepared], photos: Sequence[str], ahead: int
) -> Iterator[Prepared]:
    """Yield photos in order, so many of them read ahead."""
    rest = iter(photos)
    waiting = deque(pool.submit(read, photo) for photo in itertools.islice(rest, ahead))
    while waiting:
        made = waiting.popleft().result()
        waiting.extend(pool.submit(read, photo) for photo in itertools.islice(rest, 1))
        yield made


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
    parser.add_argument("--limit", type=int, help="of photos from files (1000; quick 8)")
    parser.add_argument("--quick", action="store_true", help="to try the command, on any device")
    options = parser.parse_args()
    photos = list_photos([options.photos])
    limit = options.limit or (8 if options.quick else 1000)
    show(gpu_speed(photos, options.device, options.dtype, options.batch, options.quick, limit))


if __name__ == "__main__":
    main()
