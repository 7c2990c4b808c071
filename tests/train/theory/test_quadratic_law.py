import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws import Pair, Symmetric, SymmetricInclusive, Uniform
from train.theory.quadratic_law import flip_law, quadratic_law

CLASSES = 10
classes = st.integers(2, 20)
ratios = st.floats(0, 0.99)
seeds = st.integers(0, 10_000)


def drawn(num_classes: int, seed: int) -> tuple[Float64[Array, "k k"], Float64[Array, " k"]]:
    """Draw a transition matrix, some entries of which are 0, and a prior."""
    generator = np.random.default_rng(seed)
    matrix = generator.random((num_classes, num_classes)) * (generator.random((num_classes, num_classes)) < 0.7)
    matrix[:, 0] += 0.01  # no row is empty
    prior = generator.random(num_classes) + 0.01
    return matrix / matrix.sum(axis=1, keepdims=True), prior / prior.sum()


@pytest.mark.parametrize(
    ("noise_ratio", "num_targets", "expected"),
    [
        (0.2, 9, (0.644, 0.993, 0.80)),
        (0.5, 9, (0.278, 0.900, 0.50)),
        (0.8, 9, (0.111, 0.360, 0.20)),
        (0.4, 1, (0.520, 0.692, 0.60)),
        (0.45, 1, (0.505, 0.599, 0.55)),
    ],
)
def test_the_law_has_the_values_computed_by_hand(
    noise_ratio: float, num_targets: int, expected: tuple[float, float, float]
) -> None:
    assert flip_law(noise_ratio, num_targets=num_targets) == pytest.approx(expected, abs=6e-4)  # three digits


@given(noise_ratio=ratios, num_classes=classes)
def test_the_closed_forms_are_those_of_their_matrices(noise_ratio: float, num_classes: int) -> None:
    rate = noise_ratio if noise_ratio > 1e-6 else 0.0
    symmetric, pair = (law(rate).matrix(0, num_classes) for law in (Symmetric, Pair))
    assert quadratic_law(symmetric) == pytest.approx(flip_law(rate, num_targets=num_classes - 1), rel=1e-9)
    assert quadratic_law(pair) == pytest.approx(flip_law(rate, num_targets=1), rel=1e-9)


def test_inclusive_noise_and_dilution_are_symmetric_noise_of_another_ratio() -> None:
    inclusive = SymmetricInclusive(0.5).matrix(0, CLASSES)
    assert quadratic_law(inclusive) == pytest.approx(flip_law(0.45, num_targets=9))
    # 10 of 11 labels are uniform: wrong are 10/11 · 9/10. Chance is .1, and (9/10) / 11² more is agreed on.
    diluted = quadratic_law(Uniform().matrix(10, CLASSES))
    assert diluted == pytest.approx(flip_law(9 / 11, num_targets=9))
    assert diluted.accuracy == pytest.approx(0.1 + 0.9 / 121)


@given(num_classes=classes, seed=seeds)
def test_precision_and_recall_are_shares(num_classes: int, seed: int) -> None:
    matrix, prior = drawn(num_classes, seed)
    confusion, _ = drawn(num_classes, seed + 1)
    for found in (quadratic_law(matrix, prior=prior), quadratic_law(matrix, prior=prior, confusion=confusion)):
        for share in found:
            assert math.isnan(share) or 0 <= share <= 1 + 1e-12


@given(num_classes=classes, seed=seeds)
def test_the_law_is_the_sum_over_true_classes_and_labels(num_classes: int, seed: int) -> None:
    matrix, prior = drawn(num_classes, seed)
    confusion, _ = drawn(num_classes, seed + 1)
    predicted = confusion @ matrix
    agree = right = all_right = 0.0
    for true in range(num_classes):
        for label in range(num_classes):
            agree += prior[true] * predicted[true, label] * matrix[true, label]
        right += prior[true] * predicted[true, true] * matrix[true, true]
        all_right += prior[true] * matrix[true, true]
    found = quadratic_law(matrix, prior=prior, confusion=confusion)
    assert found.accuracy == pytest.approx(agree)
    assert found.label_precision * agree == pytest.approx(right)
    assert found.label_recall * all_right == pytest.approx(right)


def test_the_law_is_what_drawing_predictions_and_labels_finds() -> None:
    matrix, prior = drawn(4, 3)
    number, generator = 200_000, np.random.default_rng(0)
    true = generator.choice(4, size=number, p=prior)
    edges = matrix.cumsum(axis=1)
    labels, predictions = ((generator.random(number)[:, None] > edges[true]).sum(axis=1) for _ in range(2))
    kept, right = predictions == labels, labels == true
    found = quadratic_law(matrix, prior=prior)
    # Shares of at least 20,000 draws have standard errors below 0.0036: five of them, false alarm below 1e-6.
    assert min(kept.sum(), right.sum()) > 20_000
    assert kept.mean() == pytest.approx(found.accuracy, abs=0.018)
    assert right[kept].mean() == pytest.approx(found.label_precision, abs=0.018)
    assert kept[right].mean() == pytest.approx(found.label_recall, abs=0.018)


@given(num_classes=classes, seed=seeds)
def test_without_noise_every_label_is_right_and_a_net_agrees_as_often_as_it_is_right(
    num_classes: int, seed: int
) -> None:
    assert flip_law(0.0, num_targets=num_classes - 1) == (1, 1, 1)
    confusion, prior = drawn(num_classes, seed)
    found = quadratic_law(np.eye(num_classes), prior=prior, confusion=confusion)
    accuracy = float(prior @ np.diagonal(confusion))
    assert found.accuracy == pytest.approx(accuracy)
    assert found.label_recall == pytest.approx(accuracy)
    assert math.isnan(found.label_precision) if accuracy == 0 else found.label_precision == pytest.approx(1)


def test_a_confusion_matrix_may_hold_counts() -> None:
    shares, prior = drawn(5, 1)
    matrix, _ = drawn(5, 2)
    counts = shares * np.array([[10], [20], [30], [40], [50]])
    assert quadratic_law(matrix, prior=prior, confusion=counts) == pytest.approx(
        quadratic_law(matrix, prior=prior, confusion=shares)
    )


def test_a_net_that_confuses_classes_stays_below_the_law() -> None:
    matrix = Symmetric(0.5).matrix(0, CLASSES)
    weak = quadratic_law(matrix, confusion=np.full((CLASSES, CLASSES), 1) + 90 * np.eye(CLASSES, dtype=int))
    # Of the part of the accuracy above chance, the share .9 remains: the net is right by .9 more than by chance.
    assert weak.accuracy - 0.1 == pytest.approx(0.9 * (quadratic_law(matrix).accuracy - 0.1))


def test_where_no_label_is_right_there_is_no_recall() -> None:
    found = quadratic_law(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert (found.accuracy, found.label_precision) == (1, 0)
    assert math.isnan(found.label_recall)


@pytest.mark.parametrize("noise_ratio", [-0.1, 1.0, math.nan])
def test_a_noise_ratio_that_is_none_is_refused(noise_ratio: float) -> None:
    with pytest.raises(UserError, match=r"noise ratio is .*; give a number in \[0, 1\)"):
        flip_law(noise_ratio, num_targets=9)


def test_a_confusion_matrix_without_images_of_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="class 1 has no image in the confusion matrix; measure it on images of every"):
        quadratic_law(np.eye(3), confusion=np.array([[4, 1, 0], [0, 0, 0], [0, 0, 5]]))
