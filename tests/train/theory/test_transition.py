from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from train.theory.transition import checked_transition, estimate_transition


def test_the_most_certain_image_of_each_label_says_its_row() -> None:
    said = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]], dtype=np.float32)
    np.testing.assert_allclose(estimate_transition(said), [[0.7, 0.3], [0.2, 0.8]], rtol=1e-6)


def test_three_in_a_hundred_images_of_a_class_may_be_more_certain() -> None:
    right = np.arange(1, 201) / 201  # of label 0; of 200 images in two classes 100 are of each, and three are outliers
    found = estimate_transition(np.stack([right, 1 - right], axis=1))
    np.testing.assert_allclose(found, [[197 / 201, 4 / 201], [4 / 201, 197 / 201]])


@given(seed=st.integers(0, 1000), num_classes=st.integers(2, 60))
def test_a_net_that_says_the_noise_of_each_class_is_believed(seed: int, num_classes: int) -> None:
    draws = np.random.default_rng(seed)
    truth = draws.random((num_classes, num_classes)) / num_classes + np.eye(num_classes)  # the diagonal is largest
    truth /= truth.sum(axis=1, keepdims=True)
    largest = truth[truth.argmax(axis=0)]
    classes = draws.permutation(np.repeat(np.arange(num_classes), 40))
    np.testing.assert_allclose(estimate_transition(truth[classes]), largest)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 0.0, 0.0]], r"the transition matrix has shape \(1, 3\); give one row and one column per class"),
        (np.eye(4), "the transition matrix is of 4 classes, and the data set has 3"),
        ([[0.5, 0.5, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 1.0]], "row 1 of the transition matrix sums to 0.9 "),
        ([[1.5, -0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], r"row 0 .* \(smallest entry -0.5\); every row"),
        ([[np.nan, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "row 0 of the transition matrix sums to nan"),
        ([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], "column 2 of the transition matrix is 0: no class"),
    ],
)
def test_what_is_no_transition_matrix_is_refused(matrix: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_transition(np.array(matrix), 3)


def test_rows_that_are_rounded_sum_to_one() -> None:
    found = checked_transition(np.array([[0.3333333, 0.6666666], [0.0, 1.0]]), 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-15)
