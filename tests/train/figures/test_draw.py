"""Pictures and the page hold what the rows say."""

import re
import xml.etree.ElementTree
from typing import Any

import pytest
from figure_rows import row

from pipeline.pictures import picture_bytes
from train.figures.draw import draw
from train.figures.menu import FIGURES
from train.figures.page import page
from train.figures.points import Section


def rows_of(**given: Any) -> list[dict[str, Any]]:
    return [row(alpha=a, seed=s, top1_last=0.9 - a / 200 + s / 100, **given) for a in (0, 20) for s in (0, 1, 2)]


def test_a_panel_has_a_line_a_series_through_the_means_and_a_band_of_confidence() -> None:
    rows = rows_of(model="conv4") + rows_of(model="mlp1")
    (axes,) = draw(FIGURES["fig1"], rows).axes
    assert [line.get_label() for line in axes.get_lines()] == ["conv4", "mlp1"]
    assert axes.get_lines()[0].get_xydata().tolist() == [[0, pytest.approx(0.91)], [20, pytest.approx(0.81)]]
    (band, _) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.91 + 4.3027 * 0.01 / 3**0.5, abs=1e-4)


def test_fits_and_references_are_drawn() -> None:
    rows = [row(alpha=a, clean=n, top1_last=0.9 if n >= 200 * a else 0.7) for a in (5, 10, 20) for n in (500, 8_000)]
    labels = draw(FIGURES["fig7"], rows).axes[0].get_legend_handles_labels()[1]
    assert "80.0 %" in labels
    assert any("·α" in label for label in labels)
    assert "the paper, 90.0 %: 200·α (derived)" in labels
    still = [row(lr=0.0, alpha=a, noise_scale=130.0 * (1 + a)) for a in (0, 5)]
    line, reference = draw(FIGURES["fig10"], still).axes[0].get_lines()
    assert reference.get_ydata().tolist() == [130, 130 * 36]
    assert line.get_ydata().tolist() == [130, 130 * 6]


def test_the_lines_of_all_sources_of_noise_begin_without_noise() -> None:
    rows = [row(alpha=0, top1_last=0.9), row(alpha=5), row(alpha=5, law="white"), row(alpha=5, law="foreign")]
    lines = draw(FIGURES["fig5"], rows).axes[0].get_lines()
    assert {line.get_label(): line.get_xydata().tolist() for line in lines} == {
        f"{law} noise": [[0, 0.9], [5, 0.9]] for law in ("uniform", "white", "foreign")
    }


def test_what_the_paper_found_is_dashed_beside_our_line_of_the_same_noise() -> None:
    rows = [row(law="pair", alpha=0, flip_rate=0.4, curve_at=(1.0, 2.0), curve_label_recall=(0.5, 0.75))]
    axes = draw(FIGURES["incv-iterations"], rows).axes[1]
    ours, paper, _ = axes.get_lines()  # of one noise, and not of the three that nobody ran; an entry of the legend
    assert ours.get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    assert paper.get_xydata().tolist() == [[1, 0.72], [2, 0.865], [3, 0.91], [4, 0.93]]
    assert paper.get_color() == ours.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pair noise, 0.4", "the paper"]
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_rows_is_drawn_empty(name: str) -> None:
    assert all(not axes.get_lines() for axes in draw(FIGURES[name], []).axes)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_has_the_same_bytes_whenever_it_is_drawn(kind: str) -> None:
    first, second = (picture_bytes(draw(FIGURES["fig1"], rows_of()), kind) for _ in range(2))
    assert first == second
    if kind == "svg":
        xml.etree.ElementTree.fromstring(first)


def test_the_page_needs_nothing_else_and_lays_claims_beside_findings() -> None:
    rows = [each | {"commit": "<b>"} for each in rows_of(order="confusing", law="structured", delta=0.0)]
    other = [each | {"dataset": "fashion_mnist"} for each in rows[:2]]
    of = {name: rows if name == "fig4" else [] for name in FIGURES}
    sections = [Section(name, FIGURES[name], FIGURES[name].datasets[0], "cpu", found) for name, found in of.items()]
    text = page([*sections, Section("fig4", FIGURES["fig4"], "fashion_mnist", "cpu", other)])
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("<img") == 2
    assert text.count("Not run.") == len(FIGURES) - 1
    for claim in FIGURES["fig4"].claims:
        assert claim.text in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    section = text[text.index('id="fig4"') : text.index('id="fig5"')]
    assert "0.9100" in section
    assert "0.9000 to 0.9200" in section
    assert "6 runs, 0.1 h in all; seeds 0, 1, 2" in section
    assert "conv4; plain; 4,000 clean labels; 300,000 examples a run; the recipe&#x27;s learning rate." in section
    assert 'id="fig4-fashion_mnist">fig4: Structured noise' in text
    assert "classes (fashion_mnist, scale cpu)</h2>" in text
