"""Figures of batch size and learning rate under noise."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Final

from train.figures.points import (
    BETTER,
    HARMLESS,
    NOT_RUN,
    UNTOLD,
    VAL_FRAC,
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
from train.figures.rows import Row, as_good, best_curve, curve, shift, spread, where
from train.outcome import percent

RATES: Final = (3e-4, 1e-3, 3e-3)
PAPERS_BATCHES: Final = range(32, 257)  # what the claim is about


def batch_and_rate(dataset: str, scale: Scale) -> list[Point]:
    """Every batch size with every learning rate, at several α; the limit and the histogram beside them.

    The same number of examples for all points of an α. Also what `--batch auto --lr auto` rests on.

    Source: Rolnick et al. 2017, batch size on MNIST; its two layers of convolutions and its sizes are second hand.
    Deviates: rates are a grid and sizes go beyond 256; scale cpu has 2,000 labels and 300,000 examples a run.
    Cost: `tools/reproduce fig8`, at scale cpu 53 runs and 1.1 h a seed, added up, on a core of AMD EPYC each.
    """
    alphas = scale.pick((0, 2), (0, 5, 20, 50), (0, 5, 10, 20, 50))
    batches = scale.pick((32, 128), (32, 128, 512, 2_048), (32, 64, 128, 256, 1_024, 4_096))
    rates = scale.pick((1e-3,), RATES, (1e-4, *RATES))
    fields: dict[str, Any] = {
        "model": scale.pick("perceptron", "conv2", "conv2"),
        "clean": scale.pick(200, 2_000, None),
    }
    points = [
        point
        for batch in batches
        for rate in rates
        for point in uniform_points(alphas, rate=rate, settings={"batch": batch}, **fields)
        if batch <= (1 - VAL_FRAC) * (fields["clean"] or math.inf) * (1 + point.noise.alpha)
    ]
    return points + [p for method in ("h_alpha", "histogram") for p in uniform_points(alphas, method=method, **fields)]


def learning_rates(dataset: str, scale: Scale) -> list[Point]:
    """Learning rates against α at one batch size: a part of the runs of `batch_and_rate`.

    Source: Rolnick et al. 2017, learning rate on CIFAR-10; its rates are not known.
    Deviates: digits, two layers of convolutions and AdamW.
    Cost: `tools/reproduce fig9`, at scale cpu 12 of the runs of fig8, none of its own.
    """
    batch = scale.pick(128, 512, 256)
    points = batch_and_rate(dataset, scale)
    return [point for point in points if point.method == "plain" and point.settings["batch"] == batch]


def best_rate_rows(rows: list[Row]) -> list[Row]:
    """Keep, of every α and batch size, the rows of the learning rate with the lowest noisy validation loss."""
    kept = where(rows, method=("h_alpha", "histogram"))
    for batch in sorted({row["batch"] for row in where(rows, method="plain")}):
        of_batch = where(rows, method="plain", batch=batch)
        kept += [row for found in best_curve(of_batch, by=lambda row: row["lr"]).values() for row in found]
    return kept


def _larger_batch_better(rows: list[Row]) -> Finding:
    told, right = [], []
    for alpha in sorted({row["alpha"] for row in rows} - {0}):
        found = curve(where(best_rate_rows(rows), alpha=alpha, method="plain"), x="batch")
        values = [mean.value for batch, mean in found.items() if batch in PAPERS_BATCHES]
        if len(values) < 2:
            return NOT_RUN
        shown = [f"{batch:g} {percent(mean.value)}" for batch, mean in found.items()]
        beyond = f" (beyond the claim: {', '.join(shown[len(values) :])})" if shown[len(values) :] else ""
        told.append(f"α = {alpha}: {', '.join(shown[: len(values)])}{beyond}")
        right.append(max(values) - values[-1] < BETTER < values[-1] - values[0])
    return summed_up(told, right)


def _limit_is_flat(rows: list[Row]) -> Finding:
    limit = curve(where(rows, method="h_alpha"))
    plain = curve(where(best_rate_rows(rows), method="plain"))
    if len(limit) < 2 or 0 not in limit or not plain:
        return NOT_RUN
    last = max(limit)
    told = f"from α = 0 to {last:g} H_α goes from {spread(limit[0])} to {spread(limit[last])}"
    return Finding(told, verdict(limit[0].value - limit[last].value < HARMLESS))


def _best_rate_falls(rows: list[Row]) -> Finding:
    found = as_good(where(rows, method="plain"), by=lambda row: row["lr"])
    if len(found) < 2:
        return NOT_RUN
    told = ", ".join(f"α = {alpha:g}: {' or '.join(f'{rate:g}' for rate in rates)}" for alpha, rates in found.items())
    first, *_, last = found.values()
    ours = f"noisy validation loss within a standard error of the lowest at {told}"
    if shift(first, last) == 0 and len({*first, *last}) > 1:
        return Finding(ours, UNTOLD)
    falls = shift(first, last) < 0
    rises = any(shift(before, after) > 0 for before, after in combinations(found.values(), 2))
    return Finding(ours, verdict(falls and not rises, in_part=falls))


BATCH_AND_RATE: Final = Figure(
    title="Batch size, and its infinite limit",
    datasets=("mnist5k", "mnist"),
    points=batch_and_rate,
    panels=(Panel(series=("method", "batch"), select=best_rate_rows),),
    claims=(
        Claim(
            "Larger batches are better under noise.",
            "larger is better (as read), 32 to 256 (second hand)",
            _larger_batch_better,
        ),
        Claim("H_α, the limit of infinite batches, stays almost flat.", "the trend (as read)", _limit_is_flat),
    ),
    protocol="Of the grid's rates those with the lowest noisy validation loss, mean of all seeds, are shown for every "
    "batch size and α. The same number of examples for all batch sizes, so that large ones take few steps: 300,000 are "
    "9,375 steps of 32 and 146 of 2,048, while the claim ends at 256. Scale cpu has 2,000 of the paper's "
    "60,000 labels. h_alpha reads the clean labels; it and histogram count images.",
)


LEARNING_RATES: Final = Figure(
    title="Learning rate",
    datasets=("mnist5k", "cifar10"),
    points=learning_rates,
    panels=(Panel(series=("lr",)),),
    claims=(Claim("The best learning rate falls as noise rises.", "the trend, no rates (as read)", _best_rate_falls),),
    protocol="One batch size, 512 at scale cpu; all rates are shown; runs shared with fig8. The paper's figure is on "
    "CIFAR-10.",
)
