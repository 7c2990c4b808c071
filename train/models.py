"""Nets for small images, built from the shape of an image and the number of classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from kernels.philox import INIT, word
from pipeline.errors import UserError

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
    height, width = _quartered(image_shape, "conv2")
    layers = [*_conv(image_shape[2], 32), nn.MaxPool2d(2), *_conv(32, 64), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * height * width, num_classes))


def conv4(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make 32-32-pool-64-64-pool-fc256 with 3×3 convolutions and batch norm.

    Source: Rolnick et al. 2017, "Conv4".
    Deviates: the paper's filter counts are not known; these are this project's choice.
    """
    height, width = _quartered(image_shape, "conv4")
    layers = [*_conv(image_shape[2], 32), *_conv(32, 32), nn.MaxPool2d(2)]
    layers += [*_conv(32, 64), *_conv(64, 64), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64 * height * width, 256), nn.ReLU(), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers, *head)


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "perceptron": perceptron,
    "mlp1": partial(mlp, num_hidden=1),
    "mlp2": partial(mlp, num_hidden=2),
    "mlp4": partial(mlp, num_hidden=4),
    "conv2": conv2,
    "conv4": conv4,
}


def build_model(name: str, image_shape: Shape, num_classes: int, *, seed: int, learner: int = 0) -> nn.Module:
    """Build a net whose initial weights depend on nothing but the arguments.

    The last layer starts at zero: predictions start uniform, which α-diluted labels nearly are.

    Args:
        name: One of `MODELS`.
        image_shape: (h, w, c) of an image.
        num_classes: K.
        seed: The run's seed.
        learner: Which of the nets of a run; each has weights of its own.

    Raises:
        UserError: If the name is not on the menu or the images are too small for the net.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'; the models are: {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):  # the outer generator stays as it was
        torch.default_generator.manual_seed(word(seed, INIT, learner))
        net = MODELS[name](image_shape, num_classes)
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


def _conv(channels_in: int, channels_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)  # batch norm has the bias
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


def _quartered(image_shape: Shape, name: str) -> tuple[int, int]:
    height, width, _ = image_shape
    if min(height, width) < 4:
        raise UserError(f"{name} pools twice and needs images of 4 × 4 px or more, these are {height} × {width}")
    return height // 4, width // 4
