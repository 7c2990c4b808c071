"""The phase that estimates a transition matrix before a run: a plain training, and what its net is most certain of."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64
from numpy import ndarray as Array

from pipeline.atomic import replacing
from train.assemble import evaluation_of, trained_learner
from train.evaluate import probabilities
from train.select.task import ALL, Task
from train.theory.transition import estimate_transition

LOOKED_AT: Final = 100_000  # training images; the ids are a class-balanced shuffle
FILE: Final = "transition.npy"


def estimated_transition(task: Task) -> Float64[Array, "k k"]:
    """Train a plain net on all examples, as long as the run itself, and estimate T from it; or read what was estimated.

    The weights are those of the lowest loss on the noisy validation: a net that has memorised its labels is certain of
    each of them, and would say that nothing is wrong. Without a validation they are the last ones.

    Nets are surer than the noise has them be, so that the diagonal comes out too large: 0.75 and 0.79 on average in
    place of 0.6 (`train mnist5k --law symmetric --rate 0.4 --model conv2 --batch 128 --epochs 6 --method forward
    --transition auto`, and the same with pair; one seed). The runs end at 94.9 and 92.0 % on test.

    Args:
        task: What a selector is given; its folder is the phase's own.

    Source: Patrini et al. 2017 (arXiv 1609.03683).
    Deviates: the paper does not choose weights.
    """
    world, path = task.world, task.folder / FILE
    before = world.from_first(np.load(path) if world.is_first and path.exists() else None)
    if before is not None:
        return np.asarray(before)
    num_examples = int(task.candidates().sum())
    recipe, folder = task.phase(num_examples, task.epochs), task.folder / "plain"
    task.train(recipe, folder, ALL)
    weights = _chosen(folder)
    learner = trained_learner(recipe, task.dataset, weights, world)
    images = range(min(task.num_images, LOOKED_AT))
    asked = evaluation_of(recipe, task.dataset, learner, "train", images=images)
    matrix = estimate_transition(probabilities(learner, asked))
    if world.is_first:
        with replacing(path) as file:
            np.save(file, matrix)
    return matrix


def _chosen(folder: Path) -> Path:
    best = folder / "best.pt"
    return best if best.exists() else folder / "last.pt"
