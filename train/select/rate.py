"""How many labels are wrong, told from the data: by how often a net predicts labels that it never saw."""

from __future__ import annotations

import numpy as np

from pipeline.console import console
from train.select.incv import Half, estimated, refuse_empty, split, train_half
from train.select.selection import Selection
from train.select.task import Task


def estimate_rate(task: Task) -> tuple[float, Half]:
    """Estimate the share of wrong labels under the symmetric law, whatever the law is.

    A net is trained on the examples of one half of the images and asked about the other half, as INCV begins. It is
    too small where the net fits few of its own labels, which a warning says, and somewhat too large otherwise, for real
    nets agree a little less with unseen labels than the law has it.

    Args:
        task: What a selector is given; `select_epochs` says how long the net is trained.

    Returns:
        The share, and the net.

    Raises:
        UserError: If there is too little data, or the agreement is so near chance that it says nothing.

    Source: Chen et al. 2019 (INCV, arXiv 1905.05040).
    """
    candidates = task.candidates()
    first, second = split(candidates, task.dataset.formula.num_images, seed=task.recipe.seed, iteration=0)
    refuse_empty(first, second, 0, str(task.recipe.select))
    half = train_half(task, "rate", first, second)
    rate = estimated(half, task.labels.astype(np.int64))
    if task.world.is_first:
        console.print(f"share of wrong labels: {rate:.3f}, estimated", highlight=False)
    return rate, half


def select_all(task: Task) -> Selection:
    """Keep every example, and estimate how many of their labels are wrong: for a method that has to know.

    Scores are minus the losses under the net that the estimate comes from. It saw half of the examples in training, so
    the scores of the two halves do not compare.

    Raises:
        UserError: If the estimate is not possible.
    """
    candidates = task.candidates()
    rate, half = estimate_rate(task)
    scores = np.where(candidates, -half.judge("last.pt", candidates).losses, np.float32("nan"))
    return Selection(candidates, scores, rate, {"noise_ratio": rate})
