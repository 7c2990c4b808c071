"""Forward correction: cross-entropy of noisy labels with the net's prediction seen through the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray as Array
from torch import Tensor

from kernels.labels import MAX_TABLE_CLASSES
from pipeline.errors import UserError
from pipeline.laws import Law
from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.plain import Method, Setting


def forward_loss(
    logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], log_transition: Float[Tensor, "k k"]
) -> Float[Tensor, ""]:
    """Average -log p(label | image), where p(label j) is the sum over classes i of T_ij · softmax(logits)_i.

    It is computed from logarithms, of the one column of T that a label needs: nothing underflows, and an entry of T may
    be 0 (its logarithm -inf) unless all of the column of a label are.

    Args:
        logits: Of the true class.
        labels: As they come, noisy.
        log_transition: log T, row = true class, column = label.

    Source: Patrini et al. 2017 (arXiv 1609.03683), forward loss correction.
    """
    joint = logits.log_softmax(dim=1) + log_transition.T[labels]
    return -joint.logsumexp(dim=1).mean()


def seen_through(logits: Float[Tensor, "b k"], transition: Float[Tensor, "k k"]) -> Float[Tensor, "b k"]:
    """Turn logits of the true class into log-probabilities of the label.

    Args:
        logits: Of the true class.
        transition: T, row = true class, column = label.
    """
    seen = logits.softmax(dim=1) @ transition.to(logits)
    return seen.clamp(min=torch.finfo(seen.dtype).tiny).log()


def noisy_view(law: Law, *, alpha: int, num_classes: int) -> Callable[[Float[Tensor, "b k"]], Float[Tensor, "b k"]]:
    """Return what turns logits of the true class into those of the label; nothing changes where no matrix is known."""
    try:
        transition = torch.tensor(known_transition(law, alpha=alpha, num_classes=num_classes))
    except UserError:
        return lambda logits: logits
    return lambda logits: seen_through(logits, transition)


def known_transition(law: Law, *, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
    """Return the transition matrix of all labels of a data set, copy 0 included.

    Raises:
        UserError: If the law shows images that no class of the matrix stands for, knows no matrix, or has more classes
            than a matrix is made for.
    """
    check_classes(law, num_classes)
    try:
        return law.matrix(alpha, num_classes)
    except UserError as error:
        raise UserError(
            f"method forward needs a transition matrix: {error}; give --transition FILE, or auto to estimate it, or "
            "another --method"
        ) from None


def check_classes(law: Law, num_classes: int) -> None:
    """Refuse what no transition matrix describes.

    Raises:
        UserError: If the law shows images of no class, or there are more classes than a matrix is made for.
    """
    if law.adds_images:
        raise UserError(
            f"method forward needs a true class of every image, and law {law.name} adds images that have none; "
            "give another --method"
        )
    if num_classes > MAX_TABLE_CLASSES:
        raise UserError(
            f"method forward needs a matrix of {num_classes:,} × {num_classes:,} classes; "
            f"above {MAX_TABLE_CLASSES:,} give another --method"
        )


class Forward(Method):
    """`forward_loss` with the matrix of the data set's law, with one that is given, or with one that is estimated.

    Of the law, this method is told how the labels were made. `train.transition` estimates the matrix.

    Before the net has learnt anything, its gradients are those of method plain divided by 1 + α under uniform labels:
    AdamW's steps are of the same size, but sgd wants a larger rate.

    Source: Patrini et al. 2017.
    Deviates: label smoothing is refused: it would be noise that T does not know of. So are selections, whose labels are
        no longer those of T.
    """

    takes_selection: ClassVar[bool] = False

    def __init__(self, setting: Setting) -> None:
        if setting.label_smoothing:
            raise UserError(
                f"label_smoothing {setting.label_smoothing} is not defined for method forward, whose matrix says how "
                "labels are spread; leave it out, or give another --method"
            )
        check_classes(setting.law, setting.num_classes)
        matrix = setting.transition
        if matrix is None:
            matrix = known_transition(setting.law, alpha=setting.alpha, num_classes=setting.num_classes)
        self.transition = torch.tensor(matrix).float()
        self.log_transition = torch.tensor(matrix).log().float()

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch; accuracy counts how often the predicted true class is the label."""
        logits = learner.logits(batch.images)
        self.log_transition = self.log_transition.to(logits.device)  # once, where it stays
        loss = forward_loss(logits, batch.labels, self.log_transition)
        learner.update(loss, clock)
        right = logits.detach().argmax(dim=1) == batch.labels
        return {"train/loss": loss.detach(), "train/top1_accuracy": right.float().mean()}

    def noisy_logits(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return log-probabilities of a noisy label: the prediction seen through the matrix."""
        return seen_through(logits, self.transition)
