"""The figures that the papers report, mAP on Oxford5k, Paris6k, Oxford105k and Paris106k.

From Jimenez, Alvarez, Giro-i-Nieto (BMVC 2017): its tables 1a, 1b, 2a and 2b, and of the others
what those tables quote. None of them was measured here.
"""

from __future__ import annotations

DATASETS = ("oxford5k", "paris6k", "oxford105k", "paris106k")

FIGURES: dict[str, tuple[float, ...]] = {
    "Raw": (0.396, 0.526),
    "Raw + CroW": (0.420, 0.549),
    "Raw + PCA": (0.589, 0.662),
    "Raw + CroW + PCA": (0.607, 0.685),
    "OfA 64": (0.712, 0.805, 0.672, 0.733),
    "OnA 64": (0.736, 0.855),
    "resnet50 raw": (0.389, 0.508),
    "resnet50 OfA 64": (0.699, 0.804),
    "densenet161 raw": (0.339, 0.495),
    "densenet161 OfA 64": (0.695, 0.799),
    "OfA 64 + QE 10": (0.730, 0.836, 0.712, 0.791),
    "OnA 64 + QE 10": (0.760, 0.873),
    "OfA 64 + R 100 + QE 10": (0.773, 0.838, 0.750, 0.780),
    "OnA 64 + R 100 + QE 10": (0.780, 0.874),
    "OfA 64 + R 1000 + QE 5": (0.801, 0.855, 0.769, 0.800),
    "OnA 64 + R 1000 + QE 5": (0.811, 0.874),
    "SPoC": (0.531,),
    "uCroW": (0.666, 0.767),
    "CroW": (0.682, 0.796),
    "R-MAC": (0.669, 0.830),
    "BoW": (0.738, 0.820),  # of 25,000 words
    "Razavian": (0.843, 0.853),
}
"""Method to mAP, in the order of `DATASETS`, as far as it was reported."""

SECONDS = {"Raw + PCA": 0.5, "1": 0.5, "8": 0.6, "32": 0.9, "64": 1.5}
"""Seconds an image by number of class maps, on the authors' GPU (table 1b)."""

_NETWORK = "vgg16"  # of all rows that name none


def published(method: str, backbone: str = _NETWORK) -> tuple[float, ...]:
    """Return the paper's figures for a method on a network; () where it reports none.

    VGG-16's stand beside any network that the paper did not try.
    """
    return FIGURES.get(f"{backbone} {method}", FIGURES.get(method, ()))


def in_words(figures: tuple[float, ...]) -> str:
    """Return figures as tables show them: Oxford5k / Paris6k / Oxford105k / Paris106k."""
    return " / ".join(f"{value:.3f}".lstrip("0") for value in figures)
