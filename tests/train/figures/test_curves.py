"""Curves of real runs: of a selection by its iterations, of Co-teaching by epochs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from train.figures.coteaching import COTEACHING
from train.figures.incv_iterations import INCV_ITERATIONS
from train.figures.points import SCALES, Figure
from train.figures.rows import Row
from train.figures.rsl_precision import RSL_PRECISION
from train.figures.runs import Place, run_figure


def run(figure: Figure, out: Path, num_points: int) -> list[Row]:
    place, scale, points = Place("mnist5k", out), SCALES["smoke"], figure.points
    figure = dataclasses.replace(figure, points=lambda dataset, scale: points(dataset, scale)[:num_points])
    return run_figure("x", figure, place, scale, seeds=1, workers=1, keep=lambda row: None)


@pytest.mark.slow
def test_the_iterations_of_a_selection_are_a_curve(tmp_path: Path) -> None:
    (row,) = run(INCV_ITERATIONS, tmp_path, 1)
    (folder,) = tmp_path.glob("*/select-incv")
    table = np.load(folder / "selected.npy")
    said = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    assert row["curve_at"] == (1, 2, 3, 4)
    assert row["curve_label_precision"][-1] == said["label_precision"]
    assert row["curve_label_recall"][-1] == said["label_recall"]
    selected = int((table["iteration"] == 1).sum()), int(table["kept"].sum())
    right = [n * row["curve_label_precision"][i] for n, i in zip(selected, (0, -1), strict=True)]
    right_in_all = [n / row["curve_label_recall"][i] for n, i in zip(right, (0, -1), strict=True)]
    assert right_in_all[0] == pytest.approx(right_in_all[1])  # there are as many, whenever they are counted
    assert row["wall_s"] > said["wall_s"] > 0


@pytest.mark.slow
def test_a_selection_without_iterations_is_one_point(tmp_path: Path) -> None:
    rows = run(RSL_PRECISION, tmp_path, 2)
    assert [row["clean"] for row in rows] == [100, 200]
    said = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/select-rsl/selection.json")]
    assert {(1.0, each["label_precision"], each["label_recall"]) for each in said} == {
        (*row["curve_at"], *row["curve_label_precision"], *row["curve_label_recall"]) for row in rows
    }
    assert len(said) == 2


def test_a_run_has_a_point_every_epoch_and_label_precision_where_labels_are_left_out(tmp_path: Path) -> None:
    plain, coteaching = run(COTEACHING, tmp_path, 2)
    for row in (plain, coteaching):
        assert row["curve_at"] == pytest.approx((1, 2, 3, 4), abs=32 / 360)  # whole batches of 32
        assert row["curve_top1"][-1] == row["top1_last"]
        assert max(row["curve_top1"]) == row["top1_best_test"]
        assert row["log_every"] == 360
    assert plain["curve_label_precision"] == plain["curve_label_recall"] == ()
    (folder,) = tmp_path.glob("*-coteaching-*")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    readings = [line for line in map(json.loads, lines) if "coteaching/label_precision" in line]
    for name in ("label_precision", "label_recall"):
        assert coteaching[f"curve_{name}"] == tuple(line[f"coteaching/{name}"] for line in readings)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["data"]["augmentation"]["shift_px"] == 0
