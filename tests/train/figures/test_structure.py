"""Claims about structure and source of noise are held against the rows that bear on them."""

from pathlib import Path
from typing import Any

from figure_rows import row, verdicts

from train.figures.menu import FIGURES
from train.figures.points import SCALES
from train.figures.runs import Job, Place, open_point, recipe_of


def passes(figure: str, dataset: str) -> list[float]:
    """Return how often the runs of a grid at scale cpu show a label."""
    place, scale = Place(dataset, Path("runs")), SCALES["cpu"]
    counts = []
    for point in FIGURES[figure].points(dataset, scale):
        if point.noise.order in ("confusing", "reverse"):  # these wait for a measured matrix
            continue
        data = open_point(place, point.noise, point.clean, 0)
        recipe = recipe_of(Job(place, scale, point, "recipe", "recipe", 0), data)
        counts.append(recipe.examples / (0.9 * data.formula.num_images * (1 + point.noise.alpha)))
    return counts


def test_runs_that_tell_sources_of_noise_apart_see_the_clean_labels_equally_often() -> None:
    assert passes("fig5", "fashion_mnist") == [12.0] * 10


def test_all_clean_labels_of_fashion_mnist_are_shown_once_under_structured_noise() -> None:
    assert passes("fig4", "fashion_mnist") == [1.0] * 5


def along_delta(order: str, *accuracies: float) -> list[dict[str, Any]]:
    deltas = (0.0, 0.4, 0.6, 0.8, 1.0)
    return [row(law="structured", order=order, delta=d, top1_last=a) for d, a in zip(deltas, accuracies, strict=True)]


def test_structure_is_harmless_if_nothing_is_lost_up_to_06_and_something_at_1() -> None:
    flat, falls = (0.9, 0.9, 0.9, 0.9, 0.9), (0.9, 0.7, 0.6, 0.5, 0.4)
    paper, at_once = (0.9, 0.9, 0.89, 0.8, 0.4), (0.9, 0.5, 0.4, 0.4, 0.4)
    for accuracies, verdict in ((flat, "in part"), (falls, "in part"), (paper, "holds"), (at_once, "does not hold")):
        assert verdicts("fig4", along_delta("random", *accuracies))[0] == verdict
    orders = along_delta("confusing", *paper) + along_delta("reverse", *flat) + along_delta("random", *falls)
    assert verdicts("fig4", orders)[1] == "does not hold"


def test_the_order_matters_little_if_all_are_within_what_is_harmless() -> None:
    for confusing, reverse, verdict in (
        (0.42, 0.40, "holds"),
        (0.40, 0.42, "in part"),  # the other is better, by little
        (0.44, 0.40, "in part"),  # it is better, by much
        (0.40, 0.44, "does not hold"),
    ):
        orders = {"confusing": confusing, "reverse": reverse, "random": 0.41}
        rows = [run for order, at_one in orders.items() for run in along_delta(order, 0.9, 0.9, 0.9, 0.9, at_one)]
        assert verdicts("fig4", rows)[1] == verdict


def sources(own: float, foreign: float, white: float) -> list[dict[str, Any]]:
    rows = [row(alpha=0, top1_last=0.9), row(top1_last=own), row(law="white", top1_last=white)]
    return [*rows, row(law="foreign", foreign="mnist5k", top1_last=foreign)]


def test_drops_of_the_three_sources_are_measured_from_clean_labels() -> None:
    assert verdicts("fig5", sources(0.7, 0.8, 0.89)) == ["holds", "holds"]
    assert verdicts("fig5", sources(0.7, 0.72, 0.85)) == ["does not hold", "does not hold"]
    assert verdicts("fig5", sources(0.7, 0.88, 0.9)) == ["in part", "holds"]
    assert verdicts("fig5", sources(0.88, 0.89, 0.9))[0] == "cannot be told"  # a half of next to nothing
