"""Cross-entropy with the labels as they come, and what every method looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray as Array
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.laws import Law, Uniform
from pipeline.stream import Late
from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run tells its method; each takes what it needs.

    Args:
        num_classes: K.
        alpha: Noisy labels a clean one.
        law: Where the labels come from.
        label_smoothing: Share of a label that is spread over all classes, in [0, 1).
        mixup_beta: Both parameters of mixup's Beta distribution, 0 or more.
        forget_rate: Share of a batch that Co-teaching leaves out in the end, in [0, 1); None is `wrong_share`.
        forget_epochs: Passes over the data until then, above 0.
        rank_over: "batch" or "data": what the losses of Co-teaching are small among.
        wrong_share: Expected share of all labels that are wrong, by the law; None if it does not say.
        mlnt_sets: Synthetic label sets a step of MLNT, 1 or more.
        mlnt_inner_lr: Step on each of them, 0 or more.
        mlnt_weight: Of the consistency with the teacher in the end, 0 or more.
        mlnt_order: "second" or "first".
        mlnt_neighbours: Of a row, whose labels a set takes, 1 or more.
        mlnt_replaced_frac: Share of a set's rows that take one, in [0, 1].
        mlnt_ramp_epochs: Passes over the data until that weight is reached, above 0.
        mixmatch_weight: Of the loss on unlabelled images in the end, 0 or more.
        mixmatch_temperature: Of guessed labels, above 0; below 1 it sharpens them.
        mixmatch_beta: Both parameters of the Beta distribution that its images are mixed by, 0 or more.
        mentor: The net of an earlier run; None for none.
        transition: Of forward correction, row = true class, column = label; None is the law's.
        rows: Of a batch that a step sees at once, in all processes.
        batch: All of them.
        num_examples: N of the data set, also where a part of it is trained on.
        device: Where the run computes.
        late: Examples that join a selection; None for none.
        labels_an_image: Labels that a selection leaves an image, on average; None without a selection.
        seed: The run's.
    """

    num_classes: int
    alpha: int
    law: Law = field(default_factory=Uniform)
    label_smoothing: float = 0.0
    mixup_beta: float = 0.0
    forget_rate: float | None = None
    forget_epochs: float = 10.0
    rank_over: str = "batch"
    wrong_share: float | None = None
    mlnt_sets: int = 10
    mlnt_inner_lr: float = 0.2
    mlnt_weight: float = 0.0
    mlnt_order: str = "second"
    mlnt_neighbours: int = 10
    mlnt_replaced_frac: float = 0.5
    mlnt_ramp_epochs: float = 20.0
    mixmatch_weight: float = 75.0
    mixmatch_temperature: float = 0.5
    mixmatch_beta: float = 0.75
    mentor: nn.Module | None = None
    transition: Float64[Array, "k k"] | None = None
    rows: int = 0
    batch: int = 0
    num_examples: int = 0
    device: str | torch.device = "cpu"
    late: Late | None = None
    labels_an_image: float | None = None
    seed: int = 0


class Method(ABC):
    """One training step; knows nothing of optimizers, precision or schedules.

    Attributes:
        stream: What a batch holds: examples, or images with the labels of all their copies.
        uses_clean_labels: Whether it is an oracle; every table says so.
        only_law: The law that it is defined for; None for any.
        num_nets: Nets that it trains: one, or two as `Twins`.
        has_teacher: Whether it learns from an average of its net, which is then what is evaluated.
        rest_views: Views of an example that was not selected, which every row of a batch brings with it, after it; 0
            for a method that learns from what was selected alone.
        takes_candidates: Whether examples that a selection left undecided may join its batches.
        takes_selection: Whether it can be trained on some of an image's labels.
        num_labels: Labels that one row of a batch brings to the loss, on average.
        row_losses: Of the latest step, of a method whose rows have one each; without gradient.
        kept_rows: Those of the latest step that each net chose, of a method that leaves some out.
    """

    stream: ClassVar[Literal["examples", "images"]] = "examples"
    uses_clean_labels: ClassVar[bool] = False
    only_law: ClassVar[str | None] = None
    num_nets: ClassVar[int] = 1
    has_teacher: ClassVar[bool] = False
    rest_views: ClassVar[int] = 0
    takes_candidates: ClassVar[bool] = False
    takes_selection: ClassVar[bool] = True
    num_labels: float = 1.0
    row_losses: Tensor | None = None
    kept_rows: Bool[Tensor, "nets b"] | None = None

    @abstractmethod
    def __init__(self, setting: Setting) -> None: ...

    @abstractmethod
    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch; return metrics that stay on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of a method that remembers: nothing, unless it says so."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from a checkpoint."""

    def noisy_logits(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Turn the net's logits into those of a noisy label: the same, unless the net predicts the class behind it."""
        return logits


class Plain(Method):
    """Cross-entropy with one label an example."""

    def __init__(self, setting: Setting) -> None:
        self.label_smoothing = setting.label_smoothing

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch."""
        logits = learner.logits(batch.images)
        losses = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="none")
        loss, self.row_losses = losses.mean(), losses.detach()
        learner.update(loss, clock)
        right = logits.detach().argmax(dim=1) == batch.labels
        return {"train/loss": loss.detach(), "train/top1_accuracy": right.float().mean()}
