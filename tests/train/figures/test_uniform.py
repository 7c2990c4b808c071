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
        assert verdicts("fig1", [row(alpha=100, clean=clean, top1_last=accuracy)])[2] == verdict


def test_a_deeper_net_must_lose_less_than_a_shallow_one_from_its_own_accuracy_without_noise() -> None:
    clean = nets(0.9, 0.98, 0.97, 0.96, 0.99, alpha=0)
    for accuracies, verdict in (
        ((0.4, 0.5, 0.6, 0.7, 0.9), "holds"),
        ((0.4, 0.7, 0.6, 0.7, 0.9), "holds"),  # as good, from less
        ((0.4, 0.7, 0.6, 0.684, 0.9), "does not hold"),  # a tie
        ((0.4, 0.7, 0.6, 0.5, 0.9), "does not hold"),
    ):
        assert verdicts("fig1", clean + nets(*accuracies))[1] == verdict
    assert verdicts("fig1", nets(0.4, 0.5, 0.6, 0.7, 0.9))[1] == "not run"
