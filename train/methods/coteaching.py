"""Co-teaching: two nets, each trained on the rows whose loss the other one finds small."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.laws.law import check_share
from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.forward import noisy_view
from train.methods.plain import Method, Setting
from train.running_losses import RunningLosses

RANKED_OVER: Final = ("batch", "data")


def keep_share(epoch: float, *, forget_rate: float, forget_epochs: float, exponent: float = 1.0) -> float:
    """Return which share of a batch each net keeps for its peer, R(t) = 1 - τ · min((t / T_k)^c, 1).

    Args:
        epoch: t, passes over the data so far, 0 or more.
        forget_rate: τ in [0, 1), the share that is left out in the end.
        forget_epochs: T_k, above 0: when that end is reached.
        exponent: c, above 0.

    Source: Han et al. 2018 (arXiv 1804.06872), algorithm 1, for c = 1, and its experiments for other c.
    Deviates: the paper counts whole epochs; here t is continuous, for an epoch of diluted data may be longer than a
        run. For c other than 1 the authors' code rises in a straight line, to τ^c in place of τ, and then jumps.
    """
    return 1 - forget_rate * min(1.0, math.pow(epoch / forget_epochs, exponent))


def num_kept(num_rows: int, share: float) -> int:
    """Return how many of some rows a share of them is.

    Args:
        num_rows: At least 1.
        share: In [0, 1].

    Source: Han et al. 2018, algorithm 1.
    Deviates: rounds to the nearest number, where the authors' code rounds down, and keeps at least one: a mean over
        none would be nan.
    """
    return max(1, round(share * num_rows))


def small_loss_rows(losses: Float[Tensor, "nets b"], number: int) -> Bool[Tensor, "nets b"]:
    """Mark each net's rows of smallest loss; the host does not wait for the device.

    Args:
        losses: Of each row, in each net.
        number: Of rows to mark, in [1, b].

    Source: Han et al. 2018, algorithm 1.
    """
    rows = losses.detach().topk(number, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(losses, dtype=torch.bool).scatter_(1, rows, True)


def exchanged_losses(losses: Float[Tensor, "2 b"], chosen: Bool[Tensor, "2 b"], number: float) -> Float[Tensor, " 2"]:
    """Average each net's losses over the rows that its peer chose.

    A loss that is not finite shows in the average, also where nobody chose its row.

    Args:
        losses: Of each row, in each net.
        chosen: Which rows each net chose.
        number: Of rows that each net chose or is expected to choose, above 0.

    Source: Han et al. 2018, algorithm 1.
    Deviates: the authors' code divides by the number of rows twice.
    """
    return (losses * chosen.flip(0)).sum(dim=1) / number


class Coteaching(Method):
    """`exchanged_losses` of two nets; what is evaluated is the first of them.

    A net has learnt right labels long before it memorises wrong ones, so that rows of small loss are likely right; what
    one net memorised by mistake the other one need not believe. The share that is left out grows to `forget_rate`, by
    default the share of wrong labels under the law of the data set: this method is told how many labels are wrong,
    and not which.

    With `rank_over` "batch", rows compete within what a step sees at once, in all processes: as many choose as one
    would. A batch that comes in parts chooses in each part by itself, for the others are not computed yet or are gone.
    A part should hold several right labels, which at massive noise takes large batches.

    With "data", examples compete over the data set: a row is chosen if the mean of its losses so far, this one
    included, lies within the share of the smallest (`RunningLosses`). A batch then gives as many rows as it has small
    ones, in any number of parts and processes. Sums of losses are divided by the number of rows expected, so that each
    row weighs the same. An epoch of diluted data may be longer than the run: the mean is then one loss, and what
    remains is that it competes with thousands of others in place of a batch. Copies of an image that carry the same
    label are examples of their own; the net sees the same in them, so that their means are close anyway.

    After a selection that leaves examples undecided, these join late: from some step on, a share of each batch is
    theirs, and as many rows are kept as of the others alone.

    Its nets predict the class and not its noisy label, so noisy validation sees them through the transition matrix of
    the law. Where there is none (given labels, images of another set) it gets worse as they grow sure: `last` is then
    the column to read.

    When it forgets nothing, the first net is trained as by method plain, unless it has dropout, which the two draw in
    turn.

    Source: Han et al. 2018 (arXiv 1804.06872); Chen et al. 2019 (INCV, arXiv 1905.05040) for what joins late.
    Deviates: label smoothing, if asked for, is part of the loss that ranks and that trains; the paper has none,
        and ranks no rows over the data. INCV adds what joins to the batch, which here stays as large: a pass over the
        selection then takes up to half as many steps again, while the clock goes on counting rows.
    """

    num_nets: ClassVar[int] = 2
    takes_candidates: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        rate = setting.wrong_share if setting.forget_rate is None else setting.forget_rate
        if rate is None:
            raise UserError(
                f"method coteaching wants to know how many labels are wrong, and law {setting.law.name} does not say; "
                "give --forget-rate, the share of them in [0, 1), or --select all, which estimates it"
            )
        check_share("forget_rate", rate, below_one=True)
        self.label_smoothing = setting.label_smoothing
        self.forget_rate, self.forget_epochs = rate, setting.forget_epochs
        self.running: RunningLosses | None = None
        if setting.rank_over == "data":
            self.running = RunningLosses(2, setting.num_examples, batch=setting.batch, device=setting.device)
        self._late, self._batch = setting.late, setting.batch
        self._noisy_view = noisy_view(setting.law, alpha=setting.alpha, num_classes=setting.num_classes)

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train both nets on one batch; loss (over the rows that it trains on) and accuracy are the first net's."""
        logits = learner.logits(batch.images)
        both = F.cross_entropy(
            logits.flatten(0, 1), batch.labels.repeat(2), label_smoothing=self.label_smoothing, reduction="none"
        ).view(2, -1)
        share = keep_share(clock.epoch, forget_rate=self.forget_rate, forget_epochs=self.forget_epochs)
        if self._late is not None and clock.step >= self._late.start:
            share *= 1 - self._late.rows / self._batch  # candidates join, and as many rows are kept as without them
        if self.running is None:
            world, own = learner.world, len(batch.labels)
            number = num_kept(world.size * own, share)
            everywhere = small_loss_rows(world.rows(both.detach().T).T, number)
            self.kept_rows = everywhere[:, world.rank * own : (world.rank + 1) * own]
            losses = exchanged_losses(both, self.kept_rows, number / world.size)
        else:
            self.kept_rows = self.running.small_rows(batch.rows, both.detach(), share, learner, clock)
            losses = exchanged_losses(both, self.kept_rows, share * len(batch.labels))
        learner.update(losses.sum(), clock)
        right = logits[0].detach().argmax(dim=1) == batch.labels
        return {
            "train/loss": losses[0].detach(),
            "train/top1_accuracy": right.float().mean(),
            "coteaching/kept_frac": self.kept_rows.to(losses.dtype).mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the losses of the examples, if they compete over the data set."""
        return {} if self.running is None else self.running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self.running is not None:
            self.running.load_state_dict(state)

    def noisy_logits(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return log-probabilities of a noisy label, where the law knows its matrix."""
        return self._noisy_view(logits)
