"""The mean training loss of every example: one number an example, added up while a run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray as Array
from torch import Tensor

from pipeline.atomic import replacing
from pipeline.loaders import Batches
from pipeline.types import Batch
from train.distributed import ALONE, World


class ExampleLosses:
    """Sums of the losses of all examples under the weights that each step begins with; 4 bytes an example.

    Args:
        num_examples: N of the data set, also where a part of it is trained on.
        device: Of the losses.
        world: The processes that see a part of each batch.

    Source: Gui et al. 2021 (RSL) rank examples by their mean loss over all epochs.
    Deviates: the authors go over the data once more after every epoch, with its last weights; the losses of the
        training passes cost nothing.
    """

    def __init__(self, num_examples: int, device: torch.device, world: World = ALONE) -> None:
        self.world = world
        self.sums = torch.zeros(num_examples, device=device)

    def add(self, batch: Batch, losses: Float32[Tensor, " b"]) -> None:
        """Count a batch; the loss of an image that stands in for another counts for neither."""
        losses = losses.index_fill(0, batch.replaced.to(losses.device), 0.0) if len(batch.replaced) else losses
        self.sums.index_add_(0, batch.rows.to(losses.device, non_blocking=True), losses)

    def means(self, batches: Batches, examples: int) -> Float32[Array, " n"]:
        """Return the mean loss of every example; nan for those that were never seen.

        Args:
            batches: Where they came from.
            examples: How many went by.
        """
        sums: Float[Tensor, " n"] = self._whole().double().cpu()
        times = torch.full_like(sums, examples // batches.num_examples)
        for first in range(examples - examples % batches.num_examples, examples, 1 << 20):
            times[torch.from_numpy(batches.rows_between(first, min(first + (1 << 20), examples)))] += 1
        means = np.where(sums > 0, sums / times, np.nan)  # a loss is above 0 until the net has seen its example
        return means.astype(np.float32)

    def _whole(self) -> Float32[Tensor, " n"]:
        return self.world.sum(self.sums.clone()) if self.world.size > 1 else self.sums

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the sums of all processes, which call this together."""
        return {"sums": self._whole()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; the first process alone takes over the sums."""
        if self.world.is_first:
            self.sums.copy_(state["sums"])
        else:
            self.sums.zero_()


def write_losses(path: Path, losses: Float32[Array, " n"]) -> None:
    """Write one loss an example, by example id (copy · n + image id), for ``numpy.load(path, mmap_mode="r")``."""
    with replacing(path) as file:
        np.save(file, losses)


def read_losses(path: Path) -> Float32[Array, " n"]:
    """Open what `write_losses` wrote; losses are read from the file as they are looked at."""
    losses: Float32[Array, " n"] = np.load(path, mmap_mode="r")
    return losses
