"""What the grids hold, and that each claim is held against the rows that bear on it."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
from figure_rows import row

from pipeline.sources import SOURCES
from train.figures.grids import FIGURES, SMALL_NETS, best_rate_rows, needed
from train.figures.points import SCALES, Finding, Scale, key_of
from train.methods import METHODS
from train.models import MODELS

NAMES = [f"fig{number}" for number in range(1, 11)]


def verdicts(figure: str, rows: list[dict[str, Any]]) -> list[str]:
    return [claim.check(rows).verdict for claim in FIGURES[figure].claims]


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


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_figure_of_rates_runs_nothing_that_the_one_of_batches_does_not(scale: Scale) -> None:
    batches, rates = (FIGURES[name].points("mnist5k", scale) for name in ("fig8", "fig9"))
    assert rates
    assert all(point in batches for point in rates)


@pytest.mark.parametrize("name", FIGURES)
def test_no_rows_are_no_finding(name: str) -> None:
    assert {*verdicts(name, [])} <= {"not run"}


def nets(*accuracies: float, alpha: int = 50) -> list[dict[str, Any]]:
    return [row(model=model, alpha=alpha, top1_last=a) for model, a in zip(SMALL_NETS, accuracies, strict=True)]


def test_the_order_of_nets_is_looked_at_under_noise() -> None:
    right, wrong = nets(0.4, 0.5, 0.6, 0.55, 0.9), nets(0.52, 0.5, 0.6, 0.55, 0.9, alpha=100)
    clean = nets(0.99, 0.5, 0.6, 0.55, 0.9, alpha=0)
    assert verdicts("fig1", right + clean)[0] == "holds"
    assert verdicts("fig1", right + wrong)[0] == "in part"
    assert verdicts("fig1", wrong)[0] == "does not hold"


def test_ninety_per_cent_at_alpha_100_is_a_claim_about_all_of_mnist() -> None:
    for clean, accuracy, verdict in (
        (60_000, 0.91, "holds"),
        (60_000, 0.89, "does not hold"),
        (4_000, 0.91, "not run"),
    ):
        assert verdicts("fig1", [row(alpha=100, clean=clean, top1_last=accuracy)])[1] == verdict


def along_delta(order: str, *accuracies: float) -> list[dict[str, Any]]:
    deltas = (0.0, 0.4, 0.6, 0.8, 1.0)
    return [row(law="structured", order=order, delta=d, top1_last=a) for d, a in zip(deltas, accuracies, strict=True)]


def test_structure_is_harmless_if_nothing_is_lost_up_to_06_and_something_at_1() -> None:
    flat, falls = (0.9, 0.9, 0.9, 0.9, 0.9), (0.9, 0.7, 0.6, 0.5, 0.4)
    paper = (0.9, 0.9, 0.89, 0.8, 0.4)
    for accuracies, verdict in ((flat, "in part"), (falls, "in part"), (paper, "holds")):
        assert verdicts("fig4", along_delta("random", *accuracies))[0] == verdict
    orders = along_delta("confusing", *paper) + along_delta("reverse", *flat) + along_delta("random", *falls)
    assert verdicts("fig4", orders)[1] == "does not hold"
    assert (
        verdicts(
            "fig4", along_delta("confusing", *flat) + along_delta("reverse", *paper) + along_delta("random", *falls)
        )[1]
        == "holds"
    )


def sources(own: float, foreign: float, white: float) -> list[dict[str, Any]]:
    rows = [row(alpha=0, top1_last=0.9), row(top1_last=own), row(law="white", top1_last=white)]
    return [*rows, row(law="foreign", foreign="mnist5k", top1_last=foreign)]


def test_drops_of_the_three_sources_are_measured_from_clean_labels() -> None:
    assert verdicts("fig5", sources(0.7, 0.8, 0.89)) == ["holds", "holds"]
    assert verdicts("fig5", sources(0.7, 0.72, 0.85)) == ["does not hold", "does not hold"]
    assert verdicts("fig5", sources(0.7, 0.88, 0.9)) == ["in part", "holds"]


def along_clean(alpha: int, numbers: Iterable[int], slope: float) -> list[dict[str, Any]]:
    """Rows that reach t at exactly slope · α · 2^((t - 0.9) · 40)."""
    return [row(alpha=alpha, clean=n, top1_last=0.9 + math.log2(n / (slope * alpha)) / 40) for n in numbers]


def test_needed_labels_are_read_off_between_two_runs_and_a_line_is_fitted() -> None:
    rows = [each for alpha in (5, 10, 20) for each in along_clean(alpha, (50, 1_000, 8_000, 64_000), 200)]
    assert needed(rows, 0.9) == {5: pytest.approx(1000), 10: pytest.approx(2000), 20: pytest.approx(4000)}
    linear, steeper = (claim.check(rows) for claim in FIGURES["fig7"].claims)
    assert linear.verdict == steeper.verdict == "holds"
    assert "90.0 %: -0 + 200·α" in linear.ours or "90.0 %: 0 + 200·α" in linear.ours
    assert needed([each for each in rows if each["clean"] > 4_000], 0.9) == {}  # none below: nothing is made up
    bent = [each for alpha in (5, 10, 20) for each in along_clean(alpha, (50, 1_000, 64_000), 2_000 / alpha**2)]
    assert FIGURES["fig7"].claims[0].check(bent).verdict == "does not hold"


def batches(alpha: int, *accuracies: float) -> list[dict[str, Any]]:
    sizes = (32, 128, 512)
    good = [row(alpha=alpha, batch=b, top1_last=a, noisy_val_loss=2.1) for b, a in zip(sizes, accuracies, strict=True)]
    return good + [row(alpha=alpha, batch=b, lr=3e-3, top1_last=0.99, noisy_val_loss=2.2) for b in sizes]


def test_batches_are_compared_at_the_rate_that_noisy_validation_chose() -> None:
    assert {each["lr"] for each in best_rate_rows(batches(20, 0.5, 0.6, 0.7))} == {1e-3}
    assert verdicts("fig8", batches(20, 0.5, 0.6, 0.7))[0] == "holds"
    assert verdicts("fig8", batches(20, 0.5, 0.8, 0.7))[0] == "does not hold"
    assert verdicts("fig8", batches(20, 0.5, 0.6, 0.7) + batches(50, 0.5, 0.8, 0.7))[0] == "in part"


def test_the_limit_is_flat_or_not() -> None:
    for at_fifty, verdict in ((0.9, "holds"), (0.8, "does not hold")):
        limit = [row(method="h_alpha", alpha=0, top1_last=0.92), row(method="h_alpha", alpha=50, top1_last=at_fifty)]
        assert verdicts("fig8", limit + batches(50, 0.5, 0.6, 0.7))[1] == verdict


def rates(*best: float) -> list[dict[str, Any]]:
    return [
        row(alpha=alpha, lr=lr, noisy_val_loss=2.0 + abs(math.log(lr / found)))
        for alpha, found in zip((0, 5, 20), best, strict=True)
        for lr in (3e-4, 1e-3, 3e-3)
    ]


def test_the_best_rate_falls_or_stays_or_rises() -> None:
    assert verdicts("fig9", rates(3e-3, 1e-3, 1e-3)) == ["holds"]
    assert verdicts("fig9", rates(1e-3, 1e-3, 1e-3)) == ["in part"]
    assert verdicts("fig9", rates(1e-3, 3e-3, 1e-3)) == ["does not hold"]


def test_the_noise_scale_is_held_against_the_square() -> None:
    def at(*factors: float) -> list[dict[str, Any]]:
        scales = zip((0, 5, 20), (1.0, *factors), strict=True)
        return [row(lr=0.0, alpha=a, noise_scale=130 * f * (1 + a) ** 2) for a, f in scales]

    assert verdicts("fig10", at(0.9, 1.2))[0] == "holds"
    assert verdicts("fig10", at(0.9, 3.0))[0] == "in part"
    assert verdicts("fig10", at(0.1, 3.0))[0] == "does not hold"


def test_schedules_are_compared_by_the_best_batch_of_each() -> None:
    def best(schedule: str, *sizes: int) -> list[dict[str, Any]]:
        return [
            row(schedule=schedule, ema=0.0, rate="chosen", alpha=a, batch=b, noisy_val_loss=2.0 + (b != size))
            for a, size in zip((0, 20), sizes, strict=True)
            for b in (32, 128, 512)
        ]

    check = FIGURES["fig10"].claims[1].check
    assert check(best("constant", 128, 512) + best("cosine", 512, 128)).verdict == "holds"
    assert check(best("constant", 128, 512) + best("cosine", 512, 512)).verdict == "in part"
    assert check(best("constant", 512, 128) + best("cosine", 128, 512)).verdict == "does not hold"
    assert check(best("constant", 512, 128)) == Finding("", "not run")


def test_the_moonshot_is_a_claim_about_methods_that_know_no_clean_label() -> None:
    rows = [row(alpha=50, method="histogram", top1_last=0.89), row(alpha=50, method="h_alpha", top1_last=0.97)]
    assert verdicts("massive", rows) == ["does not hold"]
    assert verdicts("massive", [row(alpha=50, method="histogram", top1_last=0.9)]) == ["holds"]
