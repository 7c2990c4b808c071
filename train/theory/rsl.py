"""Which examples small-loss selection takes, class by class, and under which noise small losses are right labels."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer
from numpy import ndarray as Array

from pipeline.errors import UserError

_BETA: Final = 0.2  # how much less than all right labels to keep
_ROUNDING: Final = 1e-6  # of an example: (1 - 0.2)(1 - 0.81) · 4,500 is 683.9999999999999 as a float, and 684 on paper


def observed_noise_rates(transition: Float64[Array, "k k"], prior: Float64[Array, " k"]) -> Float64[Array, " k"]:
    """Return the share of wrong labels among the examples that carry each label; nan for a label that none carries.

    Args:
        transition: T, row = true class, column = label.
        prior: Share of each true class.

    Source: Bayes' rule.
    """
    with np.errstate(invalid="ignore"):
        rates: Float64[Array, " k"] = 1 - prior * np.diagonal(transition) / (prior @ transition)
    return rates


def kept_shares(noise_rates: Float64[Array, " k"]) -> Float64[Array, " k"]:
    """Return the share of the examples of each observed class to keep, max(1-(1+β)η, (1-β)(1-η)) with β = 0.2.

    Args:
        noise_rates: η, share of wrong labels among the examples that carry each label, in [0, 1).

    Raises:
        UserError: If a rate is out of range.

    Source: Gui et al. 2021 (RSL), prop(i).
    """
    bad = np.flatnonzero(~((noise_rates >= 0) & (noise_rates < 1)))
    if len(bad):
        raise UserError(f"the noise rate of label {bad[0]} is {noise_rates[bad[0]]:.6g}; give a number in [0, 1)")
    return np.maximum(1 - (1 + _BETA) * noise_rates, (1 - _BETA) * (1 - noise_rates))


def kept_counts(
    noise_rates: Float64[Array, " k"], counts: Int64[Array, " k"], prior: Float64[Array, " k"]
) -> Int64[Array, " k"]:
    """Return how many examples of each observed class to keep: those of smallest mean loss within the class.

    The share of a class, min(γ p m, prop · n), where m is the least of prop · n / p over classes: classes of which much
    could be kept are cut towards the prior p, by γ = (1 + z) / 2 with z for the largest of prop · n / p against m.

    Args:
        noise_rates: η, as for `kept_shares`.
        counts: n, examples that carry each label.
        prior: p, share of each true class, above 0.

    Raises:
        UserError: If a value is out of range, or a class would keep no example.

    Source: Gui et al. 2021 (RSL), num(i), with the β and the γ of their experiments.
    Deviates: the authors' code rounds down what a float left just below a whole number, and loses one example a class
        at two of their five rates of uniform noise. It uses num(i) for structured noise alone; where n and η are the
        same in every class, as there, num(i) is prop · n.
    """
    candidates = kept_shares(noise_rates) * counts
    _refuse_empty(candidates, counts)
    relative = candidates / prior
    most = (1 + relative.max() / relative.min()) / 2 * prior * relative.min()
    kept = np.minimum(most, candidates)
    _refuse_empty(kept, counts)
    whole: Int64[Array, " k"] = np.floor(kept + _ROUNDING).astype(np.int64)
    return whole


def _refuse_empty(kept: Float64[Array, " k"], counts: Int64[Array, " k"]) -> None:
    empty = np.flatnonzero(kept + _ROUNDING < 1)
    if len(empty):
        label = empty[0]
        raise UserError(
            f"label {label} would keep none of its {counts[label]:,} examples, and a net would never learn it; "
            "give more examples or a lower noise rate"
        )


def draw_weights(
    losses: Float32[Array, " n"], labels: Integer[Array, " n"], *, least: float = 0.7
) -> Float64[Array, " n"]:
    """Return how often to draw each example, against one of the smallest loss of its observed class, which has 1.

    With u = (l - l_min) / (l_max - l_min), where the class's smallest and largest losses are meant, that is
    exp(-κ u) for κ = -log(least), or least to the power of u.

    Args:
        losses: Mean losses of all examples; nan for those that were never seen, which have no weight: nan.
        labels: As observed.
        least: The weight of the largest loss of a class, in (0, 1].

    Source: Gui et al. 2021 (RSL_WM); κ = -log 0.7.
    """
    seen = ~np.isnan(losses)
    smallest, largest = np.full(int(labels.max()) + 1, np.inf), np.full(int(labels.max()) + 1, -np.inf)
    np.minimum.at(smallest, labels[seen], losses[seen])
    np.maximum.at(largest, labels[seen], losses[seen])
    spread = (largest - smallest)[labels]
    above = losses - smallest[labels]
    weights: Float64[Array, " n"] = least ** np.divide(above, spread, out=np.where(seen, 0.0, np.nan), where=spread > 0)
    return weights


def failed_conditions(transition: Float64[Array, "k k"]) -> list[str]:
    """Return what of T contradicts the conditions of small-loss selection, for a warning; nothing if they hold.

    T_ii must exceed every other entry of its row, or the net that fits the noise best predicts another class, and every
    other entry of its column, or images of another class have losses as small under that label.

    Args:
        transition: T, row = true class, column = label.

    Returns:
        One line a failing row and one a failing column, each with the largest entry in the way.

    Source: Gui et al. 2021 (RSL), lemma 2 and theorem 1.
    """
    right, others = np.diagonal(transition), _off_diagonal(transition)
    rows, columns = others.argmax(axis=1), others.argmax(axis=0)
    lines = [
        f"class {i}: label {j} is as likely as its own ({transition[i, j]:.4g} against {right[i]:.4g}), "
        f"so that the best net predicts {j} for it"
        for i, j in enumerate(rows)
        if others[i, j] >= right[i]
    ]
    return lines + [
        f"label {j}: images of class {i} carry it as often as its own ({transition[i, j]:.4g} against {right[j]:.4g}), "
        "so that their losses are as small"
        for j, i in enumerate(columns)
        if others[i, j] >= right[j]
    ]


def _off_diagonal(transition: Float64[Array, "k k"]) -> Float64[Array, "k k"]:
    """Return T with a diagonal that no maximum takes."""
    others = transition.copy()
    np.fill_diagonal(others, -np.inf)
    return others
