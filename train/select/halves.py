"""Cross-validation by halves: a net is trained on one half of the images and asked about the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray as Array

from kernels.permutation import permutation
from kernels.philox import FOLD
from pipeline.errors import UserError
from train.recipes import Recipe
from train.select.task import Judged, Part, Task

_SHARE_OF_RUN: Final = 0.25  # passes of each training against those of the run; INCV's authors' are 50 and 200


def split(candidates: Bool[Array, " e"], num_images: int, *, seed: int, iteration: int) -> Bool[Array, "2 e"]:
    """Cut candidates into two halves by image, as a shuffle of the images says that have any.

    Args:
        candidates: By example id.
        num_images: n.
        seed: The run's.
        iteration: Each has halves of its own.
    """
    there = images_with(candidates, num_images)
    order = permutation(len(there), seed=seed, domain=FOLD, a=iteration)(np.arange(len(there)))
    first = np.zeros(num_images, dtype=np.bool_)
    first[there[order[: len(there) // 2]]] = True
    everywhere = np.tile(first, len(candidates) // num_images)
    return np.stack([candidates & everywhere, candidates & ~everywhere])


def images_with(examples: Bool[Array, " e"], num_images: int) -> Int64[Array, " i"]:
    """Return the ids of the images that have some of these examples.

    Args:
        examples: By example id.
        num_images: n.
    """
    return np.flatnonzero(examples.reshape(-1, num_images).any(axis=0))


def copies_of(examples: Bool[Array, " e"], num_images: int) -> Bool[Array, " e"]:
    """Mark all examples of the images that have some of these.

    Args:
        examples: By example id.
        num_images: n.
    """
    return np.tile(examples.reshape(-1, num_images).any(axis=0), len(examples) // num_images)


@dataclass(frozen=True)
class Half:
    """A net that was trained on a half of the candidates and on what was selected before.

    Args:
        task: Of the selection.
        recipe: Of the net.
        folder: Of its run.
        learnt: Its examples.
        asked: Examples of the other half.
    """

    task: Task
    recipe: Recipe
    folder: Path
    learnt: Bool[Array, " e"]
    asked: Bool[Array, " e"]

    def judge(self, weights: str, examples: Bool[Array, " e"]) -> Judged:
        """Ask the net, with some of its weights, about the images of examples."""
        images = images_with(examples, self.task.dataset.formula.num_images)
        return self.task.judge(self.recipe, self.folder / weights, images)


def train_half(task: Task, name: str, learnt: Bool[Array, " e"], asked: Bool[Array, " e"]) -> Half:
    """Train a net on some examples, and validate it on the labels of others."""
    epochs = task.recipe.select_epochs or _SHARE_OF_RUN * task.epochs
    recipe = task.phase(int(learnt.sum()), epochs)
    task.train(recipe, task.folder / name, Part(np.flatnonzero(learnt), np.flatnonzero(asked)))
    return Half(task, recipe, task.folder / name, learnt, asked)


def refuse_added_images(task: Task) -> None:
    """Stop where copies show other images: a net is asked about an image once, for all labels of its copies.

    How often it agrees would not tell how many labels are wrong either: it may know the other images by their looks.

    Raises:
        UserError: If that is so.
    """
    law = task.dataset.formula.law
    if law.adds_images:
        raise UserError(
            f"selection {task.recipe.select} asks a net about an image once, for the labels of all its copies, and law "
            f"{law.name} shows other images under them; give --select rsl with --select-rate, the share of wrong "
            "labels, or train without a selection"
        )


def refuse_empty(learnt: Bool[Array, " e"], asked: Bool[Array, " e"], name: str) -> None:
    """Stop where a half has nothing to train on or to judge.

    Raises:
        UserError: If that is so.
    """
    if not learnt.any() or not asked.any():
        raise UserError(
            f"selection {name} has {learnt.sum():,} examples to train on and {asked.sum():,} to judge; it needs some "
            "of both: give more data"
        )
