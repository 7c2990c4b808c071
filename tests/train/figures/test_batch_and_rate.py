"""Claims about batch size and learning rate are held against the rows that bear on them."""

import math
from typing import Any

import pytest
from figure_rows import row, verdicts

from train.figures.batch_and_rate import best_rate_rows
from train.figures.menu import FIGURES
from train.figures.points import SCALES, Scale


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_figure_of_rates_runs_nothing_that_the_one_of_batches_does_not(scale: Scale) -> None:
    batches, rates = (FIGURES[name].points("mnist5k", scale) for name in ("fig8", "fig9"))
    assert rates
    assert all(point in batches for point in rates)


def batches(alpha: int, *accuracies: float) -> list[dict[str, Any]]:
    sizes = (32, 128, 256, 512)
    good = [row(alpha=alpha, batch=b, top1_last=a, noisy_val_loss=2.1) for b, a in zip(sizes, accuracies, strict=True)]
    return good + [row(alpha=alpha, batch=b, lr=3e-3, top1_last=0.99, noisy_val_loss=2.2) for b in sizes]


def test_batches_are_compared_at_the_rate_that_noisy_validation_chose() -> None:
    assert {each["lr"] for each in best_rate_rows(batches(20, 0.5, 0.6, 0.7, 0.7))} == {1e-3}
    assert verdicts("fig8", batches(20, 0.5, 0.6, 0.7, 0.8))[0] == "holds"
    assert verdicts("fig8", batches(20, 0.5, 0.8, 0.7, 0.8))[0] == "does not hold"
    assert verdicts("fig8", batches(20, 0.5, 0.6, 0.7, 0.8) + batches(50, 0.5, 0.8, 0.7, 0.8))[0] == "in part"


def test_batches_beyond_the_claim_are_told_and_not_judged() -> None:
    found = FIGURES["fig8"].claims[0].check(batches(20, 0.5, 0.6, 0.7, 0.2))
    assert found.verdict == "holds"
    assert found.ours == "α = 20: 32 50.0 %, 128 60.0 %, 256 70.0 % (beyond the claim: 512 20.0 %)"


def test_batches_that_tie_are_not_better() -> None:
    assert verdicts("fig8", batches(20, 0.7, 0.7, 0.704, 0.9))[0] == "does not hold"
    assert verdicts("fig8", batches(20, 0.7, 0.7, 0.706, 0.9))[0] == "holds"


def test_the_limit_is_flat_or_not() -> None:
    for at_fifty, verdict in ((0.9, "holds"), (0.8, "does not hold")):
        limit = [row(method="h_alpha", alpha=0, top1_last=0.92), row(method="h_alpha", alpha=50, top1_last=at_fifty)]
        assert verdicts("fig8", limit + batches(50, 0.5, 0.6, 0.7, 0.7))[1] == verdict


def rates(*best: float, se: float = 0.001) -> list[dict[str, Any]]:
    return [
        row(alpha=alpha, lr=lr, noisy_val_loss=2.0 + abs(math.log(lr / found)), noisy_val_loss_se=se)
        for alpha, found in zip((0, 5, 20), best, strict=True)
        for lr in (3e-4, 1e-3, 3e-3)
    ]


def test_the_best_rate_falls_or_stays_or_rises() -> None:
    assert verdicts("fig9", rates(3e-3, 1e-3, 1e-3)) == ["holds"]
    assert verdicts("fig9", rates(1e-3, 1e-3, 1e-3)) == ["does not hold"]
    assert verdicts("fig9", rates(1e-3, 3e-3, 1e-3)) == ["does not hold"]
    assert verdicts("fig9", rates(1e-3, 3e-3, 3e-4)) == ["in part"]
    found = FIGURES["fig9"].claims[0].check(rates(3e-3, 1e-3, 1e-3, se=1.15))  # a factor of 3.16 in the rate
    assert found.verdict == "cannot be told"
    assert found.ours.endswith("α = 0: 0.001 or 0.003, α = 5: 0.001 or 0.003, α = 20: 0.001 or 0.003")
