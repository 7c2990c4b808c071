"""Claims about Co-teaching's curves are held against the rows that bear on them."""

from typing import Any

import pytest
from figure_rows import row, verdicts

from train.figures.coteaching import COTEACHING, NOISES
from train.figures.points import SCALES
from train.figures.rows import Row


def of(method: str, top1: tuple[float, ...], precision: tuple[float, ...] = (), noise: Any = NOISES[0]) -> Row:
    at = tuple(map(float, range(1, 1 + len(top1))))
    curves = {"curve_at": at, "curve_top1": top1, "curve_label_precision": precision}
    return row(alpha=0, law=noise[0], flip_rate=noise[1], method=method, **curves)


FLAT = (0.8, 0.8, 0.8)


@pytest.mark.parametrize(
    ("precision", "verdict"),
    [
        ((0.5, 0.7, 0.9), "holds"),
        ((0.5, 0.91, 0.9), "holds"),
        ((0.5, 0.95, 0.9), "does not hold"),  # it fell again
        ((0.5, 0.5, 0.5), "does not hold"),
    ],
)
def test_label_precision_rises_and_stays_up(precision: tuple[float, ...], verdict: str) -> None:
    rows = [of("coteaching", FLAT, precision), of("plain", FLAT)]
    assert verdicts("coteaching", rows)[0] == verdict
    other = of("coteaching", FLAT, (0.5, 0.6, 0.7), NOISES[2])
    assert verdicts("coteaching", [*rows, other])[0] == ("holds" if verdict == "holds" else "in part")


def test_plain_training_falls_from_its_best_by_more_than_chance() -> None:
    found = COTEACHING.claims[1].check([of("plain", (0.7, 0.8, 0.7)), of("coteaching", (0.7, 0.7, 0.7))])
    assert found.ours == "symmetric 0.5: 80.0 % after epoch 2, 70.0 % after 3"
    assert found.verdict == "holds"
    assert verdicts("coteaching", [of("plain", (0.7, 0.8, 0.78))])[1] == "does not hold"
    assert verdicts("coteaching", [of("plain", (0.7, 0.8, 0.7)), of("plain", FLAT, (), NOISES[1])])[1] == "in part"
    assert verdicts("coteaching", [of("coteaching", (0.7, 0.8, 0.7))])[1] == "not run"


def test_what_is_lost_is_compared_under_the_same_noise() -> None:
    plain = of("plain", (0.7, 0.8, 0.7))
    for last, verdict in ((0.8, "holds"), (0.75, "holds"), (0.6, "does not hold")):
        found = COTEACHING.claims[2].check([plain, of("coteaching", (0.7, 0.8, last))])
        assert found.verdict == verdict
        assert found.ours == f"symmetric 0.5: {100 * (0.8 - last):.1f} points lost against 10.0"
    assert verdicts("coteaching", [plain, of("coteaching", FLAT, (), NOISES[1])])[2] == "not run"


def test_both_methods_have_the_same_settings_but_their_name() -> None:
    points = COTEACHING.points("fashion_mnist", SCALES["cpu"])
    assert [(point.noise.law, point.noise.flip_rate) for point in points[::2]] == [*NOISES]
    for plain, other in zip(points[::2], points[1::2], strict=True):
        assert (plain.method, other.method) == ("plain", "coteaching")
        assert (plain.noise, plain.settings, plain.augment) == (other.noise, other.settings, False)
