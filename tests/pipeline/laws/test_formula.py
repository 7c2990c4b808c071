from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pipeline.errors import UserError
from pipeline.laws import (
    Formula,
    Pair,
    Structured,
    Uniform,
    alpha_of_noisy_share,
    alpha_of_wrong_share,
    noisy_share,
    wrong_share,
)

FORMULAS = st.builds(
    Formula, st.integers(1, 300), st.integers(1, 40), st.integers(0, 30), st.just(Uniform()), st.integers(0, 2**64 - 1)
)


def source_labels(formula: Formula) -> Any:
    return (np.arange(formula.num_images) % formula.num_classes).astype(np.uint16)


@given(FORMULAS)
def test_labels_one_by_one_are_the_rows(formula: Formula) -> None:
    true = source_labels(formula)
    ids = np.arange(formula.num_images)
    rows = formula.all_labels(ids, true)
    copies, image_ids = np.divmod(np.arange(formula.num_examples), formula.num_images)
    found = formula.labels(image_ids, copies, true[image_ids])
    np.testing.assert_array_equal(found.reshape(1 + formula.alpha, -1).T, rows)
    assert rows.max() < formula.num_classes


@given(FORMULAS)
def test_copy_0_is_the_source_label(formula: Formula) -> None:
    true = source_labels(formula)
    ids = np.arange(formula.num_images)
    np.testing.assert_array_equal(formula.all_labels(ids, true)[:, 0], true)
    np.testing.assert_array_equal(formula.labels(ids, np.zeros_like(ids), true), true)


@given(FORMULAS, st.integers(0, 30))
def test_a_smaller_alpha_is_a_prefix_label_for_label(formula: Formula, alpha: int) -> None:
    ids, true = np.arange(formula.num_images), source_labels(formula)
    other = Formula(formula.num_images, formula.num_classes, alpha, formula.law, formula.noise_seed)
    columns = 1 + min(alpha, formula.alpha)
    np.testing.assert_array_equal(formula.all_labels(ids, true)[:, :columns], other.all_labels(ids, true)[:, :columns])


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_the_share_of_right_labels_is_the_expected_one(num_classes: int) -> None:
    formula = Formula(20_000, num_classes, 20)
    true = source_labels(formula)
    right = int((formula.all_labels(np.arange(20_000), true) == true[:, None]).sum())
    drawn_right = right - 20_000
    # Two-sided binomial test with a false-alarm rate of 1e-6.
    low, high = binom.interval(1 - 1e-6, 20_000 * 20, 1 / num_classes)
    assert low <= drawn_right <= high
    assert right / formula.num_examples == pytest.approx(formula.right_share(true), abs=0.002)


def test_alpha_r_and_eta_are_the_papers() -> None:
    # P(true) at K = 10 from the definition: α = 5, 10, 20, 50, 100.
    shares = [Formula(1, 10, alpha).right_share(np.zeros(1, dtype=np.uint16)) for alpha in (5, 10, 20, 50, 100)]
    assert shares == pytest.approx([0.25, 0.1818, 0.1429, 0.1176, 0.1089], abs=5e-5)
    assert noisy_share(20) == pytest.approx(20 / 21)
    assert [1 - wrong_share(alpha, 10) for alpha in (5, 10, 20, 50, 100)] == pytest.approx(shares)


@given(st.integers(0, 10**6), st.integers(2, 65_535))
def test_alpha_comes_back_from_r_and_from_eta(alpha: int, num_classes: int) -> None:
    # 1 − r is 1/(1+α): its rounding to 2^-53 is (1+α) times as large in α.
    assert alpha_of_noisy_share(noisy_share(alpha)) == pytest.approx(alpha, rel=1e-9)
    assert alpha_of_wrong_share(wrong_share(alpha, num_classes), num_classes) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_that_no_alpha_has_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        alpha_of_noisy_share(share)
    with pytest.raises(ValueError, match="lies in"):
        alpha_of_wrong_share(share, 10)
    with pytest.raises(ValueError, match="lies in"):
        alpha_of_wrong_share(0.9, 10)  # only all labels drawn at random have so many wrong ones


@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.sampled_from([Pair(0.4), Structured(0.3, "random")]))
def test_labels_from_tables_one_by_one_are_the_rows(num_images: int, seed: int, law: Any) -> None:
    formula = Formula(num_images, 7, 0 if law.replaces else 5, law, seed)
    ids, true = np.arange(num_images), source_labels(formula)
    copies, image_ids = np.divmod(np.arange(formula.num_examples), num_images)
    found = formula.labels(image_ids, copies, true[image_ids])
    np.testing.assert_array_equal(found.reshape(1 + formula.alpha, -1).T, formula.all_labels(ids, true))


def test_a_flip_goes_with_alpha_0_only() -> None:
    with pytest.raises(UserError, match=r"law pair replaces source labels .* alpha 0, not 3"):
        Formula(10, 10, 3, Pair(0.4))


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": -1},
        {"num_classes": 0},
        {"num_classes": 65_536},
        {"num_images": 0},
        {"noise_seed": -1},
        {"noise_seed": 2**64},
        {"num_images": 2**40, "alpha": 2**23},
        {"alpha": 2**33 + 1},
    ],
)
def test_a_number_out_of_range_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UserError):
        Formula(**{"num_images": 10, "num_classes": 10, "alpha": 1, **fields})
