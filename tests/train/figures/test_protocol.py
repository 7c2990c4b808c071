"""What stands beside a figure says how its runs were made."""

import pytest
from figure_rows import row

from train.figures.menu import FIGURES
from train.figures.page import page
from train.figures.points import Section
from train.figures.protocol import LEGEND, SOURCES, hours_of, protocol_of, seeds_of


def test_a_protocol_names_net_labels_examples_and_how_rates_were_found() -> None:
    rows = [
        row(model="conv2", method="h_alpha", clean=2_000, examples=60_000, rate="chosen"),
        row(model="conv2", clean=4_000, examples=300_000, rate="carried"),
    ]
    figure = FIGURES["fig1"]
    assert protocol_of(Section("fig1", figure, "mnist5k", "cpu", rows)) == (
        "conv2; h_alpha (uses clean labels), plain; 2,000 to 4,000 clean labels; 60,000 to 300,000 examples a run; "
        "learning rates chosen by the loss on noisy validation of seed 0, the lowest of a run; where that loss has a "
        f"standard error above 0.02, the rate chosen at α = 10. {figure.protocol}"
    )
    newer = [each | {"noisy_val_loss_last": 2.2} for each in rows]
    assert "seed 0, the last of a run; " in protocol_of(Section("fig1", figure, "mnist5k", "cpu", newer))
    given = [row(rate="given", lr=3e-3), row(rate="given", lr=3e-4), row(rate="recipe", lr=1e-3)]
    assert "; the recipe's learning rate; given learning rates: 0.0003, 0.003." in protocol_of(
        Section("fig1", figure, "mnist5k", "cpu", given)
    )
    assert protocol_of(Section("fig1", figure, "mnist5k", "cpu", [])) == figure.protocol


def test_time_is_added_up_and_seeds_are_named_once() -> None:
    rows = [row(seed=1, wall_s=1_800.0), row(seed=0, wall_s=5_400.0), row(seed=0, alpha=5, wall_s=360.0)]
    assert hours_of(Section("fig1", FIGURES["fig1"], "mnist5k", "cpu", rows)) == "2.1 h"
    assert hours_of(Section("fig1", FIGURES["fig1"], "mnist5k", "cpu", rows[:1], rows[1:])) == "2.1 h"
    short = [each | {"wall_s": 50.0} for each in rows]
    assert hours_of(Section("fig1", FIGURES["fig1"], "mnist5k", "cpu", short)) == f"{50 * len(rows) / 3_600:.2f} h"
    assert seeds_of(rows) == "0, 1"
    assert seeds_of([each | {"noise_seed": 7} for each in rows]) == "0, 1 (noise 7)"


@pytest.mark.parametrize("name", FIGURES)
def test_every_claim_says_where_what_is_known_comes_from(name: str) -> None:
    for claim in FIGURES[name].claims:
        assert any(mark in claim.known for mark in SOURCES), claim.known


def test_what_is_not_the_paper_s_is_marked_number_by_number() -> None:
    known = {name: [claim.known for claim in figure.claims] for name, figure in FIGURES.items()}
    assert "91 % (from memory)" in known["fig1"][2]
    assert known["fig2"] == ["85 % (from memory)"]
    assert known["fig3"] == ["about 70 %, top-1 or top-5 (from memory)"]
    assert "32 to 256 (second hand)" in known["fig8"][0]


def test_the_legend_stands_on_the_page_and_names_every_mark() -> None:
    assert all(mark in LEGEND for mark in SOURCES)
    assert LEGEND in page([])
