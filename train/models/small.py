"""Multilayer perceptrons and plain convolutional nets, as the paper compares them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from torch import nn

from pipeline.errors import UserError
from train.models.norm import NormAct

Shape = tuple[int, int, int]  # h, w, c

MLP_WIDTH: Final = 512


def perceptron(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make one linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))


def mlp(image_shape: Shape, num_classes: int, *, num_hidden: int) -> nn.Module:
    """Make `num_hidden` hidden layers of 512 with ReLU; no batch norm.

    Source: Rolnick et al. 2017 compares multilayer perceptrons on MNIST.
    Deviates: the paper's widths are not known; 512 is this project's choice.
    """
    widths = [math.prod(image_shape)] + [MLP_WIDTH] * num_hidden
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def conv2(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make 32-pool-64-pool with 3×3 convolutions and batch norm.

    Source: Rolnick et al. 2017, "2-layer ConvNet".
    Deviates: the paper's filter counts are not known; these are this project's choice.
    """
    height, width = _pooled(image_shape, "conv2", 2)
    layers = [*_conv(image_shape[2], 32, pool=True), *_conv(32, 64, pool=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * height * width, num_classes))


def conv4(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make 32-32-pool-64-64-pool-fc256 with 3×3 convolutions and batch norm.

    Source: Rolnick et al. 2017, "Conv4".
    Deviates: the paper's filter counts are not known; these are this project's choice.
    """
    height, width = _pooled(image_shape, "conv4", 2)
    layers = [*_conv(image_shape[2], 32), *_conv(32, 32, pool=True)]
    layers += [*_conv(32, 64), *_conv(64, 64, pool=True)]
    head = [nn.Flatten(), nn.Linear(64 * height * width, 256), nn.ReLU(), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers, *head)


def conv6(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make 64-64-pool-128-128-pool-256-256-pool-fc256 with 3×3 convolutions and batch norm.

    Source: Rolnick et al. 2017, "Conv6", on CIFAR-10.
    Deviates: the paper's filter counts are not known; these are this project's choice.
    """
    height, width = _pooled(image_shape, "conv6", 3)
    layers: list[nn.Module] = []
    channels = [image_shape[2], 64, 128, 256]
    for channels_in, channels_out in pairwise(channels):
        layers += [*_conv(channels_in, channels_out), *_conv(channels_out, channels_out, pool=True)]
    head = [nn.Flatten(), nn.Linear(256 * height * width, 256), nn.ReLU(), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers, *head)


def _conv(channels_in: int, channels_out: int, *, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)  # batch norm has the bias
    return [convolution, NormAct(channels_out, pool=pool)]


def _pooled(image_shape: Shape, name: str, times: int) -> tuple[int, int]:
    height, width, _ = image_shape
    least = 2**times
    if min(height, width) < least:
        often = {2: "twice", 3: "three times"}[times]
        raise UserError(
            f"{name} pools {often} and needs images of {least} × {least} px or more, these are {height} × {width}"
        )
    return height // least, width // least
