from math import isnan
from pathlib import Path
from typing import Any

import pytest
from figure_rows import row
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from train.figures.rows import along, as_good, best_curve, curve, mean_of, merge_rows, read_rows, shift, where


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        row(delta=0.6, law="structured", order="reverse", versions="a, b", noisy_val_loss=2.29645),
        row(seed=2, curve_at=(1.01, 2.0), curve_top1=(0.5, 0.25), curve_label_precision=(1.0, 0.125)),
        row(seed=1, clean=4_000, top5_last=None, command="tools/reproduce fig1 --scale 'x y'"),
    ]
    merge_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []


def test_a_run_that_is_run_again_takes_the_place_of_its_old_row_and_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    others = [row(seed=1), row(alpha=5), row(lr=3e-3), row(experiment="fig9"), row(dataset="mnist"), row(delta=0.5)]
    merge_rows(path, [row(top1_last=0.5, rate="candidate"), *others])
    merge_rows(path, [row(top1_last=0.75, rate="chosen")])
    assert read_rows(path) == [row(top1_last=0.75, rate="chosen"), *others]


def test_a_run_that_was_only_read_again_keeps_what_was_written_of_where_it_ran(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    merge_rows(path, [row(commit="before", rate="candidate", wall_s=61.25)])
    merge_rows(path, [row(commit="after", rate="chosen", wall_s=61.25)])
    assert read_rows(path) == [row(commit="before", rate="chosen", wall_s=61.25)]
    merge_rows(path, [row(commit="after", rate="chosen", wall_s=61.5)])
    assert read_rows(path) == [row(commit="after", rate="chosen", wall_s=61.5)]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=6))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = mean_of(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else (values[0],) * 2
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found[3:] == (min(values), max(values), len(values))


def test_the_interval_of_two_seeds_is_their_range() -> None:
    assert mean_of([0.5, 0.25]) == (0.375, 0.25, 0.5, 0.25, 0.5, 2)


def test_one_seed_has_no_interval() -> None:
    found = mean_of([0.5])
    assert found.value == 0.5
    assert isnan(found.low)
    assert isnan(found.high)


def test_a_curve_goes_up_in_x_over_all_seeds_and_leaves_out_what_was_not_measured() -> None:
    rows = [row(alpha=20, top1_last=0.4), row(alpha=5, top1_last=0.6), row(alpha=5, seed=1, top1_last=0.8)]
    found = curve([*rows, row(alpha=7, top1_last=None)])
    assert [(at, mean.value, mean.n) for at, mean in found.items()] == [(5, pytest.approx(0.7), 2), (20, 0.4, 1)]
    assert where(rows, alpha=5, seed=(1, 2)) == [rows[2]]


def test_a_point_of_a_curve_is_a_row_where_there_is_one() -> None:
    rows = [row(curve_at=(1.0, 2.0), curve_top1=(0.5, 0.25)), row(), row(seed=3, curve_at=(1.0,), curve_top1=(1.0,))]
    told = [(each["seed"], each["at"], each["value"]) for each in along(rows, "top1")]
    assert told == [(0, 1.0, 0.5), (0, 2.0, 0.25), (3, 1.0, 1.0)]
    assert along(rows, "label_precision") == []


def test_the_best_setting_is_that_of_the_lowest_noisy_validation_loss_over_all_seeds() -> None:
    def runs(lr: float, losses: list[float], accuracy: float) -> list[dict[str, Any]]:
        return [row(lr=lr, seed=s, noisy_val_loss=loss, top1_last=accuracy) for s, loss in enumerate(losses)]

    rows = runs(1e-3, [2.0, 2.3], 0.9) + runs(3e-3, [2.1, 2.1], 0.1)  # the better on test, the lowest of one seed
    (found,) = best_curve(rows, by=lambda each: each["lr"]).values()
    assert {each["lr"] for each in found} == {3e-3}


def test_settings_within_a_standard_error_of_the_lowest_loss_tie() -> None:
    def ties(se: float, *losses: tuple[float, ...]) -> list[float]:
        rows = [
            row(lr=lr, seed=s, noisy_val_loss=loss, noisy_val_loss_se=se)
            for lr, of_seeds in zip((3e-3, 1e-3), losses, strict=True)
            for s, loss in enumerate(of_seeds)
        ]
        (found,) = as_good(rows, by=lambda each: each["lr"]).values()
        return found

    assert ties(0.009, (2.0,), (2.01,)) == [3e-3]
    assert ties(0.011, (2.0,), (2.01,)) == [1e-3, 3e-3]  # over images
    assert ties(0.0, (1.9, 2.1), (2.0, 2.19)) == [1e-3, 3e-3]  # over seeds: 0.1
    assert ties(0.0, (1.9, 2.1), (2.0, 2.21)) == [3e-3]
    # The same labels, three times or more: what the seeds have in common, as hard labels are, is no error.
    assert ties(0.5, (1.0, 2.0, 3.0), (1.1, 2.1, 3.1)) == [3e-3]
    assert ties(0.0, (1.0, 2.0, 3.0), (1.0, 2.0, 3.3)) == [1e-3, 3e-3]  # 0.1 ± 0.1


def test_settings_that_tie_went_up_or_down_only_where_none_is_in_both() -> None:
    assert shift([1, 2], [3]) == 1
    assert shift([3], [1, 2]) == -1
    assert shift([1, 2], [2, 3]) == shift([1, 3], [2]) == 0


def test_settings_are_compared_by_the_last_evaluation_where_all_runs_kept_it() -> None:
    low_early = row(lr=3e-3, noisy_val_loss=2.0, noisy_val_loss_last=2.2, noisy_val_loss_last_se=0.01)
    low_late = row(lr=1e-3, noisy_val_loss=2.1, noisy_val_loss_last=2.1, noisy_val_loss_last_se=0.01)

    def best(*rows: dict[str, Any]) -> tuple[float, float]:
        ((found,),) = best_curve(rows, by=lambda each: each["lr"]).values()
        return found["lr"], found["loss"]

    assert best(low_early, low_late) == (1e-3, 2.1)
    assert best(low_early, {**low_late, "noisy_val_loss_last": None}) == (3e-3, 2.0)
