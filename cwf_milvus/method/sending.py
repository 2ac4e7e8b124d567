"""Tensors to the device that computes, and back, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; on a GPU it is copied while the GPU computes.

    The copy is from pinned memory, in a stream of its own, for which alone what comes next waits.

    Args:
        tensor: on the CPU, or on the device already.
        device: where to.
    """
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    if device.type != "cuda":
        return tensor.to(device, non_blocking=True)
    copies, current = _copying(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        there = tensor.pin_memory().to(device, non_blocking=True)
    current.wait_stream(copies)
    there.record_stream(current)  # its memory is the other stream's
    return there


def fetched(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors of one device to the CPU; what is returned waits, and gives them.

    Args:
        tensors: on the CPU they are given as they are.
    """
    if not tensors or tensors[0].device.type != "cuda":
        here = [tensor.cpu() for tensor in tensors]
        return lambda: here
    coming = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # to pinned memory
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensors[0].device))

    def arrived() -> list[Tensor]:
        done.synchronize()
        return coming

    return arrived


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
