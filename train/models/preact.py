"""Residual nets whose blocks begin with batch norm and ReLU, for images of some 32 px."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from train.models.norm import NormAct
from train.models.resnet import initialise
from train.models.small import Shape


def preact_resnet18(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make a pre-activation ResNet-18 with a 3×3 stem; 11.2 million parameters.

    Source: He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027), figure 1b.
    Deviates: code for noisy labels (DivideMix and what follows it) leaves out the last batch norm and ReLU.
    """
    return _preact(image_shape[2], num_classes, stem=64, widths=(64, 128, 256, 512), blocks=2)


def wrn_28_2(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make a wide ResNet of depth 28 and width 2, without dropout; 1.47 million parameters.

    Source: Zagoruyko and Komodakis 2016, "Wide residual networks" (arXiv 1605.07146), table 1, n = 4, k = 2.
    """
    return _preact(image_shape[2], num_classes, stem=16, widths=(32, 64, 128), blocks=4)


class PreactBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, beside a shortcut.

    Args:
        channels_in: Of the images that come in.
        channels_out: Of those that go out.
        stride: Of the first convolution; where shapes differ the shortcut is a 1×1 convolution of the activations.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first_norm = NormAct(channels_in)
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.second_norm = NormAct(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.projection: nn.Module | None = None
        if stride > 1 or channels_in != channels_out:
            self.projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Run it."""
        active = self.first_norm(images)
        shortcut = images if self.projection is None else self.projection(active)
        out: Tensor = shortcut + self.second(self.second_norm(self.first(active)))
        return out


def _preact(channels: int, num_classes: int, *, stem: int, widths: Sequence[int], blocks: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, padding=1, bias=False)]
    for stage, (width_in, width_out) in enumerate(pairwise((stem, *widths))):
        layers.append(PreactBlock(width_in, width_out, 2 if stage else 1))
        layers += [PreactBlock(width_out, width_out, 1) for _ in range(blocks - 1)]
    layers += [NormAct(widths[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return initialise(nn.Sequential(*layers, nn.Linear(widths[-1], num_classes)))
