"""Maximum likelihood of all labels of an image, of which exactly one is right."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pipeline.errors import UserError
from train.methods.histogram import Histogram
from train.methods.plain import Setting


def marginal_loss(logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the mean of -log Σ_k c_k p_k, where c_k is the share of an image's labels that say class k.

    If one label of an image is that of its class and the α others are uniform whatever the class is, in an order that
    nobody knows, the labels have probability proportional to c_k for class k: this is the negative logarithm of their
    likelihood, marginal over the class. Its gradient is that of cross-entropy against the posterior
    c_k p_k / Σ_j c_j p_j, which joins what the labels of this image say and what the net learnt from all others.

    Args:
        logits: Of the class.
        targets: What `histogram_targets` returns.

    Source: Jin and Ghahramani 2002, "Learning with multiple labels", for sets of labels; counts are this project's.
    """
    return (logits.logsumexp(dim=1) - (logits + targets.log()).logsumexp(dim=1)).mean()


def diluted_logits(logits: Float[Tensor, "b k"], *, alpha: int) -> Float[Tensor, "b k"]:
    """Turn the logits of a class into log-probabilities of one of its 1 + α labels.

    Args:
        logits: Of the class.
        alpha: Noisy labels a clean one, uniform over the classes.
    """
    if not alpha:
        return logits.log_softmax(dim=1)
    noise = torch.tensor(math.log(alpha / logits.shape[1]), dtype=logits.dtype, device=logits.device)
    return torch.logaddexp(logits.log_softmax(dim=1), noise) - math.log1p(alpha)


class Marginal(Histogram):
    """`marginal_loss`: the net predicts classes, not noisy labels, and its own certainty sharpens its targets.

    Which of the labels is the right one is not known to it: it sees their counts alone.
    """

    only_law: ClassVar[str | None] = "uniform"
    takes_selection: ClassVar[bool] = False  # what is left of an image's labels is not as the law has it

    def __init__(self, setting: Setting) -> None:
        if setting.label_smoothing:
            raise UserError(
                f"label_smoothing {setting.label_smoothing} is not defined for method marginal, whose targets the net "
                "makes itself; leave it out, or give another --method"
            )
        super().__init__(setting)
        self.alpha = setting.alpha

    def loss(self, logits: Float[Tensor, "b k"], targets: Float32[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Compare logits with what `histogram_targets` returns."""
        return marginal_loss(logits, targets)

    def noisy_logits(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return log-probabilities of one of an image's labels."""
        return diluted_logits(logits, alpha=self.alpha)
