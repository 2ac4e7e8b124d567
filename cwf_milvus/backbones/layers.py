"""What is done to a network's layers: their outputs kept, their norms folded away."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class _Pass(threading.local):
    """What the forward pass of this thread keeps: one thread never sees another's maps."""

    kept: dict[nn.Module, Tensor] | None = None


_running = _Pass()


def keep_output(network: nn.Module, layer: str) -> None:
    """Have every later pass of a network within `kept_outputs` keep what a layer gives."""
    network.get_submodule(layer).register_forward_hook(_keep)


@contextmanager
def kept_outputs() -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what the layers of `keep_output` give while a network runs inside."""
    outer = _running.kept
    _running.kept = {} if outer is None else outer
    try:
        yield _running.kept
    finally:
        _running.kept = outer


def _keep(module: nn.Module, _inputs: object, output: Tensor) -> None:
    if _running.kept is not None:
        # A copy: the next layer may well work in place.
        _running.kept[module] = output.clone() if isinstance(output, Tensor) else output


def fold_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy with each batch norm folded into the convolution whose output it takes.

    A third less time on a CPU. What a norm's module does behind the norm (timm's activation)
    stays, under its own name.
    """
    network = copy.deepcopy(network)
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[str, nn.BatchNorm2d, nn.Conv2d]] = []

    def note_output(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(convolution, nn.Conv2d)
        outputs[id(output)] = convolution, output

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:

            def note_pair(norm: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                assert isinstance(norm, nn.BatchNorm2d)
                if id(inputs[0]) in outputs:
                    pairs.append((name, norm, outputs[id(inputs[0])][0]))

            handles.append(module.register_forward_pre_hook(note_pair))
    network(images)
    for handle in handles:
        handle.remove()
    for name, norm, convolution in pairs:
        if norm._forward_hooks or convolution._forward_hooks:
            continue  # one of both outputs is wanted as it is
        assert norm.running_mean is not None
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        network.set_submodule(name, nn.Sequential(OrderedDict(norm.named_children())))
    return network.requires_grad_(False)
