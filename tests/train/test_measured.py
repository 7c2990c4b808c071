from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from train.figures.rows import as_good, mean_of, read_rows, where
from train.measured import MEASURED, Best, best_batch, best_rate, nearest
from train.recipes import recipe_for

ROWS = where(read_rows(Path(__file__).parents[2] / "tools/results.csv"), experiment="fig8", method="plain", scale="cpu")


def test_the_table_is_what_the_rows_of_the_figure_of_batches_say() -> None:
    found: dict[int, dict[int, Best]] = {}
    for alpha in sorted({row["alpha"] for row in ROWS}):
        rates = as_good(where(ROWS, alpha=alpha), by=lambda row: row["lr"], x="batch")
        lowest = [row for row in where(ROWS, alpha=alpha) if row["lr"] == rates[row["batch"]][0]]
        (ties,) = as_good(lowest, by=lambda row: row["batch"]).values()
        for batch, (lr, *_) in rates.items():
            losses = [row["noisy_val_loss_last"] for row in where(lowest, batch=batch)]
            assert len(losses) == 3
            best = Best(lr, round(mean_of(losses).value, 5), ties=batch in ties)
            found.setdefault(alpha, {})[int(batch)] = best
    assert found == MEASURED


def test_the_nearest_measured_noise_is_taken_by_ratio() -> None:
    assert [nearest((0, 5, 20, 50), alpha) for alpha in (0, 1, 2, 5, 9, 11, 20, 31, 33, 1000)] == [
        *(0, 0, 5, 5, 5, 20, 20, 20, 50, 50),
    ]


def test_auto_takes_the_largest_batch_that_ties_with_the_lowest_noisy_validation_loss_and_its_rate() -> None:
    for alpha, measured in MEASURED.items():
        batch = max(size for size, best in measured.items() if best.ties)
        assert best_batch(alpha) == batch
        made = recipe_for("mnist5k", "plain", num_images=3_600, num_copies=1 + alpha, batch="auto", lr="auto")
        assert (made.batch, made.lr) == (batch, measured[batch].lr)
    with_noise, more_noise = (
        recipe_for("mnist5k", "plain", num_images=3_600, num_copies=1 + alpha, batch="auto", lr="auto")
        for alpha in (5, 50)
    )
    assert more_noise.batch > with_noise.batch  # the paper's finding, as measured here


def test_a_rate_alone_follows_the_batch_that_is_given_and_a_batch_is_no_larger_than_the_data() -> None:
    for batch in MEASURED[20]:
        made = recipe_for("mnist5k", "plain", num_images=3_600, num_copies=21, batch=batch, lr="auto")
        assert (made.batch, made.lr) == (batch, best_rate(20, batch))
    assert recipe_for("mnist5k", "plain", num_images=10, num_copies=51, batch="auto").batch == 510
    own = recipe_for("mnist5k", "plain", num_images=3_600, num_copies=21)
    assert recipe_for("mnist5k", "plain", num_images=3_600, num_copies=21, batch="auto").lr == own.lr


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "histogram",
            {"batch": "auto"},
            "batch auto was measured for batches of examples, and histogram counts images",
        ),
        ("plain", {"lr": "auto", "optimizer": "sgd"}, "lr auto was measured for adamw, this is sgd; give a number"),
    ],
)
def test_auto_is_refused_where_nothing_was_measured(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_for("mnist5k", method, num_images=3_600, num_copies=21, **given)
