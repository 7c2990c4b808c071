"""Claims about uniform noise are held against the rows that bear on them."""

from typing import Any

from figure_rows import row, verdicts

from train.figures.uniform import SMALL_NETS


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
