"""The network of this package over plain eager PyTorch, one photo at a time, as notebooks run it.

    python benchmarks/encoding_speed.py [--photos 16] [--rounds 3]

Both see the same two views of each photo (640 and 224 px), made beforehand: eager PyTorch is timm's
model as it is built, batches of one, `torch.no_grad()`. By the clock, and in processor seconds,
where threads that wait for each other's small products count too; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from figures import show

from cwf_milvus.backbones import create_backbone
from cwf_milvus.backbones.base import Backbone


def encoding_speed(photos: int = 16, rounds: int = 3) -> dict[str, float]:
    """Return how many times as fast each runtime is as eager PyTorch, batch 1."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (photos, 3, 480, 640), dtype=torch.uint8, generator=generator)
    small = torch.randint(0, 256, (photos, 3, 160, 224), dtype=torch.uint8, generator=generator)
    eager = timm.create_model("tf_efficientnet_lite0").eval()
    networks = {
        "PyTorch, batch 8": create_backbone(runtime="torch", device="cpu"),
        "runtime auto, batch 8": create_backbone(runtime="auto", device="cpu"),
        "runtime auto in bfloat16, batch 8": create_backbone(
            runtime="auto", device="cpu", network_dtype="bfloat16"
        ),
    }

    def plain() -> None:
        for view, other in zip(views, small, strict=True):
            eager.forward_features((view[None].float() - 127) / 128)
            eager((other[None].float() - 127) / 128)

    def ours(network: Backbone) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, photos, 8):
                network(views[start : start + 8])
                network.predict(small[start : start + 8])

        return run

    runs = {"eager": plain, **{name: ours(network) for name, network in networks.items()}}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter(), time.process_time()
                run()
                if turn:
                    ended = time.perf_counter(), time.process_time()
                    seconds[name].append((ended[0] - start[0], ended[1] - start[1]))
    found: dict[str, float] = {}
    for place, unit in enumerate(("clock", "processor")):
        spent = {name: statistics.median(took[place] for took in seconds[name]) for name in runs}
        eager_spent = spent.pop("eager")
        for name, one in spent.items():
            found[f"eager PyTorch over {name}, {unit}"] = eager_spent / one
        found[f"eager PyTorch, {unit} ms a photo"] = 1e3 * eager_spent / photos
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    show(encoding_speed(options.photos, options.rounds))


if __name__ == "__main__":
    main()
