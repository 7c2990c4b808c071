"""What is on the menu: grids of things that exist, and claims that say nothing without rows."""

import inspect
import random
from pathlib import Path

import pytest
from figure_rows import grid_rows, row, verdicts

from pipeline.errors import UserError
from pipeline.sources import SOURCES
from train.figures.draw import draw
from train.figures.menu import FIGURES, sections
from train.figures.points import SCALES, Scale, key_of
from train.figures.rows import merge_rows
from train.methods import METHODS
from train.models import MODELS

NAMES = [f"fig{number}" for number in range(1, 11)]


def test_all_figures_of_the_paper_and_ours_are_on_the_menu() -> None:
    assert [*FIGURES][:10] == NAMES


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_grid_holds_distinct_points_of_things_that_exist(name: str, scale: Scale) -> None:
    for dataset in {*FIGURES[name].datasets}:
        assert dataset in SOURCES
        points = FIGURES[name].points(dataset, scale)
        keys = [(key_of(point), point.rate) for point in points]
        assert len(set(keys)) == len(keys) > 1
        assert {point.method for point in points} <= METHODS.keys()
        assert {point.model for point in points} <= {*MODELS, "resnet18"}
        assert {point.noise.foreign for point in points} - {""} <= SOURCES.keys()
        if scale.name == "smoke":
            assert len(points) <= 30


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fig7"])  # the grid of fig6
def test_the_grid_of_a_figure_is_a_page_of_a_lab_book(name: str) -> None:
    told = inspect.getdoc(FIGURES[name].points) or ""
    source, deviates, cost = (told.index(f"\n{word}: ") for word in ("Source", "Deviates", "Cost"))
    assert source < deviates < cost
    assert f"`tools/reproduce {name}" in told[cost:]


@pytest.mark.parametrize("dataset", SOURCES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_grid_for_a_set_or_says_which_sets_it_has_one_for(name: str, dataset: str) -> None:
    can = ("fashion_mnist", "mnist5k", "mnist", "cifar10")
    for scale in SCALES.values():
        if name == "fig5" and dataset not in can:
            with pytest.raises(UserError, match=f"no other images for {dataset}; it has for: {', '.join(can)}"):
                FIGURES[name].points(dataset, scale)
        else:
            assert FIGURES[name].points(dataset, scale)


@pytest.mark.parametrize("name", FIGURES)
def test_no_rows_are_no_finding(name: str) -> None:
    assert {*verdicts(name, [])} <= {"not run"}


@pytest.mark.parametrize("scale", [SCALES["smoke"], SCALES["cpu"]], ids=["smoke", "cpu"])
@pytest.mark.parametrize("name", FIGURES)
def test_a_grid_that_was_run_in_part_is_judged_as_far_as_it_goes(name: str, scale: Scale) -> None:
    points, drawn = grid_rows(name, scale), random.Random(0)
    parts = [points[:most] for most in range(len(points) + 1)]
    parts += [points[:at] + points[at + 1 :] for at in range(len(points))]
    parts += [drawn.sample(points, drawn.randint(1, len(points))) for _ in range(20)]
    for part in parts:
        assert {*verdicts(name, [run for point in part for run in point])} <= {
            *("holds", "in part", "does not hold", "cannot be told", "not run"),
        }
    draw(FIGURES[name], points[0])


def test_rows_of_other_data_or_another_scale_are_a_section_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [
        row(experiment="fig4", alpha=0, rate="candidate"),
        row(experiment="fig4"),
        row(experiment="fig4", dataset="fashion_mnist"),
        row(experiment="fig4", scale="smoke"),
        row(experiment="fig4", dataset="mnist", scale="full"),
        row(experiment="fig4", dataset="fashion_mnist", seed=1),
    ]
    merge_rows(path, rows)
    found = {section.label: section.rows for section in sections(path) if section.name == "fig4"}
    assert found == {
        "fig4": [rows[1]],
        "fig4-fashion_mnist": [rows[2], rows[5]],
        "fig4-smoke": [rows[3]],
        "fig4-mnist-full": [rows[4]],
    }
    assert [section.candidates for section in sections(path) if section.label == "fig4"] == [[rows[0]]]
    others = [section for section in sections(path) if section.name != "fig4"]
    assert [section.label for section in others] == [name for name in FIGURES if name != "fig4"]
    assert not any(section.rows for section in others)
