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
    rows = [each for alpha in (5, 10, 20) for each in along_clean(alpha, (50, 1_000, 8_000, 64_000), 200)]
    assert needed(rows, 0.9) == {5: pytest.approx(1000), 10: pytest.approx(2000), 20: pytest.approx(4000)}
    linear, steeper = (claim.check(rows) for claim in FIGURES["fig7"].claims)
    assert linear.verdict == steeper.verdict == "holds"
    assert "90.0 %: -0 + 200·α" in linear.ours or "90.0 %: 0 + 200·α" in linear.ours
    assert needed([each for each in rows if each["clean"] > 4_000], 0.9) == {}  # none below: nothing is made up
    bent = [each for alpha in (5, 10, 20) for each in along_clean(alpha, (50, 1_000, 64_000), 2_000 / alpha**2)]
    assert FIGURES["fig7"].claims[0].check(bent).verdict == "does not hold"
