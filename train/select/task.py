"""What a selector is given: the data, the recipe of the run, and a way to train nets on parts of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt16
from numpy import ndarray as Array

from pipeline.console import console
from pipeline.dataset import DilutedSet
from pipeline.loaders import Evaluation
from pipeline.stream import Late, Rest
from train.distributed import World
from train.evaluate import Predictor
from train.recipes import Recipe, rows_an_epoch

_EVALUATIONS: Final = 10  # of a net that a selector trains: enough to choose the best of


@dataclass(frozen=True)
class Part:
    """Which examples a run trains on, and which it validates on.

    Args:
        train: Example ids, ascending; None is all that `val_frac` leaves.
        noisy_val: Example ids, ascending; None is the images that `val_frac` holds out.
        rest: Shown beside those of `train`, for a method that learns from both.
        late: Examples that join `train`; None for none.
    """

    train: Int64[Array, " e"] | None = None
    noisy_val: Int64[Array, " v"] | None = None
    rest: Rest | None = None
    late: Late | None = None


ALL: Final = Part()


@dataclass(frozen=True)
class Judged:
    """What a net says of images and all their labels, by example id; where it was not asked, -1 and nan.

    Args:
        predicted: Its class of the image.
        losses: Cross-entropy of the label.
    """

    predicted: Int64[Array, " e"]
    losses: Float32[Array, " e"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A selection to make.

    Args:
        recipe: Of the run that will be trained on it.
        dataset: To select from.
        num_images: The first so many are trained on; the others are held out and not looked at.
        folder: For the runs of the selector and what it finds.
        world: The processes that work on it.
        train: Trains a net by a recipe on a part of the data, in a folder of its own; goes on where it was stopped.
        judge: Asks the net of a recipe, with the weights in a file, about images.
    """

    recipe: Recipe
    dataset: DilutedSet
    num_images: int
    folder: Path
    world: World
    train: Callable[[Recipe, Path, Part], None]
    judge: Callable[[Recipe, Path, Int64[Array, " i"]], Judged]

    @property
    def epochs(self) -> float:
        """Passes of the run over what its method streams: examples, or images with all their labels."""
        alpha = self.dataset.formula.alpha
        return self.recipe.examples / rows_an_epoch(
            self.recipe.method, num_images=self.num_images, num_copies=1 + alpha
        )

    @cached_property
    def labels(self) -> UInt16[Array, " e"]:
        """The labels of all examples, by example id."""
        return self.dataset.formula.labels_by_example(self.dataset.train.source_labels)

    def candidates(self) -> Bool[Array, " e"]:
        """Mark the examples that may be selected, by example id."""
        return examples_of(self.dataset, self.num_images)

    def phase(self, num_examples: int, epochs: float, **changes: Any) -> Recipe:
        """Return the recipe of a net that the selector trains: the run's, but plain and of its own length.

        Args:
            num_examples: It is trained on.
            epochs: Passes over them.
            changes: Other fields.
        """
        batch = min(self.recipe.batch, num_examples // self.world.size * self.world.size)
        examples = max(batch, round(epochs * num_examples))
        own: dict[str, Any] = {
            "method": "plain",
            **dict.fromkeys(("select", "select_epochs", "select_rate", "late_from", "measure", "mentor", "transition")),
            "batch": batch,
            "examples": examples,
            "eval_every": max(1, examples // _EVALUATIONS),
            "accumulate": 1 if batch != self.recipe.batch else self.recipe.accumulate,
            "example_losses": False,
        }
        return dataclasses.replace(self.recipe, **{**own, **changes})


def warn(task: Task, warnings: list[str]) -> None:
    """Print warnings; what is found says them too, for runs that print nothing."""
    if task.world.is_first:
        for line in warnings:
            console.print(f"warning: {line}", soft_wrap=True, highlight=False)


def examples_of(dataset: DilutedSet, num_images: int) -> Bool[Array, " e"]:
    """Mark the examples of the first so many images, by example id."""
    return np.tile(np.arange(dataset.formula.num_images) < num_images, 1 + dataset.formula.alpha)


def judge_images(learner: Predictor, images: Evaluation, num_images: int, alpha: int) -> Judged:
    """Ask a net about images and all their labels, one forward pass an image.

    Args:
        learner: The net.
        images: This process's part of the images, with their source labels.
        num_images: n of the data set.
        alpha: Noisy labels a clean one.
    """
    rows: list[Array[Any, Any]] = [np.empty(0, dtype=np.int64)]
    said: list[Array[Any, Any]] = [np.empty(0, dtype=np.int64)]
    losses: list[Array[Any, Any]] = [np.empty((0, 1 + alpha), dtype=np.float32)]
    with learner.evaluating() as logits_of:
        for batch in images:
            source = batch.labels.cpu().numpy().astype("uint16")
            labels = torch.from_numpy(images.formula.all_labels(batch.rows.numpy(), source).astype("int64"))
            logits = logits_of(batch.images)
            rows.append(batch.rows.numpy())
            said.append(logits.argmax(dim=1).cpu().numpy())
            losses.append(-logits.log_softmax(dim=1).gather(1, labels.to(logits.device)).cpu().numpy())
    predicted = np.full(num_images, -1, dtype=np.int64)
    found = np.full((1 + alpha, num_images), np.nan, dtype=np.float32)
    for own_rows, own_said, own_losses in learner.world.gather(tuple(map(np.concatenate, (rows, said, losses)))):
        predicted[own_rows] = own_said
        found[:, own_rows] = own_losses.T
    return Judged(np.tile(predicted, 1 + alpha), found.reshape(-1))
