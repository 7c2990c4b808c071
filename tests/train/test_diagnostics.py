import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.diagnostics import label_auroc, label_precision, label_recall, loss_histograms

RIGHT = np.array([True, True, True, False, False])
KEPT = np.array([True, True, False, True, False])
NONE = np.zeros(5, dtype=bool)


def test_precision_and_recall_are_counted() -> None:
    assert label_precision(KEPT, RIGHT) == pytest.approx(2 / 3)
    assert label_recall(KEPT, RIGHT) == pytest.approx(2 / 3)
    assert label_precision(~NONE, RIGHT) == pytest.approx(3 / 5)
    assert label_recall(~NONE, RIGHT) == 1
    assert label_recall(RIGHT & KEPT, RIGHT) == pytest.approx(2 / 3)


def test_what_is_not_there_has_no_precision_recall_or_auroc() -> None:
    assert math.isnan(label_precision(NONE, RIGHT))
    assert label_recall(NONE, RIGHT) == 0
    assert math.isnan(label_recall(KEPT, NONE))
    for right in (NONE, ~NONE):
        assert math.isnan(label_auroc(np.arange(5.0), right))


@given(seed=st.integers(0, 1000))
def test_the_auroc_is_the_share_of_pairs_in_which_the_right_label_scores_higher(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, right = generator.integers(0, 5, 30).astype(np.float32), generator.random(30) < 0.5
    pairs = scores[right][:, None] - scores[~right]
    assert label_auroc(scores, right) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())


def test_losses_serve_as_scores_with_their_sign_turned() -> None:
    losses = np.where(RIGHT, 0.1, 2.0)
    assert label_auroc(-losses, RIGHT) == 1
    assert label_auroc(losses, RIGHT) == 0


@given(seed=st.integers(0, 1000), num_bins=st.integers(1, 20))
def test_histograms_hold_every_loss_once(seed: int, num_bins: int) -> None:
    generator = np.random.default_rng(seed)
    losses, right = generator.exponential(size=200).astype(np.float32), generator.random(200) < 0.3
    found = loss_histograms(losses, right, num_bins=num_bins)
    assert (len(found.edges), found.edges[0], found.edges[-1]) == (num_bins + 1, losses.min(), losses.max())
    assert (found.right.sum(), found.wrong.sum()) == (right.sum(), (~right).sum())
    assert (found.right >= 0).all()
    assert (found.wrong >= 0).all()


def test_right_and_wrong_labels_are_counted_in_the_same_bins() -> None:
    found = loss_histograms(np.array([0.0, 1.0, 1.0, 4.0, 3.0]), RIGHT, num_bins=4)
    assert found.edges.tolist() == [0, 1, 2, 3, 4]
    assert found.right.tolist() == [1, 2, 0, 0]
    assert found.wrong.tolist() == [0, 0, 0, 2]


def test_a_loss_that_is_no_number_is_refused() -> None:
    losses = np.array([0.0, 1.0, np.nan, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        loss_histograms(losses, RIGHT)
    with pytest.raises(ValueError, match="NaN"):
        label_auroc(losses, RIGHT)
