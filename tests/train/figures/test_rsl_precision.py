"""The claim about RSL's precision is held against the rows that bear on it."""

from pathlib import Path

import pytest
from figure_rows import row, verdicts

from pipeline.laws import SymmetricInclusive
from train.figures.points import SCALES
from train.figures.rows import Row
from train.figures.rsl_precision import RSL_PRECISION, by_share
from train.figures.runs import Place, open_point


def along_data(*precisions: float, seed: int = 0) -> list[Row]:
    return [
        row(alpha=0, clean=2_500 * (1 + quarter), curve_at=(1.0,), curve_label_precision=(precision,), seed=seed)
        for quarter, precision in enumerate(precisions)
    ]


def test_precision_rises_with_the_data_at_every_quarter_or_over_all_or_not() -> None:
    assert verdicts("rsl-precision", along_data(0.8, 0.85, 0.86, 0.9)) == ["holds"]
    assert verdicts("rsl-precision", along_data(0.8, 0.85, 0.84, 0.9)) == ["in part"]
    assert verdicts("rsl-precision", along_data(0.8, 0.85, 0.84, 0.8)) == ["does not hold"]
    assert verdicts("rsl-precision", along_data(0.8, 0.85, 0.9)) == ["not run"]
    seeds = along_data(0.8, 0.85, 0.84, 0.9) + along_data(0.8, 0.83, 0.88, 0.9, seed=1)
    assert verdicts("rsl-precision", seeds) == ["holds"]  # in the mean
    assert "5,000 images 84.0 % (83.0 to 85.0, n = 2)" in RSL_PRECISION.claims[0].check(seeds).ours


def test_the_share_of_the_images_is_that_of_the_largest_run() -> None:
    assert [each["share"] for each in by_share(along_data(0.8, 0.8, 0.8, 0.8))] == [0.25, 0.5, 0.75, 1]
    assert by_share([]) == []


def test_the_noise_is_the_paper_s() -> None:
    points = RSL_PRECISION.points("mnist5k", SCALES["cpu"])
    assert [point.clean for point in points] == [1_000, 2_000, 3_000, 4_000]
    data = open_point(Place("mnist5k", Path()), points[0].noise, 1_000, 0)
    assert isinstance(data.formula.law, SymmetricInclusive)
    assert data.formula.right_share(data.train.source_labels) == pytest.approx(0.55)
