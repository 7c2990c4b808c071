"""Claims about real digits are held against the rows that bear on them."""

from figure_rows import row, verdicts


def test_the_moonshot_is_a_claim_about_methods_that_know_no_clean_label() -> None:
    rows = [row(alpha=50, method="histogram", top1_last=0.89), row(alpha=50, method="h_alpha", top1_last=0.97)]
    assert verdicts("massive", rows) == ["does not hold"]
    assert verdicts("massive", [row(alpha=50, method="histogram", top1_last=0.9)]) == ["holds"]
