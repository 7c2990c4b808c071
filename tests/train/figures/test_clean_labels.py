"""How many clean labels are needed is read off the rows."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
from figure_rows import row

from train.figures.clean_labels import needed
from train.figures.menu import FIGURES


def along_clean(alpha: int, numbers: Iterable[int], slope: float) -> list[dict[str, Any]]:
    """Rows that reach t at exactly slope · α · 2^((t - 0.9) · 40)."""
    return [row(alpha=alpha, clean=n, top1_last=0.9 + math.log2(n / (slope * alpha)) / 40) for n in numbers]


def test_needed_labels_are_read_off_between_two_runs_and_a_line_is_fitted() -> None:
    rows = [each for alpha in (10, 20, 50) for each in along_clean(alpha, (50, 1_000, 8_000, 64_000), 200)]
    assert needed(rows, 0.9) == {10: pytest.approx(2000), 20: pytest.approx(4000), 50: pytest.approx(10_000)}
    paper, linear, steeper = (claim.check(rows) for claim in FIGURES["fig7"].claims)
    assert paper.verdict == linear.verdict == steeper.verdict == "holds"
    assert paper.ours.startswith("α = 10: 2,000 (200·α = 2,000); α = 20: 4,000 (200·α = 4,000)")
    assert "90.0 %: as α to the power of 1.00; " in linear.ours
    assert " + 200·α (3 values of α)" in linear.ours
    assert needed([each for each in rows if each["clean"] > 8_000], 0.9) == {}  # none below: nothing is made up


@pytest.mark.parametrize(("power", "verdict"), [(1.2, "holds"), (2, "does not hold"), (0.7, "does not hold")])
def test_what_grows_as_another_power_of_alpha_is_not_linear(power: float, verdict: str) -> None:
    slopes = {alpha: 20 * alpha ** (power - 1) for alpha in (5, 10, 20)}
    bent = [each for alpha, slope in slopes.items() for each in along_clean(alpha, (10, 1_000, 64_000), slope)]
    assert FIGURES["fig7"].claims[1].check(bent).verdict == verdict


def test_the_number_for_ninety_per_cent_is_held_against_the_paper_s() -> None:
    def check(slope: float, *numbers: int, alphas: tuple[int, ...] = (10,)) -> tuple[str, str]:
        rows = [each for alpha in alphas for each in along_clean(alpha, numbers, slope)]
        return FIGURES["fig7"].claims[0].check(rows)

    assert check(100, 50, 8_000) == ("α = 10: 1,000 (200·α = 2,000)", "does not hold")
    assert check(290, 50, 64_000, alphas=(10, 50))[1] == "holds"
    assert check(290, 50, 8_000, alphas=(10, 50))[1] == "in part"  # of 50 nothing is known
    assert check(100, 1_400, 8_000) == ("α = 10: at most 1,400 (200·α = 2,000)", "not run")
    assert check(100, 1_300, 8_000)[1] == "does not hold"
    assert check(310, 50, 8_000)[1] == "does not hold"
    assert check(310, 50, 2_500) == ("α = 10: more than 2,500 (200·α = 2,000)", "not run")
    assert check(310, 50, 3_050)[1] == "does not hold"
