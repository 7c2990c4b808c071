"""Transition matrices that no law says: checked, or estimated from what a plainly trained net is most certain of."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.structured import check_square

_ABOVE: Final = 0.03  # share of a class's images that may be more certain than the one that stands for it: outliers
_ROUNDING: Final = 1e-6  # of a row's sum


def estimate_transition(probabilities: Float[Array, "n k"]) -> Float64[Array, "k k"]:
    """Estimate T from what a net that was trained on noisy labels says of images.

    Such a net predicts the label, noise and all: of an image that is surely of class i it says row i of T. The image
    that is taken for that is one of those with the largest probability of label i, and not the very first: of as many
    as a class has on average, 3 % lie above it.

    Args:
        probabilities: Of each label, an image a row; n at least 1.

    Returns:
        T_ij = p(j | x^i), row = true class, column = label; rows sum to 1.

    Source: Patrini et al. 2017 (arXiv 1609.03683), the estimator of T, with the 97 % quantile in place of the maximum.
    Deviates: the quantile is over n / K images. Over all of them, as in the paper, it is one of another class as soon
        as a class has less than 3 % of the images.
    """
    num_images, num_classes = probabilities.shape
    rank = int(_ABOVE * num_images / num_classes)
    anchors = np.argsort(-probabilities, axis=0, kind="stable")[rank]
    said = probabilities[anchors].astype(np.float64)
    matrix: Float64[Array, "k k"] = said / said.sum(axis=1, keepdims=True)
    return matrix


def checked_transition(matrix: Float64[Array, "*shape"], num_classes: int) -> Float64[Array, "k k"]:
    """Return a transition matrix with rows that sum to 1 exactly, if it is one.

    Args:
        matrix: Row = true class, column = label, of any shape.
        num_classes: K.

    Raises:
        UserError: If it is no K×K matrix, a row is no distribution, or a label is possible for no class.
    """
    check_square("the transition matrix", matrix)
    if len(matrix) != num_classes:
        raise UserError(f"the transition matrix is of {len(matrix)} classes, and the data set has {num_classes}")
    sums = matrix.sum(axis=1)
    bad = np.flatnonzero(~((np.abs(sums - 1) <= _ROUNDING) & (matrix >= 0).all(axis=1)))
    if len(bad):
        row = bad[0]
        raise UserError(
            f"row {row} of the transition matrix sums to {sums[row]:.9g} (smallest entry {matrix[row].min():.6g}); "
            "every row (true class) needs entries >= 0 that sum to 1"
        )
    never = np.flatnonzero(matrix.max(axis=0) == 0)
    if len(never):
        raise UserError(
            f"column {never[0]} of the transition matrix is 0: no class would ever carry label {never[0]}, and an "
            "example that does would have an infinite loss; give its entries small values"
        )
    found: Float64[Array, "k k"] = matrix / sums[:, None]
    return found
