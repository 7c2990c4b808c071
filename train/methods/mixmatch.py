"""MixMatch: labelled images mixed with others, whose labels are dropped and guessed by the net itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.mixup import mixed, mixup_weight
from train.methods.plain import Method, Setting


def guessed_labels(logits: Float[Tensor, "g v k"], temperature: float) -> Float[Tensor, "g k"]:
    """Average the predictions for the views of an image, and sharpen: p_i^(1/T) / Σ_j p_j^(1/T).

    Args:
        logits: Of each image, in each of its views.
        temperature: T, above 0; 1 leaves the average as it is, near 0 its largest entry becomes 1.

    Source: Berthelot et al. 2019 (arXiv 1905.02249), equations 6 and 7.
    """
    log_means = logits.log_softmax(dim=2).logsumexp(dim=1)  # up to a constant, which the softmax takes out
    return (log_means / temperature).softmax(dim=1)


def group_partners(num_groups: int, group: int, device: torch.device) -> Int64[Tensor, "g r"]:
    """Return the row that each row is mixed with: groups 0 and 1 are a pair, 2 and 3, and so on; an odd last one alone.

    The rows of a pair are shifted against each other, by 0, 1, 2 … rows from pair to pair. Every row is the partner of
    one row, and of each kind of rows (a labelled one comes first in its group) as many meet each kind as if all rows
    were shuffled.

    Args:
        num_groups: A labelled row and the views that came with it are a group.
        group: Rows of one.
        device: Of the rows.

    Source: Berthelot et al. 2019, algorithm 1.
    Deviates: the paper shuffles all rows. They come in random order already, and pairs of groups stay together where a
        batch is cut in parts or shared by processes; the step is the same if those hold a multiple of 2 (1 + K) groups.
        Two views of an image are not mixed with each other.
    """
    groups = torch.arange(num_groups, device=device)[:, None]
    shifted = (torch.arange(group, device=device) + groups // 2) % group
    return (groups ^ 1).clamp(max=num_groups - 1) * group + shifted


def brier_loss(logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Average the squared error of probabilities over rows and classes.

    Source: Berthelot et al. 2019, equation 4.
    """
    return F.mse_loss(logits.softmax(dim=1), targets)


class MixMatch(Method):
    """Cross-entropy of labelled rows and squared error of unlabelled ones, both mixed with rows of either kind.

    A row of a batch brings an image that was not selected, in two views. Its label is not looked at: the sharpened mean
    of what the net predicts for the views stands in for it, and gives no gradient. All rows are then mixed in pairs,
    with a weight of at least a half for the row itself, drawn from Beta(beta, beta) once a step. The weight of the
    squared error grows in a straight line over the run.

    Batches and the length of a run are counted in labelled rows, as the paper does. A step costs the forward and
    backward pass of 3 rows for each of them, and the forward pass of 2: 3.4 times the CPU time of plain's (conv2, batch
    128, bf16, one thread of AMD EPYC, torch 2.15, n = 2).

    With a weight of 0 and a beta of 0 it is method plain, unless the net has batch norm, which sees all rows.

    Source: Berthelot et al. 2019, "MixMatch"; Gui et al. 2021 (RSL_WM) for its use after a selection.
    Deviates: all mixed rows go through the net at once, so that batch norm's statistics are those of all of them; the
        authors interleave labelled and unlabelled batches to the same end. The predictions behind a guess are made
        under the statistics of the views, and leave the running ones as they are. The weight of a pair is drawn once a
        step, the paper's for each pair. Label smoothing, if asked for, is in the labelled loss.
    """

    rest_views: ClassVar[int] = 2

    def __init__(self, setting: Setting) -> None:
        self.weight, self.temperature = setting.mixmatch_weight, setting.mixmatch_temperature
        self.beta, self.seed = setting.mixmatch_beta, setting.seed
        self.num_classes, self.label_smoothing = setting.num_classes, setting.label_smoothing

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch; accuracy is that of labelled rows, mixed as they are, against their own labels."""
        group = 1 + self.rest_views
        views = batch.images.view(-1, group, *batch.images.shape[1:])[:, 1:].flatten(0, 1)
        labels = batch.labels.view(-1, group)[:, 0]
        with learner.probing() as logits_of, torch.no_grad():
            of_views = logits_of(views).view(-1, self.rest_views, self.num_classes)
            guessed = guessed_labels(of_views, self.temperature)
        one_hot = F.one_hot(labels, self.num_classes).to(guessed.dtype)
        targets = torch.stack([one_hot, *[guessed] * self.rest_views], dim=1).flatten(0, 1)
        weight = mixup_weight(self.seed, clock.step, beta=self.beta)
        weight = max(weight, 1 - weight)
        pairs = group_partners(len(labels), group, labels.device).flatten()
        targets = (weight * targets + (1 - weight) * targets[pairs]).view(-1, group, self.num_classes)
        logits = learner.logits(mixed(batch.images, pairs, weight)).view(-1, group, self.num_classes)
        loss = F.cross_entropy(logits[:, 0], targets[:, 0], label_smoothing=self.label_smoothing)
        unlabelled = brier_loss(logits[:, 1:].flatten(0, 1), targets[:, 1:].flatten(0, 1))
        total = loss + clock.progress * self.weight * unlabelled
        learner.update(total, clock)
        right = logits[:, 0].detach().argmax(dim=1) == labels
        return {
            "train/loss": total.detach(),
            "train/top1_accuracy": right.float().mean(),
            "mixmatch/unlabelled_loss": unlabelled.detach(),
        }
