"""Iterative noisy cross-validation: an example is selected when a net that never saw it predicts its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray as Array

from pipeline.console import console
from train.select.halves import copies_of, images_with, refuse_added_images, refuse_empty, split, train_half
from train.select.rate import estimated, refuse_copies
from train.select.selection import Selection
from train.select.task import Task
from train.theory.incv import agreeing_noise_ratio, candidates_from, remove_ratio, selected_noise_ratio

ITERATIONS: Final = 4
PAIRS: Final = ("pair", "map")  # laws that send a class to one other class


@dataclass
class State:
    """How far a selection has come; all by example id.

    Args:
        iterations: In which each example was selected, from 1 on; 0 for those that were not.
        candidates: Neither selected nor removed yet.
        scores: Minus the loss of an example when it was last judged; nan before.
    """

    iterations: UInt8[Array, " e"]
    candidates: Bool[Array, " e"]
    scores: Float32[Array, " e"]

    @property
    def selected(self) -> Bool[Array, " e"]:
        """Whether each example is in the selection."""
        return self.iterations > 0


def select_incv(task: Task) -> Selection:
    """Train on one half and select from the other, four times each way.

    Copies of an image are always in the same half. A net that is trained on half of the candidates and on what is
    selected of other images judges the other half: examples whose label it predicts are selected, and of those with the
    largest losses up to twice as many are removed for good (not under laws that send a class to one other, where they
    say less). All nets begin at the same weights. Those that judge are, as long as little is selected, the ones of the
    lowest loss on the other half's labels; later the last ones.

    The noise ratio is the given one, or estimated from the first half, under the symmetric law whatever the law is.
    Where images have several labels that contradict each other no net fits them, and an estimate is refused: the ratio
    is then that of the law, and how many wrong labels are selected is told from how often nets agree with labels and
    contradict each other.

    What is neither selected nor removed in the end are candidates, which method coteaching takes in late: after 40 % of
    the run where the ratio exceeds 0.6 or a class goes to one other, else after 20 %.

    Source: Chen et al. 2019 (INCV, arXiv 1905.05040).
    Deviates: the number of passes is `select_epochs`, by default a quarter of the run's, with the run's own optimizer
        and schedule; weights are chosen by loss, the authors' by accuracy. Nothing is removed where the ratio asks for
        none: the authors' code then removes the whole half. What is removed is never among what is selected.

    Raises:
        UserError: If the noise ratio cannot be told, nothing is left to train on, or copies show other images.
    """
    refuse_added_images(task)
    labels, candidates = task.labels.astype(np.int64), task.candidates()
    recipe, formula = task.recipe, task.dataset.formula
    never, unjudged = np.zeros(len(labels), dtype=np.uint8), np.full(len(labels), np.nan, dtype=np.float32)
    state = State(never, candidates.copy(), unjudged)
    ratio, warnings = told_ratio(task), list[str]()
    told: list[dict[str, float]] = []
    for iteration in range(ITERATIONS):
        if iteration and len(images_with(state.candidates, formula.num_images)) < 2:
            break  # two halves want an image each
        halves = split(state.candidates, formula.num_images, seed=recipe.seed, iteration=iteration)
        chosen, dropped = np.zeros_like(candidates), np.zeros_like(candidates)
        for side in (0, 1):
            asked = halves[1 - side]
            learnt = halves[side] | (state.selected & ~copies_of(asked, formula.num_images))
            refuse_empty(learnt, asked, "incv")
            half = train_half(task, f"{iteration + 1}{'ab'[side]}", learnt, asked)
            if ratio is None:
                estimate = estimated(half, labels)
                ratio, warnings = estimate.rate, estimate.warnings
            early = iteration < best_iterations(ratio, pairs=formula.law.name in PAIRS)
            judged = half.judge("best.pt" if early else "last.pt", asked)
            agrees = asked & (judged.predicted == labels)
            state.scores[asked] = -judged.losses[asked]
            chosen |= agrees
            if formula.law.name not in PAIRS:
                dropped |= largest(judged.losses, asked & ~agrees, int(remove_ratio(ratio) * agrees.sum()))
        state.iterations[chosen] = iteration + 1
        state.candidates &= ~(chosen | dropped)
        told.append({"selected": int(state.selected.sum()), "candidates": int(state.candidates.sum())})
        if task.world.is_first:
            console.print(
                f"incv {iteration + 1} of {ITERATIONS}: {told[-1]['selected']:,} selected, "
                f"{told[-1]['candidates']:,} undecided (noise ratio {ratio:.3f})",
                highlight=False,
            )
    assert ratio is not None
    pairs = formula.law.name in PAIRS
    if formula.alpha:
        agreement = float((state.iterations[candidates] == 1).mean())
        first = agreeing_noise_ratio(ratio, agreement=agreement, num_classes=formula.num_classes)
        wrong = min(ratio, wrong_share_of_copies(state.selected, labels, formula.num_images, alone=first))
    else:
        wrong = selected_noise_ratio(ratio, num_targets=1 if pairs else formula.num_classes - 1)
    late_from = candidates_from(ratio, pairs=pairs) if recipe.late_from is None else recipe.late_from
    found = {"noise_ratio": ratio, "warnings": warnings, "iterations": told}
    return Selection(state.selected, state.scores, wrong, found, state.iterations, state.candidates, late_from)


def told_ratio(task: Task) -> float | None:
    """Return the noise ratio that a selection is given, or that the law says where images have several labels.

    Returns:
        A share of wrong labels; None where it is to be estimated.

    Raises:
        UserError: If images have several labels and nobody says it.
    """
    given, alpha = task.recipe.select_rate, task.dataset.formula.alpha
    if isinstance(given, float | int):
        return given
    if alpha and given is None and task.dataset.wrong_share is not None:
        return task.dataset.wrong_share
    refuse_copies(task)
    return None


def wrong_share_of_copies(
    selected: Bool[Array, " e"], labels: Int64[Array, " e"], num_images: int, *, alone: float
) -> float:
    """Return the share of wrong labels to expect in a selection from images that have several labels.

    An image has one class. Where the selected labels of an image are of m classes, because nets of several iterations
    contradict each other, all but one of these are wrong.

    Args:
        selected: By example id; some are.
        labels: Likewise.
        num_images: n.
        alone: The share where all selected labels of an image are of one class.

    Source: ours; on digits at α = 5 and 20 (2,000 images, conv2, 3 passes) it told .099 and .445 where .076 and .403
        were wrong.
    """
    ids = np.flatnonzero(selected)
    classes = np.unique(np.stack([ids % num_images, labels[ids]]), axis=1)[0]  # the image of each class that it has
    of_image = np.bincount(classes, minlength=num_images)[ids % num_images]
    return float(np.where(of_image == 1, alone, 1 - 1 / of_image).mean())


def best_iterations(ratio: float, *, pairs: bool) -> int:
    """Return how many iterations judge by the weights that do best on the other half.

    Source: Chen et al. 2019, `iter_save_best` of the authors' code.
    """
    if pairs or ratio > 0.6:
        return 1
    return 2 if ratio > 0.3 else ITERATIONS


def largest(losses: Float32[Array, " e"], of: Bool[Array, " e"], number: int) -> Bool[Array, " e"]:
    """Mark the examples of largest loss, of equals the first.

    Args:
        losses: By example id.
        of: Which may be marked.
        number: How many at most; none for 0.
    """
    ids: Int64[Array, " o"] = np.flatnonzero(of)
    marked = np.zeros_like(of)
    marked[ids[np.argsort(-losses[ids], kind="stable")[:number]]] = True
    return marked
