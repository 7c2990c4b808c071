"""Mixup: cross-entropy on mixed pairs of examples, with both labels of a pair."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from kernels.philox import MIXUP, word
from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.plain import Method, Setting


def mixup_weight(seed: int, step: int, *, beta: float) -> float:
    """Draw the weight of an example in its pair, one for a whole step, from Beta(beta, beta).

    It depends on nothing but (seed, step): parts of a batch, ranks and a resumed run all draw the same.

    Args:
        seed: The run's.
        step: Index of the step.
        beta: 0 or more; at 0 nothing is mixed, the weight is 1.

    Source: Zhang et al. 2018 (arXiv 1710.09412), section 2.
    """
    return np.random.Generator(np.random.Philox(key=word(seed, MIXUP, step))).beta(beta, beta) if beta else 1.0


def partners(num_rows: int, device: torch.device) -> Int64[Tensor, " b"]:
    """Return each row's partner: rows 0 and 1 make a pair, 2 and 3, and so on; an odd last one is its own.

    Source: Zhang et al. 2018, section 2.
    Deviates: the paper permutes the batch. Rows come in random order already, and pairs of neighbours stay together
        where a batch is cut in parts of even size or shared by processes: the step is the same.
    """
    return (torch.arange(num_rows, device=device) ^ 1).clamp(max=num_rows - 1)


def mixed(images: Float[Tensor, "b c h w"], pairs: Int64[Tensor, " b"], weight: float) -> Float[Tensor, "b c h w"]:
    """Mix each image with its partner.

    Args:
        images: In the order of a batch.
        pairs: What `partners` says.
        weight: Of the image itself, in [0, 1].

    Source: Zhang et al. 2018, section 2.
    """
    return weight * images + (1 - weight) * images[pairs]


def mixup_loss(
    logits: Float[Tensor, "b k"],
    labels: Int64[Tensor, " b"],
    partner_labels: Int64[Tensor, " b"],
    weight: float,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Weigh the cross-entropies with the labels of both images of a pair.

    Args:
        logits: Of mixed images.
        labels: One for each image, before it was mixed.
        partner_labels: Those of their partners.
        weight: What `mixed` was given.
        label_smoothing: In [0, 1).

    Source: Zhang et al. 2018, section 2; cross-entropy is linear in its target.
    """
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    other = F.cross_entropy(logits, partner_labels, label_smoothing=label_smoothing)
    return weight * own + (1 - weight) * other


class Mixup(Method):
    """`mixup_loss` of `mixed` images.

    Source: Zhang et al. 2018; its section 3.4 finds large Beta parameters ("e.g. 8 or 32") to resist corrupted labels.
        The recipe's 8 is this project's choice between the two.
    """

    def __init__(self, setting: Setting) -> None:
        self.label_smoothing = setting.label_smoothing
        self.beta = setting.mixup_beta
        self.seed = setting.seed

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch; accuracy is counted against the label with the larger weight."""
        weight = mixup_weight(self.seed, clock.step, beta=self.beta)
        pairs = partners(len(batch.labels), batch.labels.device)
        partner_labels = batch.labels[pairs]
        logits = learner.logits(mixed(batch.images, pairs, weight))
        loss = mixup_loss(logits, batch.labels, partner_labels, weight, label_smoothing=self.label_smoothing)
        learner.update(loss, clock)
        heavier = batch.labels if weight >= 0.5 else partner_labels
        right = logits.detach().argmax(dim=1) == heavier
        return {"train/loss": loss.detach(), "train/top1_accuracy": right.float().mean()}
