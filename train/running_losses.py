"""The mean loss of every example so far, and which rows of a step are small among those of the data set."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from train.clock import Clock
from train.learner import Learner

# Rows stand for the data set. A share of 0.1 is then met to 0.003, one standard error; more would be older, and 4,096
# did no better (54.9 against 62.8 % on test, one seed of the runs that `coteaching_recipe` tells of).
RECENT: Final = 8_192


class RunningLosses:
    """Sums of the losses of all examples in each of several nets, and how often each was seen; 4 bytes a number.

    Most examples of a data set were last judged long ago or never, and its quantile would cost a sort: the rows of the
    last steps stand for it. Every process holds all of this, and all gather the rows of a step, so that each chooses as
    one process with the whole batch would; the parts of a batch choose so too.

    Args:
        num_nets: Nets that judge.
        num_examples: N of the data set, also where a part of it is trained on.
        batch: Rows of a step, in all processes and parts.
        device: Of the losses.

    Attributes:
        totals: A row an example: the sum of its losses in each net, and how often it was seen.
        recent: Means of the rows of the last steps, as they were then; step s stands at s modulo the number of steps.
    """

    def __init__(self, num_nets: int, num_examples: int, *, batch: int, device: str | torch.device) -> None:
        self.totals = torch.zeros(num_examples, num_nets + 1, device=device)
        self.recent = torch.zeros(num_nets, max(1, min(RECENT, num_examples) // batch), batch, device=device)
        self._limits = torch.full((num_nets, 1), math.inf, device=device)

    def small_rows(
        self, rows: Int64[Tensor, " b"], losses: Float32[Tensor, "nets b"], share: float, learner: Learner, clock: Clock
    ) -> Bool[Tensor, "nets b"]:
        """Count the rows of a step, or of a part of it, and mark those whose mean is small; the host does not wait.

        Args:
            rows: Example ids; one that stands twice counts twice.
            losses: Under the weights that the step begins with.
            share: Of all examples, whose means are small, in (0, 1].
            learner: Whose step it is.
            clock: Its time.
        """
        if learner.part == 0:
            self._limits = self._quantiles(share, clock.step)
        ids, number = rows.to(losses.device, non_blocking=True), len(rows) * learner.world.size
        added = torch.cat([losses, torch.ones_like(losses[:1])]).T
        everywhere = learner.world.rows(ids)
        self.totals.index_add_(0, everywhere, learner.world.rows(added))
        slot = self.recent[:, clock.step % self.recent.shape[1]]
        slot[:, number * learner.part : number * (learner.part + 1)] = self._means(everywhere)
        return self._means(ids) <= self._limits

    def _means(self, ids: Int64[Tensor, " b"]) -> Float32[Tensor, "nets b"]:
        totals = self.totals[ids].T
        return totals[:-1] / totals[-1]

    def _quantiles(self, share: float, step: int) -> Float32[Tensor, "nets 1"]:
        """Return the mean that a share of the recent ones does not exceed; no limit before there are any."""
        known = self.recent[:, :step].flatten(1)
        number = round(share * known.shape[1])
        if number == known.shape[1]:
            return torch.full_like(self._limits, math.inf)
        return known.kthvalue(max(1, number), dim=1, keepdim=True).values

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; it is the same in every process."""
        return {"totals": self.totals, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.totals.copy_(state["totals"])
        self.recent.copy_(state["recent"])
