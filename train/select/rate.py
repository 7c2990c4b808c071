"""How many labels are wrong, told from the data: by how often a net predicts labels that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64
from numpy import ndarray as Array

from pipeline.console import console
from pipeline.errors import UserError
from train.select.halves import Half, refuse_added_images, refuse_empty, split, train_half
from train.select.selection import Selection
from train.select.task import Task, warn
from train.theory.incv import estimate_noise_ratio

_FITS: Final = 0.9


@dataclass(frozen=True)
class Estimate:
    """A share of wrong labels that a net told.

    Args:
        rate: The share.
        half: The net.
        warnings: Why it may be far off, in words.
    """

    rate: float
    half: Half
    warnings: list[str]


def estimate_rate(task: Task) -> Estimate:
    """Estimate the share of wrong labels under the symmetric law, whatever the law is.

    A net is trained on the examples of one half of the images and asked about the other half, as INCV begins. It is
    too small where the net fits few of its own labels, which a warning says, and somewhat too large otherwise, for real
    nets agree a little less with unseen labels than the law has it.

    Args:
        task: What a selector is given; `select_epochs` says how long the net is trained.

    Raises:
        UserError: If there is too little data, the agreement is so near chance that it says nothing, images have
            several labels, or copies show other images.

    Source: Chen et al. 2019 (INCV, arXiv 1905.05040).
    """
    refuse_added_images(task)
    refuse_copies(task)
    candidates = task.candidates()
    first, second = split(candidates, task.dataset.formula.num_images, seed=task.recipe.seed, iteration=0)
    refuse_empty(first, second, str(task.recipe.select))
    half = train_half(task, "rate", first, second)
    estimate = estimated(half, task.labels.astype(np.int64))
    if task.world.is_first:
        console.print(f"share of wrong labels: {estimate.rate:.3f}, estimated", highlight=False)
    return estimate


def refuse_copies(task: Task) -> None:
    """Stop where images have several labels: no net fits labels that contradict each other, as the estimate has it.

    Raises:
        UserError: If that is so.
    """
    if alpha := task.dataset.formula.alpha:
        share = task.dataset.wrong_share
        told = "" if share is None else f"; by the law it is {share:.4g}"
        raise UserError(
            f"selection {task.recipe.select} estimates the share of wrong labels from nets that fit their labels, and "
            f"none fits the {1 + alpha} of each image, which contradict each other; give {instead_of(task)}{told}"
        )


def instead_of(task: Task) -> str:
    """Return the flag that says what a selection would estimate."""
    return "--forget-rate in place of --select all" if task.recipe.select == "all" else "--select-rate"


def select_all(task: Task) -> Selection:
    """Keep every example, and estimate how many of their labels are wrong: for a method that has to know.

    Scores are minus the losses under the net that the estimate comes from. It saw half of the examples in training, so
    the scores of the two halves do not compare.

    Raises:
        UserError: If the estimate is not possible.
    """
    candidates = task.candidates()
    estimate = estimate_rate(task)
    scores = np.where(candidates, -estimate.half.judge("last.pt", candidates).losses, np.float32("nan"))
    told = {"noise_ratio": estimate.rate, "warnings": estimate.warnings}
    return Selection(candidates, scores, estimate.rate, told)


def estimated(half: Half, labels: Int64[Array, " e"]) -> Estimate:
    """Estimate the noise ratio from how often a net's last weights predict labels that it never saw.

    The law is that of nets that fit their own labels, wrong ones too; where the net fits fewer than nine in ten of
    them, as after few passes, a warning says that the ratio is too small.

    Deviates: the authors' code takes the weights that judge, which may be those of an early epoch.

    Raises:
        UserError: If the predictions say too little.
    """
    judged = half.judge("last.pt", half.learnt | half.asked)
    agrees, number = judged.predicted == labels, int(half.asked.sum())
    accuracy, fitted = float(agrees[half.asked].mean()), float(agrees[half.learnt].mean())
    name, instead = half.task.recipe.select, instead_of(half.task)
    try:
        ratio = estimate_noise_ratio(accuracy, num_classes=half.task.dataset.num_classes, num_examples=number)
    except UserError as error:
        raise UserError(
            f"selection {name} cannot tell the noise ratio: {error}, by {instead} and another --out"
        ) from None
    warnings = []
    if fitted < _FITS:
        warnings.append(
            f"the net fits {fitted:.0%} of its own labels, so that the noise ratio {ratio:.3f} is estimated too small; "
            f"give {instead}, or more --select-epochs"
        )
    warn(half.task, warnings)
    return Estimate(ratio, half, warnings)
