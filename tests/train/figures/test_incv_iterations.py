"""Claims about INCV's iterations are held against the rows that bear on them."""

from typing import Any

from figure_rows import row, verdicts

from train.figures.incv_iterations import INCV_ITERATIONS, NOISES
from train.figures.points import SCALES
from train.figures.rows import Row


def of(noise: tuple[str, float], precision: tuple[float, ...], recall: tuple[float, ...], **fields: Any) -> Row:
    at = tuple(map(float, range(1, 1 + len(precision))))
    curves = {"curve_at": at, "curve_label_precision": precision, "curve_label_recall": recall}
    return row(alpha=0, law=noise[0], flip_rate=noise[1], **curves, **fields)


FALLS, RISES = (0.95, 0.94, 0.944, 0.93), (0.7, 0.8, 0.85, 0.9)


def test_precision_falls_and_recall_rises_with_the_iterations_under_each_noise() -> None:
    def first(*rows: Row) -> str:
        return verdicts("incv-iterations", [*rows])[0]

    assert first(*(of(noise, FALLS, RISES) for noise in NOISES)) == "holds"  # a rise of .004 is none
    assert first(of(NOISES[0], FALLS, RISES), of(NOISES[3], RISES, RISES)) == "in part"
    assert first(of(NOISES[0], (0.95, 0.93, 0.94, 0.92), RISES)) == "does not hold"
    assert first(of(NOISES[0], (0.95, 0.95, 0.95, 0.95), RISES)) == "does not hold"
    assert first(of(NOISES[0], FALLS, (0.7, 0.8, 0.8, 0.9))) == "does not hold"
    assert first(of(("pair", 0.2), RISES, RISES)) == "not run"  # not a noise of the paper's


def test_means_over_seeds_stand_beside_the_paper_s_numbers() -> None:
    rows = [of(NOISES[3], (0.9, 0.8), (0.2, 0.4)), of(NOISES[3], (0.8, 0.7), (0.4, 0.7), seed=1)]
    claim = INCV_ITERATIONS.claims[0]
    assert claim.check(rows).ours == "pair 0.4: precision .850/.750, recall .300/.550"
    assert "pair 0.4: .885/.865/.850/.840, .720/.865/.910/.930" in claim.known


def test_four_iterations_at_half_are_held_against_both_numbers() -> None:
    for precision, recall, verdict in (
        (0.93, 0.8, "holds"),
        (0.92, 0.8, "in part"),
        (0.93, 0.79, "in part"),
        (0.92, 0.79, "does not hold"),
    ):
        rows = [of(NOISES[1], (0.99, 0.99, 0.99, precision), (0.1, 0.2, 0.3, recall))]
        assert verdicts("incv-iterations", rows)[1] == verdict
    assert verdicts("incv-iterations", [of(NOISES[0], FALLS, RISES)])[1] == "not run"  # another noise
    assert verdicts("incv-iterations", [of(NOISES[1], FALLS[:3], RISES[:3])])[1] == "not run"


def test_the_share_of_wrong_labels_is_given() -> None:
    points = INCV_ITERATIONS.points("mnist5k", SCALES["cpu"])
    assert [(point.noise.law, point.settings["select_rate"]) for point in points] == [*NOISES]
    assert {point.clean for point in points} == {4_000}
