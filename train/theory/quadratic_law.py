"""How often a net agrees with noisy labels that it was not trained on: a quadratic function of the noise ratio."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.law import check_share


class Agreement(NamedTuple):
    """What is expected of the examples whose prediction equals their noisy label.

    Args:
        accuracy: Their share of all examples: the accuracy against noisy labels.
        label_precision: Share of them whose label is right; nan if there are none.
        label_recall: Their share of the examples whose label is right; nan if no label is.
    """

    accuracy: float
    label_precision: float
    label_recall: float


def flip_law(noise_ratio: float, *, num_targets: int) -> Agreement:
    """Return what is expected of flips, for predictions that follow the noise as the labels do.

    With ε for the noise ratio and c for the targets, the accuracy is (1-ε)² + ε²/c, the first term of which has right
    labels, and the label recall is 1 - ε.

    Args:
        noise_ratio: Share of wrong labels, the same in every class, in [0, 1).
        num_targets: Classes that the wrong labels of a class are drawn from, each as likely: K - 1 for symmetric noise
            that excludes the true class, 1 for asymmetric noise.

    Raises:
        UserError: If the ratio is out of range.

    Source: Chen et al. 2019 (INCV), theory of cross-validation with noisy labels.
    """
    check_share("noise ratio", noise_ratio, below_one=True)
    right = (1 - noise_ratio) ** 2
    accuracy = right + noise_ratio**2 / num_targets
    return Agreement(accuracy, right / accuracy, 1 - noise_ratio)


def quadratic_law(
    transition: Float64[Array, "k k"],
    *,
    prior: Float64[Array, " k"] | None = None,
    confusion: Real[Array, "k k"] | None = None,
) -> Agreement:
    """Return what is expected under any transition matrix T, for predictions that do not depend on the labels.

    Given the true class i, prediction and label are independent: they are both j with probability P_ij T_ij, where P is
    how the net predicts. A net that reproduces the noise has P = T. No net separates the classes fully: with its
    confusion matrix C at noise 0, P = C T, and the accuracy is the sum over i and j of prior_i (C T)_ij T_ij.

    Args:
        transition: T, row = true class, column = label; rows sum to 1. A diluted set's is `Law.matrix`.
        prior: Share of each true class; None for equal shares.
        confusion: C, row = true class, column = prediction, as counts or shares; None for the identity.

    Raises:
        UserError: If a row of the confusion matrix is empty.

    Source: Chen et al. 2019 (INCV), theory of cross-validation with noisy labels: equal shares, P = T.
    Deviates: the paper has no prior and no C; its own figure shows nets below the law.
    """
    shares = np.full(len(transition), 1 / len(transition)) if prior is None else prior
    predictions = transition if confusion is None else _row_shares(confusion) @ transition
    agreeing = shares[:, None] * predictions * transition
    accuracy, right = float(agreeing.sum()), float(np.trace(agreeing))
    all_right = float(shares @ np.diagonal(transition))
    return Agreement(accuracy, right / accuracy if accuracy else math.nan, right / all_right if all_right else math.nan)


def _row_shares(confusion: Real[Array, "k k"]) -> Float64[Array, "k k"]:
    """Divide each row by its sum."""
    sums = confusion.sum(axis=1, keepdims=True)
    if (sums <= 0).any():
        raise UserError(
            f"class {int(sums.argmin())} has no image in the confusion matrix; measure it on images of every class"
        )
    shares: Float64[Array, "k k"] = confusion / sums
    return shares
