"""Real runs of small grids: rates are chosen without test images, and nothing is run twice."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources.synthetic_imagenet import write_synthetic_imagenet
from train.experiment import Stopped
from train.figures import runs
from train.figures.menu import FIGURES
from train.figures.points import AUTO_RATE, SCALES, Figure, Noise, Point
from train.figures.rows import Row
from train.figures.runs import Place, run_figure
from train.metrics import rows_with

SCALE = dataclasses.replace(SCALES["smoke"], rates=(1e-6, 1e-3))
FIELDS: dict[str, Any] = {"model": "perceptron", "clean": 200}


def figure(*points: Point) -> Figure:
    return Figure(
        title="",
        datasets=("mnist5k", "mnist5k"),
        points=lambda dataset, scale: [*points],
        panels=(),
        claims=(),
        protocol="",
    )


def uniform(alpha: int, **fields: Any) -> Point:
    return Point(**{"noise": Noise(alpha=alpha), **FIELDS, **fields})


def run(out: Path, *points: Point, seeds: int = 1, workers: int = 1) -> tuple[list[Row], list[Row]]:
    """Return the rows that came back and all that were kept."""
    kept: list[Row] = []
    place = Place("mnist5k", out)
    back = run_figure("x", figure(*points), place, SCALE, seeds=seeds, workers=workers, keep=kept.append)
    return back, kept


def facts(rows: list[Row]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def test_a_grid_is_run_seed_by_seed_and_read_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = uniform(2), uniform(0, method="histogram")
    rows, _ = run(tmp_path, *points, seeds=2)
    assert [(row["seed"], row["noise_seed"], row["alpha"], row["method"]) for row in rows] == [
        (0, 0, 2, "plain"), (0, 0, 0, "histogram"), (1, 1, 2, "plain"), (1, 1, 0, "histogram"),
    ]  # fmt: skip
    assert rows[0]["top1_last"] != rows[2]["top1_last"]
    assert {row["examples"] for row in rows} == {1_024}
    assert {row["experiment"] for row in rows} == {"x"}
    monkeypatch.setattr(runs, "run_experiment", lambda *_, **__: pytest.fail("it was run again"))
    assert run(tmp_path, *points, seeds=2)[0] == rows


def test_a_noise_seed_draws_the_same_labels_for_all_seeds(tmp_path: Path) -> None:
    place = Place("mnist5k", tmp_path, noise_seed=7)
    rows = run_figure("x", figure(uniform(2)), place, SCALE, seeds=2, workers=1, keep=lambda row: None)
    assert [(row["seed"], row["noise_seed"]) for row in rows] == [(0, 7), (1, 7)]
    assert rows[0]["top1_last"] != rows[1]["top1_last"]
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/config.json")]
    assert sorted((each["data"]["noise_seed"], each["recipe"]["seed"]) for each in configs) == [(7, 0), (7, 1)]
    own, _ = run(tmp_path, uniform(2))
    assert own[0]["noise_seed"] == 0
    assert own[0]["noisy_val_loss"] != rows[0]["noisy_val_loss"]


@pytest.mark.slow
def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    points = [uniform(alpha, rate=AUTO_RATE) for alpha in (0, 2)]
    alone, _ = run(tmp_path / "one", *points)
    shared, _ = run(tmp_path / "two", *points, workers=2)
    assert facts(sorted(shared, key=lambda row: row["alpha"])) == facts(alone)


def losses(monkeypatch: pytest.MonkeyPatch, found: Callable[[float, int], tuple[float, float, float]]) -> None:
    """Put a noisy validation loss, its error and a test accuracy in the place of what runs of a rate and α find."""
    measured = runs.row_of

    def told(job: runs.Job, *rest: Any) -> Row:
        row = measured(job, *rest)
        loss, error, accuracy = found(row["lr"], row["alpha"])
        lowest = {"noisy_val_loss": -loss, "noisy_val_loss_se": 1.0}  # of an earlier evaluation
        return {**row, **lowest, "noisy_val_loss_last": loss, "noisy_val_loss_last_se": error, "top1_last": accuracy}

    monkeypatch.setattr(runs, "row_of", told)


def test_a_rate_is_chosen_by_noisy_validation_at_seed_0(tmp_path: Path) -> None:
    rows, kept = run(tmp_path, uniform(0, rate=AUTO_RATE), seeds=2)
    assert {(row["lr"], row["rate"]) for row in rows} == {(1e-3, "chosen")}  # 1e-6 learns nothing
    candidates = [row for row in kept if row["rate"] == "candidate"]
    assert [(row["lr"], row["seed"]) for row in candidates] == [(1e-6, 0), (1e-3, 0)]
    assert candidates[1]["top1_last"] == rows[0]["top1_last"]  # the same run


@pytest.mark.slow
def test_test_images_have_no_part_in_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses(monkeypatch, lambda lr, alpha: (2.0 + lr, 0.001, 100 * lr))
    rows, _ = run(tmp_path, uniform(2, rate=AUTO_RATE))
    assert {row["lr"] for row in rows} == {1e-6}


@pytest.mark.slow
def test_a_choice_without_power_is_carried_over_from_alpha_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(lr: float, alpha: int) -> tuple[float, float, float]:
        return (2.0 + lr, 0.001, 0.5) if alpha == 10 else (2.0 - lr, 0.03 if alpha == 50 else 0.02, 0.5)

    losses(monkeypatch, found)
    rows, kept = run(tmp_path, uniform(2, rate=AUTO_RATE), uniform(50, rate=AUTO_RATE))
    assert [(row["alpha"], row["lr"], row["rate"]) for row in rows] == [(2, 1e-3, "chosen"), (50, 1e-6, "carried")]
    assert {row["alpha"] for row in kept if row["rate"] == "candidate"} == {2, 10, 50}


def test_a_run_that_was_stopped_ends_the_grid_and_what_was_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = runs.run_experiment, []

    def stopped(*arguments: Any, **options: Any) -> dict[str, Any]:
        begun.append(1)
        if len(begun) == 2:
            raise Stopped(15)
        return real(*arguments, **options)

    monkeypatch.setattr(runs, "run_experiment", stopped)
    kept: list[Row] = []
    with pytest.raises(Stopped):
        run_figure(
            "x",
            figure(uniform(0), uniform(2)),
            Place("mnist5k", tmp_path),
            SCALE,
            seeds=1,
            workers=1,
            keep=kept.append,
        )
    assert [row["alpha"] for row in kept] == [0]
    rows, _ = run(tmp_path, uniform(0), uniform(2))
    assert [row["alpha"] for row in rows] == [0, 2]
    assert len(begun) == 3


@pytest.mark.slow
def test_false_classes_are_ordered_by_a_net_that_learnt_from_clean_labels(tmp_path: Path) -> None:
    point = Point(noise=Noise(alpha=20, law="structured", order="confusing", delta=1.0), **FIELDS)
    rows, _ = run(tmp_path, point, dataclasses.replace(point, noise=dataclasses.replace(point.noise, order="reverse")))
    matrix = [map(float, line.split(",")) for line in (tmp_path / "mnist5k-confusion.csv").read_text().splitlines()]
    assert sum(map(sum, matrix)) == 400  # a tenth of the 4,000 training images, none of the test images
    assert [row["order"] for row in rows] == ["confusing", "reverse"]
    assert rows[0]["noisy_val_loss"] != rows[1]["noisy_val_loss"]


@pytest.mark.slow
def test_foreign_and_white_noise_show_other_images(tmp_path: Path) -> None:
    white = Point(noise=Noise(alpha=2, law="white"), **FIELDS)
    foreign = Point(noise=Noise(alpha=2, law="foreign", foreign="fashion_mnist"), **FIELDS)
    rows, _ = run(tmp_path, white, foreign)
    assert [(row["law"], row["foreign"], row["vote"]) for row in rows] == [
        ("white", "", None), ("foreign", "fashion_mnist", None),
    ]  # fmt: skip


def test_the_noisy_validation_loss_of_the_last_evaluation_is_kept_beside_the_lowest(tmp_path: Path) -> None:
    (before,), _ = run(tmp_path, uniform(2))
    (path,) = tmp_path.glob("*/metrics.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"eval/noisy_val_loss": 9.5, "eval/noisy_val_loss_se": 0.25}) + "\n")
    (row,), _ = run(tmp_path, uniform(2))
    assert (row["noisy_val_loss_last"], row["noisy_val_loss_last_se"]) == (9.5, 0.25)
    assert row["noisy_val_loss"] == before["noisy_val_loss"] <= before["noisy_val_loss_last"] < 9.5


def test_what_a_run_measures_of_its_gradients_is_kept(tmp_path: Path) -> None:
    settings = {"batch": 64, "log_every": 64, "measure": "noise-scale"}
    (row, other), _ = run(tmp_path, uniform(2, settings=settings, rate=0.0), uniform(2))
    (path,) = (path for path in tmp_path.glob("*/config.json") if json.loads(path.read_text())["recipe"]["measure"])
    probes = rows_with(path.parent, "noise_scale/trace")
    assert row["clean_noisy_cosine"] == probes[-1]["noise_scale/clean_noisy_cosine"]  # that of all probes, not of some
    assert (
        len({probe["noise_scale/trace"] for probe in probes}) == 540 // 64 < len(probes)
    )  # one pass, no example twice
    assert row["lr"] == 0
    assert row["top1_last"] == pytest.approx(0.1, abs=0.05)  # its weights are the initial ones
    assert other["clean_noisy_cosine"] is None


@pytest.mark.slow
def test_a_point_may_be_as_long_as_its_recipe_says(tmp_path: Path) -> None:
    (row,), _ = run(tmp_path, uniform(0, method="histogram", uncut=True, settings={"val_frac": 0.0}))
    assert row["examples"] == pytest.approx(20 * 200, abs=128)
    assert row["noisy_val_loss"] is None


@pytest.mark.slow
def test_a_figure_of_photos_is_run_from_a_user_s_own_files(tmp_path: Path) -> None:
    write_synthetic_imagenet(tmp_path / "tree", num_images=60, num_classes=6, seed=0)
    place = Place("imagenet", tmp_path / "out", source=tmp_path / "tree")
    scale = dataclasses.replace(SCALES["smoke"], examples=(64, 64))
    rows = run_figure("fig3", FIGURES["fig3"], place, scale, seeds=1, workers=1, keep=lambda row: None)
    assert [(row["alpha"], row["examples"], row["model"]) for row in rows] == [(0, 64, "conv2"), (1, 64, "conv2")]
    assert all(0 <= row["top5_last"] <= 1 for row in rows)


def test_a_folder_is_named_by_all_that_makes_another_run(tmp_path: Path) -> None:
    place = Place("mnist5k", tmp_path)
    job = runs.Job(place, SCALE, uniform(2), "recipe", "recipe", 0)
    others = [
        dataclasses.replace(job, seed=1),
        dataclasses.replace(job, rate=0.5),
        dataclasses.replace(job, scale=SCALES["cpu"]),
        *(
            dataclasses.replace(job, point=point)
            for point in (uniform(3), uniform(2, clean=300), uniform(2, method="mixup"))
        ),
        *(
            dataclasses.replace(job, point=uniform(2, settings=given))
            for given in ({"batch": 64}, {"schedule": "cosine"})
        ),
        dataclasses.replace(job, point=uniform(2, noise=Noise(alpha=2, law="white"))),
        dataclasses.replace(job, point=uniform(2, augment=False)),
        *(
            dataclasses.replace(job, point=uniform(0, noise=Noise(alpha=0, law="symmetric", flip_rate=rate)))
            for rate in (0.2, 0.5)
        ),
    ]

    def name(each: runs.Job) -> str:
        data = runs.open_point(place, each.point.noise, each.point.clean, each.seed)
        return runs.folder_name(each, runs.recipe_of(each, data))

    names = [name(each) for each in (job, *others)]
    assert len(set(names)) == len(names)
    assert name(dataclasses.replace(job, how="chosen")) == names[0]


def test_a_run_is_found_again_by_later_versions(tmp_path: Path) -> None:
    job = runs.Job(Place("mnist5k", tmp_path), SCALE, uniform(2), "recipe", "recipe", 0)
    data = runs.open_point(job.place, job.point.noise, job.point.clean, 0)
    assert runs.folder_name(job, runs.recipe_of(job, data)) == "mnist5k-perceptron-plain-alpha2-seed0-09ff532a"


def test_labels_are_flipped_at_the_rate_of_a_point(tmp_path: Path) -> None:
    noise = Noise(alpha=0, law="symmetric", flip_rate=0.5)
    data = runs.open_point(Place("mnist5k", tmp_path), noise, 200, 0)
    assert data.formula.right_share(data.train.source_labels) == pytest.approx(0.5)
