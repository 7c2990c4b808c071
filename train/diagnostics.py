"""How well a selection or a score tells right labels from wrong ones; it takes the truth to know."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy import ndarray as Array
from sklearn.metrics import roc_auc_score


class LossHistograms(NamedTuple):
    """Losses of right and of wrong labels, counted in the same bins.

    Args:
        edges: Of the bins, from the smallest loss to the largest; the last bin holds both of its edges.
        right: Examples with a right label.
        wrong: Examples with a wrong one.
    """

    edges: Float64[Array, " edges"]
    right: Int64[Array, " bins"]
    wrong: Int64[Array, " bins"]


def label_precision(kept: Bool[Array, " n"], right: Bool[Array, " n"]) -> float:
    """Return the share of right labels among what was kept; nan if nothing was.

    Args:
        kept: Whether each example is in the selection.
        right: Whether its label is that of its true class.
    """
    return float(right[kept].mean()) if kept.any() else math.nan


def label_recall(kept: Bool[Array, " n"], right: Bool[Array, " n"]) -> float:
    """Return the share of right labels that were kept; nan if no label is right.

    Args:
        kept: Whether each example is in the selection.
        right: Whether its label is that of its true class.
    """
    return label_precision(right, kept)


def label_auroc(scores: Float[Array, " n"], right: Bool[Array, " n"]) -> float:
    """Return how often a right label scores higher than a wrong one, ties counted by half; nan if one kind is missing.

    Args:
        scores: Finite, higher for labels that are taken for right: a loss with its sign turned.
        right: Whether each label is that of its example's true class.

    Raises:
        ValueError: If a score is not finite.
    """
    if right.all() or not right.any():
        return math.nan
    return float(roc_auc_score(right, scores))


def loss_histograms(losses: Float[Array, " n"], right: Bool[Array, " n"], *, num_bins: int = 100) -> LossHistograms:
    """Count the losses of right and of wrong labels in bins of equal width.

    Args:
        losses: One an example, finite.
        right: Whether each label is that of its example's true class.
        num_bins: At least 1.

    Raises:
        ValueError: If there is no loss, or one is not finite.
    """
    limits = float(losses.min()), float(losses.max())
    all_losses, edges = np.histogram(losses, bins=num_bins, range=limits)
    of_right, _ = np.histogram(losses[right], bins=num_bins, range=limits)
    return LossHistograms(edges.astype(np.float64), of_right, all_losses - of_right)
