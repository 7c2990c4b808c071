"""The net of nine convolutions that Co-teaching and the papers after it compare on."""

from __future__ import annotations

from typing import Final

from torch import nn

from pipeline.errors import UserError
from train.models.norm import NormAct
from train.models.small import Shape

_LEAST_PX: Final = 28  # pooled twice to 7, of which three convolutions without padding leave one


def cnn9(image_shape: Shape, num_classes: int) -> nn.Module:
    """Make 128-128-128-pool-256-256-256-pool-512-256-128 with 3×3 convolutions, mean over the pixels; 4.43 million.

    The last three convolutions have no padding. Each is followed by batch norm and LeakyReLU of slope 0.01.

    Raises:
        UserError: If the images are smaller than 28 × 28 px.

    Source: Han et al. 2018, Co-teaching (arXiv 1804.06872), table 2.
    Deviates: there is no dropout, where the paper lists a rate of 0.25 behind each pool. The authors' code calls
        torch's function for it without saying that the net is being trained, which in the torch of its day left
        dropout out; under a later torch the same code drops in evaluation too. Convolutions have no biases, which the
        batch norm behind them takes away again.
    """
    height, width, channels = image_shape
    if min(height, width) < _LEAST_PX:
        raise UserError(
            f"cnn9 needs images of {_LEAST_PX} × {_LEAST_PX} px or more, these are {height} × {width}; "
            "give another --model"
        )
    layers = [*_conv(channels, 128), *_conv(128, 128), *_conv(128, 128, pool=True)]
    layers += [*_conv(128, 256), *_conv(256, 256), *_conv(256, 256, pool=True)]
    layers += [*_conv(256, 512, padding=0), *_conv(512, 256, padding=0), *_conv(256, 128, padding=0)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


def _conv(channels_in: int, channels_out: int, *, padding: int = 1, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=padding, bias=False)
    return [convolution, NormAct(channels_out, pool=pool, leak=0.01)]
