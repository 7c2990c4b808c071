"""All copies of an image at once: one forward pass against the histogram of its labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.types import Batch
from train.clock import Clock
from train.learner import Learner
from train.methods.plain import Method, Setting


def histogram_targets(
    labels: Int64[Tensor, "b a"], *, num_classes: int, labels_an_image: float | None = None
) -> Float32[Tensor, "b k"]:
    """Turn the labels of all copies of an image into one soft target.

    Cross-entropy against it has the gradient of a batch that holds every copy under one crop. After a selection an
    image counts for as many as are left of its labels, so that the mean over an epoch is that over all kept examples.

    Args:
        labels: Class ids in [0, K), one column per copy; -1 for a copy that is left out.
        num_classes: K.
        labels_an_image: Labels of an image, on average over the data; all columns by default.

    Raises:
        RuntimeError: If a label lies outside [-1, K); on a GPU as a device-side assertion, later.

    Source: this project; follows from copies sharing their image.
    """
    counts = torch.zeros((len(labels), num_classes), device=labels.device)
    # Counts are whole numbers below 2^24: float sums are exact in any order, so atomics stay deterministic.
    left_out = labels == -1
    counts.scatter_add_(1, labels + left_out.long(), (~left_out).float())
    return counts / (labels_an_image or labels.shape[1])


class Histogram(Method):
    """Cross-entropy against `histogram_targets`: 1+α labels for the price of one forward and backward pass.

    Label smoothing adds the same to every image, however many labels a selection has left it.
    """

    stream: ClassVar[Literal["examples", "images"]] = "images"

    def __init__(self, setting: Setting) -> None:
        self.label_smoothing = setting.label_smoothing
        self.num_labels = 1.0 + setting.alpha if setting.labels_an_image is None else setting.labels_an_image
        self.num_classes = setting.num_classes

    def step(self, learner: Learner, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Train on one batch of images."""
        targets = histogram_targets(batch.labels, num_classes=self.num_classes, labels_an_image=self.num_labels)
        logits = learner.logits(batch.images)
        loss = self.loss(logits, targets)
        learner.update(loss, clock)
        right = targets.gather(1, logits.detach().argmax(dim=1, keepdim=True))  # share of an image's labels
        return {"train/loss": loss.detach(), "train/top1_accuracy": right.mean()}

    def loss(self, logits: Float[Tensor, "b k"], targets: Float32[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Compare logits with what `histogram_targets` returns."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
