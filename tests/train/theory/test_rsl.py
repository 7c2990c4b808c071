from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws import Map, Pair, Symmetric, SymmetricInclusive, Uniform
from train.theory.rsl import (
    draw_weights,
    failed_conditions,
    kept_counts,
    kept_shares,
    observed_noise_rates,
)

CLASSES = 10
EVEN = np.full(CLASSES, 0.1)  # CIFAR-10: 4,500 training images of each of 10 classes
IMAGES = np.full(CLASSES, 4_500)


def test_noise_rates_of_labels_are_those_of_the_structured_flips() -> None:
    rates = observed_noise_rates(Map(0.4).matrix(0, CLASSES), EVEN)
    # Airplane, automobile and horse get labels of another class and lose none; cat and dog exchange theirs.
    expected = [0.4 / 1.4, 0.4 / 1.4, 0, 0.4, 0, 0.4, 0, 0.4 / 1.4, 0, 0]
    assert rates == pytest.approx(np.array(expected))


def test_noise_rates_weigh_true_classes_by_their_prior() -> None:
    matrix, prior = Pair(0.2).matrix(0, 2), np.array([0.9, 0.1])
    # Label 0 is carried by .72 + .02 of the examples, label 1 by .18 + .08.
    assert observed_noise_rates(matrix, prior) == pytest.approx(np.array([0.02 / 0.74, 0.18 / 0.26]))


def test_a_label_that_no_image_carries_has_no_noise_rate() -> None:
    rates = observed_noise_rates(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.5, 0.5]))
    assert np.array_equal(rates, [0.5, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("rate", "share", "kept"),
    [(0.1, 0.892, 4_014), (0.3, 0.676, 3_042), (0.5, 0.46, 2_070), (0.7, 0.296, 1_332), (0.9, 0.152, 684)],
)
def test_shares_of_uniform_noise_are_the_published_ones(rate: float, share: float, kept: int) -> None:
    rates = observed_noise_rates(SymmetricInclusive(rate).matrix(0, CLASSES), EVEN)
    assert kept_shares(rates) == pytest.approx(np.full(CLASSES, share))
    # Per class; the authors' code cuts 3,041.99… and 683.99… to 3,041 and 683.
    assert kept_counts(rates, IMAGES, EVEN).tolist() == [kept] * CLASSES


@pytest.mark.parametrize(("rate", "share"), [(0.1, 0.88), (0.2, 0.76), (0.3, 0.64), (0.4, 0.52)])
def test_shares_of_pair_flips_are_the_published_ones(rate: float, share: float) -> None:
    rates = observed_noise_rates(Pair(rate).matrix(0, CLASSES), EVEN)
    assert kept_shares(rates) == pytest.approx(np.full(CLASSES, share))


def structured() -> tuple[Float64[Array, " k"], Any]:
    matrix = Map(0.4).matrix(0, CLASSES)
    return observed_noise_rates(matrix, EVEN), np.round(matrix.sum(axis=0) * 4_500).astype(np.int64)


def test_counts_of_structured_noise_are_the_published_ones() -> None:
    rates, counts = structured()
    assert counts.tolist() == [6300, 6300, 2700, 4500, 2700, 4500, 4500, 6300, 4500, 2700]
    # γ = (1 + 4500/2340) / 2 = 1.46, and 1.46 · 2340 = 3420.
    expected = [3420, 3420, 2700, 2340, 2700, 2340, 3420, 3420, 3420, 2700]
    assert kept_counts(rates, counts, EVEN).tolist() == expected


@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 20))
def test_no_class_keeps_more_than_its_rate_allows_and_one_keeps_just_that(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    rates, counts = generator.random(num_classes) * 0.9, generator.integers(1_000, 9_000, num_classes)
    prior = generator.random(num_classes) + 0.5
    prior /= prior.sum()
    kept = kept_counts(rates, counts, prior)
    most = np.floor(kept_shares(rates) * counts + 1e-6)
    assert ((kept >= 1) & (kept <= most) & (most <= counts)).all()
    assert (kept == most).any()


def test_without_noise_everything_is_kept() -> None:
    assert kept_counts(np.zeros(CLASSES), IMAGES, EVEN).tolist() == IMAGES.tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_rates": np.array([0.1, 1.0])}, r"noise rate of label 1 is 1; give a number in \[0, 1\)"),
        ({"noise_rates": np.array([np.nan, 0.1])}, "noise rate of label 0 is nan"),
        ({"counts": np.array([40, 0])}, "label 1 would keep none of its 0 examples"),
        ({"counts": np.array([3, 100]), "noise_rates": np.array([0.9, 0.1])}, "label 0 would keep none of its 3"),
        (
            {"noise_rates": np.full(2, 0.5), "counts": np.array([3, 50]), "prior": np.array([1e-6, 1 - 1e-6])},
            "label 0 would keep none of its 3",  # 1.38 of them by the rate, half of that by the prior
        ),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(given: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "noise_rates": np.array([0.1, 0.2]),
        "counts": np.array([40, 50]),
        "prior": np.array([0.5, 0.5]),
    }
    with pytest.raises(UserError, match=message):
        kept_counts(**{**fields, **given})


@given(alpha=st.integers(0, 1_000), num_classes=st.integers(2, 30))
def test_uniform_dilution_never_fails(alpha: int, num_classes: int) -> None:
    matrix = Uniform().matrix(alpha, num_classes)
    assert failed_conditions(matrix) == []


@pytest.mark.parametrize(("law", "num_failed"), [(Symmetric(0.89), 0), (Symmetric(0.9), 20), (Pair(0.45), 0)])
def test_conditions_hold_while_the_right_label_is_the_most_frequent(law: Any, num_failed: int) -> None:
    assert len(failed_conditions(law.matrix(0, CLASSES))) == num_failed


def test_what_fails_is_named() -> None:
    matrix = np.array([[0.6, 0.4, 0.0], [0.0, 0.3, 0.7], [0.0, 0.0, 1.0]])
    # Row 1 has its maximum at 2. In column 1, class 0 stands above class 1. In column 2 nothing stands above 1.
    assert failed_conditions(matrix) == [
        "class 1: label 2 is as likely as its own (0.7 against 0.3), so that the best net predicts 2 for it",
        "label 1: images of class 0 carry it as often as its own (0.4 against 0.3), so that their losses are as small",
    ]


def test_weights_of_draws_fall_from_1_to_070_within_each_observed_class() -> None:
    nan = float("nan")
    losses = np.array([2, 6, 3, nan, 100, 0, 5], dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 2, 2, 3], dtype=np.uint16)
    found = draw_weights(losses, labels)
    # exp(-κ u), κ = -log 0.7; u = (3 - 2) / (6 - 2) for the third. Class 3 has one example, and no spread.
    expected = [1, 0.7, np.exp(np.log(0.7) / 4), nan, 0.7, 1, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert draw_weights(losses, labels, least=0.2)[1] == pytest.approx(0.2)
