"""Residual nets for images of some 32 px."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from train.models.norm import NormAct
from train.models.small import Shape


def cifar_resnet18(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make ResNet-18 with a 3×3 stem and no pool behind it; 11.2 million parameters.

    Source: He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385), table 1.
    Deviates: the stem, which for images of 32 px is always changed so.
    """
    return _resnet(image_shape[2], num_classes, widths=(64, 128, 256, 512), blocks=2, projected=True)


def cifar_resnet32(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make ResNet-32, whose shortcuts have no parameters; 0.46 million parameters.

    Source: He et al. 2015 (arXiv 1512.03385), section 4.2, n = 5, shortcut A.
    """
    return _resnet(image_shape[2], num_classes, widths=(16, 32, 64), blocks=5, projected=False)


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut.

    Args:
        channels_in: Of the images that come in.
        channels_out: Of those that go out.
        stride: Of the first convolution.
        projected: Whether a 1×1 convolution fits the shortcut where shapes differ (B); else pixels are left out and
            channels of zeros added (A).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, projected: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.first_norm = NormAct(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = NormAct(channels_out, leak=1.0)
        self.stride, self.missing = stride, channels_out - channels_in
        self.projection: nn.Module | None = None
        if projected and (stride > 1 or self.missing):
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.projection = nn.Sequential(convolution, NormAct(channels_out, leak=1.0))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Run it."""
        if self.projection is not None:
            shortcut = self.projection(images)
        else:
            before = self.missing // 2
            padding = (0, 0, 0, 0, before, self.missing - before)
            shortcut = F.pad(images[:, :, :: self.stride, :: self.stride], padding)
        residual = self.second_norm(self.second(self.first_norm(self.first(images))))
        return F.relu(shortcut + residual)


def initialise(net: nn.Module) -> nn.Module:
    """Draw the weights of all convolutions.

    Source: He et al. 2015, "Delving deep into rectifiers" (arXiv 1502.01852), by outgoing connections.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def _resnet(channels: int, num_classes: int, *, widths: Sequence[int], blocks: int, projected: bool) -> nn.Module:
    width = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), NormAct(width)]
    for stage, (width_in, width_out) in enumerate(pairwise((width, *widths))):
        layers.append(Block(width_in, width_out, 2 if stage else 1, projected=projected))
        layers += [Block(width_out, width_out, 1, projected=projected) for _ in range(blocks - 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes)]
    return initialise(nn.Sequential(*layers, *head))
