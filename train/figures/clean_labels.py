"""Figures of how many clean labels it takes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import numpy as np

from train.figures.points import (
    NOT_RUN,
    Claim,
    Figure,
    Finding,
    Panel,
    Point,
    Scale,
    summed_up,
    uniform_points,
    verdict,
)
from train.figures.rows import Row, curve, line_through, where
from train.outcome import percent

TARGETS: Final = (0.8, 0.85, 0.9)


def clean_labels(dataset: str, scale: Scale) -> list[Point]:
    """Accuracy against the number of clean labels, at several α."""
    numbers = scale.pick(
        (200, 400), (250, 500, 1_000, 2_000, 4_000), (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    )
    alphas = scale.pick((0, 2), (0, 5, 10, 20, 50), (0, 5, 10, 20, 50, 100))
    model = scale.pick("perceptron", "conv2", "conv4")
    return [point for clean in numbers for point in uniform_points(alphas, clean=clean, model=model)]


def needed(rows: list[Row], target: float) -> dict[int, float]:
    """Return, for every α above 0, how many clean labels reach an accuracy.

    Between two numbers that were run, accuracy is taken to be linear in the logarithm of the number; an α whose numbers
    do not enclose the target is left out.
    """
    found = {}
    for alpha in sorted({row["alpha"] for row in rows} - {0}):
        means = [(n, mean.value) for n, mean in curve(where(rows, alpha=alpha), x="clean").items()]
        for (below, low), (above, high) in pairwise(means):
            if low < target <= high:
                share = (target - low) / (high - low)
                found[alpha] = math.exp(math.log(below) + share * math.log(above / below))
                break
    return found


def _linear_in_alpha(rows: list[Row]) -> Finding:
    told, right = [], []
    for target in TARGETS:
        found = needed(rows, target)
        if len(found) < 3:
            continue
        alphas, numbers = np.array([*found]), np.array([*found.values()])
        slope, base = line_through(found)
        explained = 1 - ((numbers - slope * alphas - base) ** 2).sum() / ((numbers - numbers.mean()) ** 2).sum()
        right.append(bool(explained > 0.9))
        told.append(f"{percent(target)}: {base:.0f} + {slope:.0f}·α (R² = {explained:.3f}, {len(found)} values of α)")
    return summed_up(told, right)


def _steeper_for_higher(rows: list[Row]) -> Finding:
    slopes = {t: line_through(f)[0] for t in TARGETS if len(f := needed(rows, t)) >= 2}
    if len(slopes) < 2:
        return NOT_RUN
    told = ", ".join(f"{percent(target)}: {slope:.0f} labels a unit of α" for target, slope in slopes.items())
    return Finding(told, verdict(sorted(slopes.values()) == [*slopes.values()]))


CLEAN_LABELS: Final = Figure(
    title="Accuracy against the number of clean labels",
    datasets=("mnist5k", "mnist"),
    points=clean_labels,
    panels=(Panel(x="clean", xlabel="clean labels", series=("alpha",), log="x"),),
    claims=(),
    protocol="A tenth of the clean labels is held out for noisy validation. Fixed recipe, at scale cpu cut at "
    "300,000 examples: 1.6 passes over the largest set at α = 50.",
)


NEEDED: Final = Figure(
    title="Clean labels needed for an accuracy",
    datasets=("mnist5k", "mnist"),
    points=clean_labels,
    panels=(),
    claims=(
        Claim("The number needed grows linearly in α.", "about 200·α for 90 % (derived)", _linear_in_alpha),
        Claim("It grows faster for a higher accuracy.", "second hand", _steeper_for_higher),
    ),
    protocol="Read off the runs of fig6, accuracy linear in the logarithm of the number between two runs.",
    fits=lambda rows: {percent(target): needed(rows, target) for target in TARGETS},
)
