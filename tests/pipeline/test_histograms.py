from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import pipeline.histograms
from pipeline.counts import Counts
from pipeline.dataset import DilutedSet, dilute
from pipeline.histograms import class_table, count_labels, cut, fit_of, matrix_table
from pipeline.laws import Law, Pair, Structured, Symmetric, Uniform, White
from pipeline.sources.synthetic import synthetic

LAWS = [Uniform(), Structured(0.25, "random"), Symmetric(0.4), Pair(0.0), White()]


def diluted(num_classes: int, alpha: int, law: Law, num_images: int = 97) -> DilutedSet:
    source = synthetic(num_train=num_images, num_test=1, height=1, width=1, channels=1, num_classes=num_classes)
    return dilute(source, alpha=0 if law.replaces else alpha, law=law)


def printed(table: Any) -> str:
    text = StringIO()
    Console(width=120, file=text).print(table)
    return text.getvalue()


@given(law=st.sampled_from(LAWS), num_classes=st.integers(3, 30), alpha=st.integers(1, 9), chunk=st.integers(1, 500))
def test_histograms_are_sums_over_the_counts(law: Law, num_classes: int, alpha: int, chunk: int) -> None:
    dataset = diluted(num_classes, alpha, law)
    formula, true, ids = dataset.formula, dataset.train.source_labels, np.arange(97)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.histograms, "_CHUNK_LABELS", chunk)
        found = count_labels(dataset)
    counts = Counts.of(true, formula.labels_of_images(ids, true)).dense(num_classes)
    np.testing.assert_array_equal(found.cells, counts)
    np.testing.assert_array_equal(found.right, np.diag(counts))
    np.testing.assert_array_equal(found.source, np.bincount(true, minlength=num_classes))
    assert found.carried.sum() == formula.num_examples
    assert found.noisy.sum() == 97 * (1 if law.replaces else alpha)


def test_many_classes_share_cells_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = diluted(30, 3, Uniform())
    fine = count_labels(dataset).cells
    monkeypatch.setattr(pipeline.histograms, "MAX_BINS", 10)
    coarse = count_labels(dataset)
    np.testing.assert_array_equal(coarse.cells, fine.reshape(10, 3, 10, 3).sum(axis=(1, 3)))
    assert len(coarse.noisy) == 30
    assert fit_of(dataset, coarse) is None


@pytest.mark.parametrize("num_images", [50, 20_000])  # far less, and far more, than one label a cell
@pytest.mark.parametrize("law", [Uniform(), Structured(0.1, "random"), Symmetric(0.4)], ids=lambda law: law.name)
def test_labels_fit_their_law_and_no_other(law: Law, num_images: int) -> None:
    dataset = diluted(50, 5, law, num_images)
    fit = fit_of(dataset, count_labels(dataset))
    assert fit is not None
    assert abs(fit.ratio - 1) < 4 * fit.spread  # false alarms: below 1 in 1,000, seeds fixed
    if num_images == 20_000:
        other = diluted(50, 5, Structured(0.08, "random", order_seed=1), num_images)
        assert (wrong := fit_of(other, count_labels(dataset))) is None or wrong.ratio > 1 + 8 * wrong.spread


@pytest.mark.parametrize(
    ("law", "alpha"), [(Uniform(), 0), (White(), 3), (Pair(0.0), 0)], ids=["no label drawn", "other images", "certain"]
)
def test_nothing_is_said_of_a_fit_where_there_is_nothing_to_compare(law: Law, alpha: int) -> None:
    dataset = diluted(5, alpha, law)
    assert fit_of(dataset, count_labels(dataset)) is None


def test_a_label_that_the_law_never_gives_fits_in_no_way() -> None:
    dataset = diluted(10, 0, Pair(0.4))
    fit = fit_of(dataset, count_labels(diluted(10, 0, Symmetric(0.4))))
    assert fit is not None
    assert fit.ratio == np.inf


def test_of_many_classes_the_most_and_the_least_frequent_are_shown() -> None:
    dataset = diluted(40, 5, Uniform(), 800)
    histograms = count_labels(dataset)
    lines = printed(class_table(dataset, histograms)).splitlines()
    order = np.argsort(-histograms.carried, kind="stable").tolist()
    shown = [int(line.split()[0]) for line in lines if line.split()[0].isdigit()]
    assert shown == order[:10] + order[-10:]
    assert any("20 more" in line for line in lines)
    noisy = histograms.noisy
    for name, value in (("least", noisy.min()), ("median", np.median(noisy)), ("most", noisy.max())):
        assert next(line for line in lines if line.split()[0] == name).split()[2] == f"{value:,.0f}"


def test_the_matrix_of_twenty_classes_fits_a_line_of_120_characters() -> None:
    dataset = diluted(20, 9, Uniform(), 400)
    histograms = count_labels(dataset)
    rows = [line.split() for line in printed(matrix_table(dataset, histograms)).splitlines()[2:]]
    shown = np.array([[float(cell) for cell in row[-20:]] for row in rows])
    np.testing.assert_allclose(shown, 100 * histograms.transitions, atol=0.051)


@given(st.text(max_size=40), st.integers(2, 30))
def test_a_name_is_cut_to_its_place_and_never_breaks_the_line(text: str, length: int) -> None:
    short = cut(text, length)
    assert len(short) <= length
    assert not set(short) & set("\n\t\r")
    assert short == " ".join(text.split()) or short.endswith("…")
