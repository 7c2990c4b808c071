"""The loss that training on α-diluted labels has in expectation: an oracle, it reads the clean labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.plain import Method, Setting


def h_alpha_targets(labels: Int64[Tensor, " b"], *, alpha: float, num_classes: int) -> Float32[Tensor, "b k"]:
    """Turn clean labels into the label distribution of their α-diluted copies, (e_y + (α/K) 1) / (1 + α).

    Cross-entropy against it is label smoothing with ε = α/(1+α).

    Args:
        labels: Source labels in [0, K).
        alpha: Noisy labels a clean one, at least 0.
        num_classes: K.

    Source: Rolnick et al. 2017, the definition of H_α.
    """
    targets = torch.full((len(labels), num_classes), alpha / num_classes, device=labels.device)
    targets.scatter_add_(1, labels[:, None], torch.ones_like(targets[:, :1]))
    return targets / (1 + alpha)


class HAlpha(Method):
    """Cross-entropy against `h_alpha_targets` of copy 0, the source label."""

    stream: ClassVar[Literal["examples", "images"]] = "images"
    uses_clean_labels: ClassVar[bool] = True
    only_law: ClassVar[str | None] = "uniform"
    takes_selection: ClassVar[bool] = False  # it looks at no noisy label

    def __init__(self, setting: Setting) -> None:
        self.label_smoothing = setting.label_smoothing
        self.num_classes = setting.num_classes
        self.alpha = setting.alpha

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch of images."""
        labels = batch.labels[:, 0]
        targets = h_alpha_targets(labels, alpha=self.alpha, num_classes=self.num_classes)
        logits = learner.logits(batch.images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        learner.update(loss, clock)
        right = logits.detach().argmax(dim=1) == labels
        return {"train/loss": loss.detach(), "train/top1_accuracy": right.float().mean()}
