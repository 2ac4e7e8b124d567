"""Time of class weighting over the bare forward pass, as ratios from one run.

    python benchmarks/overhead.py [--batch 4] [--rounds 9] [--classes 64]

Class weighting is everything from the network's output to the descriptor: class maps, class
vectors, whitening, aggregation. Forward pass and class weighting are timed in turn, and the
median of the ratios of neighbours is shown, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from figures import show

from cwf_milvus.backbones import create_backbone
from cwf_milvus.encode.settings import default_settings
from cwf_milvus.method import aggregation, cam, pooling
from cwf_milvus.method.whitening import Whitening

CASES = (
    ("vgg16_cam", "random", (720, 1024), "<= 3 %"),
    ("vgg16", "random", (720, 1024), "<= 6 %"),
    ("efficientnet_lite0", None, (480, 640), "<= 6 %"),
)


def fitted(n_features: int, dim: int) -> Whitening:
    generator = torch.Generator().manual_seed(0)
    return Whitening(dim).fit(torch.rand((4 * dim, n_features), generator=generator))


@torch.no_grad()
def measure(
    name: str, weights: str | None, size: tuple[int, int], batch: int, rounds: int, classes: int
) -> dict[str, float]:
    backbone = create_backbone(name, weights=weights)
    sync = torch.cuda.synchronize if backbone.device.type == "cuda" else lambda: None
    dim = default_settings(name).dim
    whitening = fitted(backbone.n_features, dim)
    images = (torch.rand((batch, 3, *size)) * 255).to(torch.uint8).to(backbone.device)
    ratios, forwards, weightings = [], [], []
    for round_ in range(rounds + 1):
        sync()
        start = time.perf_counter()
        maps = backbone(images)
        sync()
        middle = time.perf_counter()
        ids, _ = cam.top_classes(maps.logits, classes)
        class_maps = cam.class_activation_maps(
            maps.class_source, maps.class_weights(ids), tuple(maps.features.shape[-2:])
        )
        vectors = pooling.class_vectors(maps.features, class_maps)
        aggregation.offline(whitening.transform(vectors))
        sync()
        end = time.perf_counter()
        if round_:  # the first warms up
            forwards.append(middle - start)
            weightings.append(end - middle)
            ratios.append((end - middle) / (middle - start))
    return {
        "forward pass, ms an image": statistics.median(forwards) / batch * 1000,
        "class weighting, ms an image": statistics.median(weightings) / batch * 1000,
        "ratio": statistics.median(ratios),
        "least ratio": min(ratios),
        "largest ratio": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--classes", type=int, default=64)
    print(f"{torch.get_num_threads()} threads")
    show(overhead(**vars(parser.parse_args())))


def overhead(
    batch: int = 4, rounds: int = 9, classes: int = 64, cases: int = len(CASES)
) -> dict[str, float]:
    """Return class weighting's share of the forward pass: median, least and largest; and both, ms.

    Args:
        batch: images at once.
        rounds: of both.
        classes: of each image.
        cases: so many of `CASES`, the last ones.
    """
    warnings.simplefilter("ignore")
    found = {}
    for name, weights, size, bar in CASES[-cases:]:
        figures = measure(name, weights, size, batch, rounds, classes)
        title = f"{name} {size[1]}x{size[0]}"
        found[f"{title}: weighting over forward pass ({bar})"] = figures.pop("ratio")
        found |= {f"{title}: {what}": value for what, value in figures.items()}
    return found


if __name__ == "__main__":
    main()
