from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from train.figures.rows import best_curve, mean_of, read_rows, where
from train.measured import MEASURED, Best, best_batch, best_rate, nearest
from train.recipes import recipe_for

ROWS = where(read_rows(Path(__file__).parents[2] / "tools/results.csv"), experiment="fig8", method="plain", scale="cpu")


def test_the_table_is_what_the_rows_of_the_figure_of_batches_say() -> None:
    found: dict[int, dict[int, Best]] = {}
    for alpha in sorted({row["alpha"] for row in ROWS}):
        for batch, best in best_curve(where(ROWS, alpha=alpha), by=lambda row: row["lr"], x="batch").items():
            loss = round(mean_of([row["loss"] for row in best]).value, 5)
            found.setdefault(alpha, {})[int(batch)] = Best(best[0]["lr"], loss)
    assert found == MEASURED


def test_the_nearest_measured_noise_is_taken_by_ratio() -> None:
    assert [nearest((0, 5, 20, 50), alpha) for alpha in (0, 1, 2, 5, 9, 11, 20, 31, 33, 1000)] == [
        *(0, 0, 5, 5, 5, 20, 20, 20, 50, 50),
    ]


def test_auto_takes_the_batch_and_the_rate_of_the_lowest_noisy_validation_loss() -> None:
    for alpha, measured in MEASURED.items():
        batch = min(measured, key=lambda size: measured[size].loss)
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
