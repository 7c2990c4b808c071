"""What a net is worth: on the test images, and on held-out images with their noisy labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray as Array
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.laws import Formula
from pipeline.types import Batch
from train.distributed import World

TOP: Final = 5  # likeliest classes, of which one may be right; says nothing of five classes or fewer


@runtime_checkable
class Predictor(Protocol):
    """What can be evaluated: a learner; its processes see a part of the images each."""

    device: torch.device
    world: World

    def evaluating(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Yield the function from images to logits, without gradients."""
        ...


class Scores(NamedTuple):
    """Means over images.

    Args:
        top1_accuracy: Share of right predictions.
        top5_accuracy: Share of images whose (first) label is among the five likeliest classes; of equally likely ones
            no more than five count.
        loss: Cross-entropy in nats.
        loss_se: Standard error of `loss` over images.
        num_unreadable: Images (examples, where these have labels of their own) that are left out of all means.
    """

    top1_accuracy: float
    top5_accuracy: float
    loss: float
    loss_se: float
    num_unreadable: int


def image_scores(
    logits: Float32[Tensor, "b k"], labels: Int64[Tensor, "b a"]
) -> tuple[Float32[Tensor, " b"], Float32[Tensor, " b"]]:
    """Score each image against all its labels.

    Args:
        logits: One row an image.
        labels: One column a label.

    Returns:
        Share of the labels that are predicted, and mean cross-entropy over the labels.
    """
    right = (logits.argmax(dim=1, keepdim=True) == labels).float().mean(dim=1)
    return right, -F.log_softmax(logits, dim=1).gather(1, labels).mean(dim=1)


def evaluate(
    learner: Predictor,
    batches: Iterable[Batch],
    noise: Formula | None = None,
    noisy_logits: Callable[[Float[Tensor, "b k"]], Float[Tensor, "b k"]] = lambda logits: logits,
) -> Scores:
    """Score a net on images that are each seen once.

    Args:
        learner: The net.
        batches: Images with their source labels; rows are image ids.
        noise: Score against all labels of each image under this formula, instead of its source label.
        noisy_logits: Turns logits into those of what is scored against.

    Raises:
        UserError: If no image can be read.
    """
    device = learner.device
    sums = torch.zeros(6, dtype=torch.float64, device=device)  # images, unreadable, right, in top five, loss, loss²
    with learner.evaluating() as logits_of:
        for batch in batches:
            labels = batch.labels[:, None]
            if noise is not None:
                source = batch.labels.cpu().numpy().astype("uint16")
                labels = torch.from_numpy(noise.all_labels(batch.rows.numpy(), source).astype("int64"))
            logits, labels = noisy_logits(logits_of(batch.images)), labels.to(device)
            right, loss = (x.double() for x in image_scores(logits, labels))
            likeliest = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            first = (likeliest == labels[:, :1]).any(dim=1)
            counts = torch.tensor([len(loss), len(batch.replaced)], dtype=torch.float64, device=device)
            found = torch.stack([right.sum(), first.double().sum(), loss.sum(), loss.square().sum()])
            sums += torch.cat([counts, found])
    images, unreadable, rights, firsts, total, squares = learner.world.sum(sums).tolist()  # waits for the device
    if not images:
        raise UserError(
            f"none of the {int(unreadable):,} images to evaluate on can be read; tools/verify_shards names what is "
            "wrong with a data set"
        )
    mean = total / images
    variance = max(0.0, squares / images - mean**2) * images / max(1.0, images - 1)
    return Scores(rights / images, firsts / images, mean, math.sqrt(variance / images), int(unreadable))


def memorisation(learner: Predictor, batches: Iterable[Batch], noise: Formula) -> tuple[float, float]:
    """Measure what a net says of training images that carry wrong labels.

    Args:
        learner: The net.
        batches: Training images with their source labels; rows are image ids.
        noise: Gives all labels of an image.

    Returns:
        Means over wrong labels: how often the net predicts the label, and how often the source label of its image. A
        net that memorises nothing says a wrong label as often as the noise would: (1 - the second) / (K - 1) under
        uniform noise. Both are nan where no label is wrong.

    Source: Arpit et al. 2017 (arXiv 1706.05394) and Liu et al. 2020 (arXiv 2007.00151) track both shares.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=learner.device)  # wrong labels, said as given, said as they were
    with learner.evaluating() as logits_of:
        for batch in batches:
            source = batch.labels.cpu().numpy().astype("uint16")
            labels = torch.from_numpy(noise.all_labels(batch.rows.numpy(), source).astype("int64")).to(learner.device)
            true = batch.labels.to(learner.device)[:, None]
            said = logits_of(batch.images).argmax(dim=1, keepdim=True)
            wrong = labels != true
            counts = (wrong, wrong & (labels == said), wrong & (said == true))
            sums += torch.stack([count.sum() for count in counts]).double()
    given, as_given, as_true = learner.world.sum(sums).tolist()  # device-to-host synchronization
    return (as_given / given, as_true / given) if given else (math.nan, math.nan)


def confusion(learner: Predictor, batches: Iterable[Batch], num_classes: int) -> Int64[Array, "k k"]:
    """Count how often each class is taken for each class: rows = source class, columns = predicted class.

    Args:
        learner: The net.
        batches: Images with their source labels.
        num_classes: K.
    """
    cells = torch.zeros(num_classes**2, dtype=torch.int64, device=learner.device)
    with learner.evaluating() as logits_of:
        for batch in batches:
            pairs = batch.labels.to(learner.device) * num_classes + logits_of(batch.images).argmax(dim=1)
            cells += torch.bincount(pairs, minlength=num_classes**2)
    matrix: Int64[Array, "k k"] = learner.world.sum(cells).view(num_classes, num_classes).cpu().numpy()
    return matrix


def probabilities(learner: Predictor, batches: Iterable[Batch]) -> Float32[Array, "n k"]:
    """Return what a net says of images, a row each, in their order.

    Args:
        learner: The net.
        batches: This process's part of the images.
    """
    with learner.evaluating() as logits_of:
        said = [logits_of(batch.images).softmax(dim=1).cpu().numpy() for batch in batches]
    return np.concatenate([rows for part in learner.world.gather(said) for rows in part])


def columns(evaluations: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Report test accuracy under each rule of choosing an evaluation.

    `last` and `last10` (mean of the last ten) choose nothing; `best_noisy_val` takes the evaluation with the lowest
    loss on noisy validation labels; `best_test` takes the best one on the test labels, which nobody has: an oracle.

    Args:
        evaluations: In the order of the run, at least one.
    """
    accuracy = [row["eval/top1_accuracy"] for row in evaluations]
    chosen = best_by_noisy_validation(evaluations)
    return {
        "last": accuracy[-1],
        "last10": math.fsum(accuracy[-10:]) / len(accuracy[-10:]),
        "best_noisy_val": None if chosen is None else accuracy[chosen],
        "best_test": max(accuracy),
    }


def best_by_noisy_validation(evaluations: Sequence[dict[str, float]]) -> int | None:
    """Return the index of the evaluation with the lowest noisy validation loss, the first of equals.

    Returns:
        None if nothing was held out.
    """
    losses = [row.get("eval/noisy_val_loss") for row in evaluations]
    found = [loss for loss in losses if loss is not None]
    return losses.index(min(found)) if found else None
