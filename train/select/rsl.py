"""Small-loss selection: of every observed class, the examples whose mean loss over a whole training is smallest."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt16
from numpy import ndarray as Array

from pipeline.errors import UserError
from train.example_losses import read_losses
from train.methods.forward import known_transition
from train.select.rate import estimate_rate
from train.select.selection import Selection
from train.select.task import ALL, Task, warn
from train.theory.rsl import failed_conditions, kept_counts, observed_noise_rates


def select_rsl(task: Task) -> Selection:
    """Train on all examples, then keep those of smallest mean loss, class by observed class.

    The noise rates of the observed classes are those of the law, or all the one that is given, or that is estimated
    where the law does not say it. How many images each class has is known with the law; where one rate stands for all,
    as many as carry its label. Where a law contradicts the conditions under which small losses are right labels, a
    warning says so, whoever says the rates.

    Source: Gui et al. 2021 (RSL, arXiv 2106.09291).
    Deviates: losses are those of the training passes; see `train.example_losses`. The net is the run's own, trained as
        long as `select_epochs` says, by default as long as the run itself; the authors take 200 epochs.

    Raises:
        UserError: If the noise rates cannot be told, or a class would keep no example.
    """
    labels, candidates = task.labels, task.candidates()
    num_classes, source = task.dataset.num_classes, task.dataset.train.source_labels
    prior = np.bincount(source[: task.num_images], minlength=num_classes) / task.num_images
    rates, said = noise_rates(task, prior)
    if "noise_ratio" in said:  # one rate for all, and nobody has counted the classes
        prior = np.bincount(labels[candidates], minlength=num_classes) / candidates.sum()
    num_candidates = int(candidates.sum())
    epochs = task.recipe.select_epochs or task.epochs
    recipe = task.phase(num_candidates, epochs, example_losses=True)
    folder = task.folder / "losses"
    task.train(recipe, folder, ALL)
    losses = read_losses(folder / "losses.npy")
    kept = smallest_of_classes(losses, labels, rates, prior)
    return Selection(kept, -losses, None, {"noise_rates": rates.round(6).tolist(), **said})


def noise_rates(task: Task, prior: Float64[Array, " k"]) -> tuple[Float64[Array, " k"], dict[str, Any]]:
    """Return the share of wrong labels among the examples of each observed class, and what there is to say of it.

    Returns:
        The shares; under "warnings" what speaks against small-loss selection or an estimate, and under "noise_ratio"
        the share of all labels, where it is given or estimated.

    Raises:
        UserError: If neither the recipe nor the law says it, and it cannot be estimated.
    """
    formula, given = task.dataset.formula, task.recipe.select_rate
    matrix = None if task.dataset.observed else _matrix(task)
    warnings = [] if matrix is None else failed_conditions(matrix)
    warn(task, warnings)
    if matrix is not None and given is None:
        return observed_noise_rates(matrix, prior), {"warnings": warnings}
    rate = given
    if rate is None or isinstance(rate, str):
        estimate = estimate_rate(task)
        rate, warnings = estimate.rate, warnings + estimate.warnings
    return np.full(formula.num_classes, rate), {"noise_ratio": rate, "warnings": warnings}


def _matrix(task: Task) -> Float64[Array, "k k"] | None:
    """Return the transition matrix of the law; None if it has none."""
    formula = task.dataset.formula
    try:
        return known_transition(formula.law, alpha=formula.alpha, num_classes=formula.num_classes)
    except UserError:
        return None


def smallest_of_classes(
    losses: Float32[Array, " e"], labels: UInt16[Array, " e"], rates: Float64[Array, " k"], prior: Float64[Array, " k"]
) -> Bool[Array, " e"]:
    """Mark the examples of smallest loss in each observed class, as many as `kept_counts` says; of equals the first.

    Args:
        losses: One an example; nan where it was never seen, which is never kept.
        labels: As observed.
        rates: Share of wrong labels of each observed class.
        prior: Share of each true class.
    """
    num_classes = len(prior)
    seen = ~np.isnan(losses)
    counts = np.bincount(labels[seen], minlength=num_classes)
    there = (counts > 0) & (prior > 0)  # a class without images has nothing to keep
    numbers: Int64[Array, " k"] = np.zeros(num_classes, dtype=np.int64)
    numbers[there] = kept_counts(rates[there], counts[there], prior[there])
    ids = np.flatnonzero(seen)
    order = ids[np.lexsort((losses[ids], labels[ids]))]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranks = np.arange(len(order)) - starts[labels[order]]
    kept = np.zeros(len(losses), dtype=np.bool_)
    kept[order[ranks < numbers[labels[order]]]] = True
    return kept
