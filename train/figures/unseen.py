"""Half of the images is learnt without augmentation; how the net agrees with the noisy labels of the other half."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray as Array

from pipeline.dataset import DilutedSet
from train.diagnostics import label_precision, label_recall
from train.distributed import ALONE
from train.experiment import judge
from train.recipes import Recipe
from train.select.task import Part
from train.theory.quadratic_law import quadratic_law


def halves(dataset: DilutedSet) -> Part:
    """Return the examples of the first half of the images to train on, those of the other to validate on."""
    ids = np.arange(dataset.formula.num_examples)
    first = ids % dataset.formula.num_images < dataset.formula.num_images // 2
    return Part(ids[first], ids[~first])


def measure_unseen(
    recipe: Recipe, dataset: DilutedSet, folder: Path, confusion: Int64[Array, "k k"]
) -> dict[str, float]:
    """Hold a finished run against the labels of the half that it did not see, and against the law.

    Args:
        recipe: Of the run.
        dataset: Of the run; its law must know its matrix.
        folder: Of the run.
        confusion: C, of a net that learnt the same half without noise.

    Returns:
        fitted: Share of the labels of its own half that the last weights predict.
        unseen_accuracy, unseen_precision, unseen_recall: Share of the labels of the other half that they predict, how
            many of those are right, and how many of the right ones those are.
        early_accuracy, early_precision, early_recall: The same of the weights that did best on those labels.
        law_accuracy, law_precision, law_recall: What the quadratic law says, with C.
    """
    formula, source = dataset.formula, dataset.train.source_labels
    images = np.arange(formula.num_images)
    labels = formula.labels_by_example(source).astype(np.int64)
    right = labels == np.tile(source, 1 + formula.alpha)
    part = halves(dataset)
    found: dict[str, float] = {}
    for name, weights in (("unseen", "last.pt"), ("early", "best.pt")):
        agrees = judge(recipe, dataset, folder / weights, images, ALONE).predicted == labels
        unseen, of_right = agrees[part.noisy_val], right[part.noisy_val]
        if name == "unseen":
            found["fitted"] = float(agrees[part.train].mean())
        found |= {
            f"{name}_accuracy": float(unseen.mean()),
            f"{name}_precision": label_precision(unseen, of_right),
            f"{name}_recall": label_recall(unseen, of_right),
        }
    prior = np.bincount(source, minlength=formula.num_classes) / len(source)
    law = quadratic_law(formula.law.matrix(formula.alpha, formula.num_classes), prior=prior, confusion=confusion)
    found |= {"law_accuracy": law.accuracy, "law_precision": law.label_precision, "law_recall": law.label_recall}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def confusion_of(recipe: Recipe, dataset: DilutedSet, folder: Path) -> Int64[Array, "k k"]:
    """Count how a run without noise takes the classes of the half that it did not see: rows = true class."""
    images = np.arange(dataset.formula.num_images // 2, dataset.formula.num_images)
    predicted = judge(recipe, dataset, folder / "last.pt", images, ALONE).predicted[images]
    matrix: Array[Any, Any] = np.zeros((dataset.num_classes, dataset.num_classes), dtype=np.int64)
    np.add.at(matrix, (dataset.train.source_labels[images], predicted), 1)
    return matrix
