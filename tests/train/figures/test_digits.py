"""Claims about real digits are held against the rows that bear on them."""

from figure_rows import row, verdicts

from train.figures.menu import FIGURES


def test_the_moonshot_is_a_claim_about_methods_that_know_no_clean_label() -> None:
    rows = [row(alpha=50, method="histogram", top1_last=0.89), row(alpha=50, method="h_alpha", top1_last=0.97)]
    assert verdicts("massive", rows) == ["does not hold"]
    assert verdicts("massive", [row(alpha=50, method="histogram", top1_last=0.9)]) == ["holds"]


def test_every_net_and_batch_stands_for_itself() -> None:
    said = {("plain", "conv2", 512): 0.6, ("plain", "conv2", 4_096): 0.7, ("marginal", "conv4", 128): 0.8}
    rows = [row(alpha=50, method=m, model=net, batch=size, top1_last=a) for (m, net, size), a in said.items()]
    found = FIGURES["massive"].claims[0].check(rows)
    assert found.ours.startswith("plain, conv2, batch 512 60.0 % ")
    assert "plain, conv2, batch 4,096 70.0 % " in found.ours
    assert found.verdict == "does not hold"
