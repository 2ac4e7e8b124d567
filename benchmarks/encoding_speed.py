"""The network of this package over plain eager PyTorch, one photo at a time, as notebooks run it.

    python benchmarks/encoding_speed.py [--photos 16] [--rounds 3]

Both see the same two views of each photo (640 and 224 px), made beforehand: eager PyTorch is timm's
model as it is built, batches of one, `torch.no_grad()`. Processor seconds; medians of the rounds.
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
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.process_time()
                run()
                if turn:
                    seconds[name].append(time.process_time() - start)
    found = {name: statistics.median(spent) for name, spent in seconds.items()}
    base = found.pop("eager")
    ratios = {f"eager PyTorch over {name}": base / spent for name, spent in found.items()}
    return {**ratios, "eager PyTorch, processor ms a photo": 1e3 * base / photos}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    show(encoding_speed(options.photos, options.rounds))


if __name__ == "__main__":
    main()
