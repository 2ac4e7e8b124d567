"""Eq. 1: which classes an image shows, and where (class activation maps)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cwf_milvus.errors import SettingsError
from cwf_milvus.method.sending import sent


def top_classes(
    logits: Tensor, n: int, classes: Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the n most likely classes of each image, the most likely first.

    Ranked by logit, since a softmax that has collapsed to 0 ranks nothing; of equal logits the
    lower class id (or the earlier of `classes`) comes first, on every device.

    Args:
        logits: of shape (B, C).
        n: how many, from 1 to C (or to the number of `classes`).
        classes: choose among these ids only, a predefined list; None for all C.

    Returns:
        Class ids of shape (B, n), int64, and their softmax over all C classes, of the same shape.

    Raises:
        SettingsError: n is out of range, or `classes` holds an id twice or one that is not in
            0..C-1.
    """
    n_classes = logits.shape[1]
    scores = logits.float().softmax(dim=1)
    candidates = torch.arange(n_classes, device=logits.device)
    if classes is not None:
        candidates = torch.as_tensor(classes).long().flatten()  # checked where they are
        unknown = candidates[(candidates < 0) | (candidates >= n_classes)].tolist()
        if unknown:
            raise SettingsError(
                f"class {unknown[0]} is not known to this network: its ids go from 0 to "
                f"{n_classes - 1}"
            )
        if len(candidates.unique()) != len(candidates):
            raise SettingsError(f"the list of {len(candidates)} classes names one twice")
    if not 1 <= n <= len(candidates):
        raise SettingsError(
            f"{n} classes were asked of {len(candidates)}: give a number from 1 to "
            f"{len(candidates)}"
        )
    candidates = sent(candidates, logits.device)
    order = logits[:, candidates].sort(dim=1, descending=True, stable=True).indices[:, :n]
    ids = candidates[order]
    return ids, scores.gather(1, ids)


def class_activation_maps(
    class_source: Tensor, weights: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Return the class activation maps ``CAM_c = sum_m w[c, m] * G[m]``, Eq. 1, normalised.

    Each map is divided by its maximum, then negatives are clamped to 0, then it is resized
    (bilinear) to the feature grid. A map whose maximum is not above 0 is all zeros.

    Args:
        class_source: G of shape (B, M, H', W').
        weights: w of shape (B, N, M), one row a class.
        size: (H, W) of the feature grid; None to keep (H', W').

    Returns:
        Maps of shape (B, N, H, W), in [0, 1].
    """
    height, width = class_source.shape[2:]
    maps = torch.bmm(weights, class_source.flatten(2))
    peak = maps.amax(dim=2, keepdim=True)
    maps = maps.clamp_min_(0).div_(torch.where(peak > 0, peak, 1))
    maps = maps.unflatten(2, (height, width))
    if size is None or tuple(size) == (height, width):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
