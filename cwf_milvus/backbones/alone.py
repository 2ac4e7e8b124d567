"""The host program's torch modes kept out of a computation of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def alone() -> Iterator[None]:
    """Compute inside as in a program of our own, whatever the caller has set.

    Automatic mixed precision, inference mode and another default dtype of the caller's would give
    other vectors under the same fingerprint, or tensors that cannot be used outside. The default
    dtype is the whole process's, so it is changed only where it has to be.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # what was not imported has no modes, and takes seconds to import
        yield
        return
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        before = torch.get_default_dtype()
        if before != torch.float32:
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.no_grad())
        yield


def _one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


# OpenMP's threads do not come along into a forked child, which would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)
