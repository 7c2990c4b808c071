"""The numbers that iterative noisy cross-validation and its Co-teaching derive from the noise ratio."""

from __future__ import annotations

import math
from typing import Final

from pipeline.errors import UserError
from pipeline.laws.law import check_share

_ERRORS: Final = 2  # standard errors to each side: an interval that holds the true accuracy 95 times in 100
_WIDEST: Final = 0.1  # noise ratios that fit an accuracy, from the first to the last


def estimate_noise_ratio(accuracy: float, *, num_classes: int, num_examples: int) -> float:
    """Return the noise ratio ε at which symmetric noise has this accuracy: (1-ε)² + ε²/(K-1), solved for ε.

    What the estimate is wrong by, besides chance:

    - Nets stay below the law, so that it is a little too large: K = 10 and the paper's measured accuracies of .61, .26
      and .108 give .22, .52 and .82 where ε is .2, .5 and .8.
    - Under asymmetric noise it is too small, because such labels are easier to agree with: ε = .4 has an accuracy of
      .52 by the law and gives .29; the paper's measured .46 gives .33.

    Near chance the curve is flat and an accuracy says nothing about ε. At the wrong labels of α-dilution, each on an
    image of its own, the accuracy exceeds chance by (K-1)/K / (1+α)², which must stand out of a standard error that
    falls with √n: at K = 10 that takes 7,100 examples for α = 10, 86,000 for α = 20 and 46 million for α = 100. Where
    an image has all of its 1 + α labels, no net fits them, and the law does not hold: a net that says the class agrees
    with (1-ε) of them.

    Args:
        accuracy: Share of examples whose prediction equals their noisy label; the net must not have seen these labels.
        num_classes: K, at least 2.
        num_examples: n, how many examples the accuracy was measured on, at least 1.

    Returns:
        ε in [0, (K-1)/K); a larger ratio has the accuracy of a smaller one.

    Raises:
        UserError: If the accuracy is out of range, within two standard errors of chance, or so uncertain that ratios
            more than 0.1 apart fit it.

    Source: Chen et al. 2019 (INCV), section on the algorithm; Wilson 1927 for the interval of the accuracy.
    Deviates: the authors' code takes the first of .001, .002, … whose accuracy is not above the measured one, and
        refuses nothing: at chance it returns (K-1)/K. Here the prediction is one class, not the first k.
    """
    check_share("accuracy", accuracy, below_one=False)
    below, above = _interval(accuracy, num_examples)
    least, most = _inverse(above, num_classes), _inverse(below, num_classes)
    if below <= 1 / num_classes or most - least > _WIDEST:
        raise UserError(
            f"accuracy {accuracy:.4g} against the noisy labels of {num_examples:,} examples of {num_classes} classes "
            f"fits every noise ratio from {least:.2f} to {most:.2f}: the curve is flat near {1 / num_classes:.4g}, "
            "which is chance, and so few examples are uncertain; measure on more, or say the ratio"
        )
    return _inverse(accuracy, num_classes)


def _interval(accuracy: float, num_examples: int) -> tuple[float, float]:
    """Return the accuracies that are within `_ERRORS` standard errors of their own from the measured one."""
    squares = _ERRORS**2 / num_examples
    centre = accuracy + squares / 2
    width = math.sqrt(squares * (accuracy * (1 - accuracy) + squares / 4))
    return (centre - width) / (1 + squares), (centre + width) / (1 + squares)


def _inverse(accuracy: float, num_classes: int) -> float:
    """Solve the symmetric law for the noise ratio; at or below chance, it is that of no signal at all."""
    signal = math.sqrt(max(0.0, (accuracy * num_classes - 1) / (num_classes - 1)))
    return (1 - signal) * (num_classes - 1) / num_classes


def remove_ratio(noise_ratio: float) -> float:
    """Return how many examples of the largest loss are removed for each one that is selected, ε/(1-ε), at most 2.

    Args:
        noise_ratio: ε in [0, 1).

    Raises:
        UserError: If the ratio is out of range.

    Source: Chen et al. 2019 (INCV), section on the algorithm.
    """
    check_share("noise ratio", noise_ratio, below_one=True)
    return min(2.0, noise_ratio / (1 - noise_ratio))


def selected_noise_ratio(noise_ratio: float, *, num_targets: int) -> float:
    """Return the share of wrong labels among selected examples, ε²/(ε² + c(1-ε)²): one minus the label precision.

    Args:
        noise_ratio: ε of all examples, in [0, 1).
        num_targets: c, as for `flip_law`: K - 1 for symmetric noise, 1 for asymmetric noise.

    Raises:
        UserError: If the ratio is out of range.

    Source: Chen et al. 2019 (INCV), ε_S of the modified Co-teaching.
    """
    check_share("noise ratio", noise_ratio, below_one=True)
    wrong = noise_ratio**2
    return wrong / (wrong + num_targets * (1 - noise_ratio) ** 2)


def agreeing_noise_ratio(noise_ratio: float, *, agreement: float, num_classes: int) -> float:
    """Return the share of wrong labels among those that a net agrees with which says the class, not the label.

    It is right about a share a of the images, and where it is not, its class is no likelier than others among the wrong
    labels. Its agreement is then a (1-ε) + (1-a) ε/(K-1), which tells a; at a = 1-ε, that of a net that has fitted its
    labels, the result is that of `selected_noise_ratio`.

    Args:
        noise_ratio: ε of the labels that it was asked about, in [0, 1).
        agreement: Share of them that it agrees with, in [0, 1].
        num_classes: K, at least 2.

    Returns:
        A share in [0, ε]; ε where it is so large that agreement says nothing of a.

    Raises:
        UserError: If the ratio or the agreement is out of range.

    Source: ours, for images that have many labels.
    """
    check_share("noise ratio", noise_ratio, below_one=True)
    check_share("agreement", agreement, below_one=False)
    each = noise_ratio / (num_classes - 1)
    if 1 - noise_ratio <= each:
        return noise_ratio
    accuracy = min(1.0, max(0.0, (agreement - each) / (1 - noise_ratio - each)))
    right, wrong = accuracy * (1 - noise_ratio), (1 - accuracy) * each
    return wrong / (right + wrong)


def candidates_of_batch(batch: int, *, num_selected: int, num_candidates: int) -> int:
    """Return how many rows of a batch are candidates once they join it: neither selected nor removed.

    Args:
        batch: Rows, at least 1.
        num_selected: |S|, at least 1.
        num_candidates: |C|, 0 or more.

    Source: Chen et al. 2019 (INCV), modified Co-teaching: to B rows of S join min(|C| B / |S|, B / 2) of C.
    Deviates: a batch does not grow: of its rows, as large a share is candidates, at most a third.
    """
    ratio = min(num_candidates / num_selected, 0.5)
    return round(batch * ratio / (1 + ratio))


def candidates_from(noise_ratio: float, *, pairs: bool) -> float:
    """Return the share of a run after which candidates join, E_w: 40 of 200 epochs, or 80 where labels say less.

    Args:
        noise_ratio: ε of all examples.
        pairs: Whether the law sends a class to one other class.

    Source: Chen et al. 2019 (INCV), modified Co-teaching, as the authors' code has it.
    """
    return 0.4 if pairs or noise_ratio > 0.6 else 0.2
