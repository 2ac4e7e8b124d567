"""DecomposeMe: convolutions as pairs of one-dimensional ones (Alvarez and Petersson, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from cwf_milvus.backbones.pooled import PooledClassifier, Split
from cwf_milvus.backbones.weights import RANDOM, fill, load_state_dict, seeded
from cwf_milvus.errors import WeightsError

NAME = "decomposeme"
_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED_AFTER = (0, 1, 3, 5)  # halved behind these: with the stem, a stride of 32


class DecomposedConvolution(nn.Sequential):
    """A k x k convolution as k x 1, ReLU, 1 x k, ReLU: 2k weights a pair of channels, not k^2.

    Args:
        n_in: channels of the input.
        n_out: channels of both convolutions' outputs.
        size: k, odd.
    """

    def __init__(self, n_in: int, n_out: int, size: int = 3) -> None:
        margin = size // 2
        super().__init__(
            nn.Conv2d(n_in, n_out, (size, 1), padding=(margin, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, (1, size), padding=(0, margin)),
            nn.ReLU(inplace=True),
        )


class DecomposeMe(nn.Module):
    """Eight decomposed convolutions, the mean of their maps, and a linear classifier.

    The fourth network of the paper's figure 2. The pairs are the authors'; no weights of theirs
    are published, and the number of layers and channels follows their text loosely, so that a
    checkpoint has to be one that was trained with this module.
    """

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [DecomposedConvolution(3, _CHANNELS[0], 7), nn.MaxPool2d(2)]
        before = _CHANNELS[0]
        for i, channels in enumerate(_CHANNELS):
            layers.append(DecomposedConvolution(before, channels))
            if i in _POOLED_AFTER:
                layers.append(nn.MaxPool2d(2))
            before = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C) for normalised images of shape (B, 3, h, w)."""
        return self.classifier(self.features(images).mean((2, 3)))


def build_decomposeme(
    layer: str | None = None,
    weights: str | Path | None = None,
    class_names: Sequence[str] = (),
) -> PooledClassifier:
    """Build DecomposeMe with random weights, or with a checkpoint of one's own.

    Args:
        layer: as in `create_backbone`; None for the last maps, K = 512 at stride 32.
        weights: a checkpoint with this module's names; ``"random"`` for seeded ones.
        class_names: C names, in the order of the logits; () for 1000 numbered ones.

    Raises:
        WeightsError: no weights were given, or those of another network.
        SettingsError: a layer that there is not.
    """
    names = tuple(class_names) or tuple(f"class {i}" for i in range(1000))
    with seeded():
        network = DecomposeMe(len(names))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if weights != RANDOM:
        if weights is None or not Path(weights).expanduser().is_file():
            raise WeightsError(
                f"no weights to be had for {NAME!r}: none were published; pass a checkpoint that "
                f"you trained with --weights FILE, and {str(weights)!r} is no file"
            )
        fill(network, load_state_dict(Path(weights).expanduser()), NAME)
    return PooledClassifier(
        NAME,
        network,
        Split(_maps, _logits, "classifier"),
        mean=[255 * part for part in (0.485, 0.456, 0.406)],
        std=[255 * part for part in (0.229, 0.224, 0.225)],
        native_size=224,
        class_names=names,
        layer=layer,
    )


def _maps(network: nn.Module, images: Tensor) -> Tensor:
    return network.get_submodule("features")(images)


def _logits(network: nn.Module, pooled: Tensor) -> Tensor:
    return network.get_submodule("classifier")(pooled)
