import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.errors import UserError
from pipeline.laws import Formula, StoredArray, Structured, Uniform, confusing_order
from pipeline.laws.structured import false_class_masses, random_order

CONFUSION = np.array([[90, 4, 6, 0], [1, 97, 1, 1], [0, 8, 90, 2], [5, 0, 0, 95]])
RANKING = StoredArray(confusing_order(CONFUSION))


@given(st.integers(1, 100), st.floats(0, 1), st.integers(3, 1000))
def test_the_masses_of_false_classes_keep_first_mass_and_total(alpha: int, delta: float, num_classes: int) -> None:
    assume(delta <= alpha * (num_classes - 2) / num_classes)
    masses = false_class_masses(alpha, delta, num_classes)
    assert len(masses) == num_classes - 1
    assert masses[0] == alpha / num_classes + delta
    assert masses.sum() == pytest.approx(alpha * (num_classes - 1) / num_classes, rel=1e-12)
    assert masses.min() >= 0
    assert (np.diff(masses) <= 0).all()


def test_below_the_border_the_ramp_is_a_line() -> None:
    np.testing.assert_allclose(false_class_masses(20, 1.0, 10), np.linspace(3, 1, 9), rtol=1e-15)
    np.testing.assert_allclose(false_class_masses(5, 0.5, 10), np.linspace(1, 0, 9), atol=1e-15)


def test_above_the_border_the_ramp_is_geometric() -> None:
    masses = false_class_masses(5, 1.0, 10)
    ratios = masses[1:] / masses[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-14)
    assert ratios[0] < 1
    assert (masses[0], masses.sum()) == (1.5, pytest.approx(4.5, rel=1e-14))


def test_where_the_first_false_class_takes_all_nothing_is_left() -> None:
    np.testing.assert_allclose(false_class_masses(1, 0.5, 4), [0.75, 0, 0], atol=1e-15)


@pytest.mark.parametrize(("alpha", "delta", "num_classes"), [(1, 0.81, 10), (20, 0.1, 2), (0, 0.5, 10), (1, 1.0, 1000)])
def test_a_delta_that_neither_ramp_fits_is_refused(alpha: int, delta: float, num_classes: int) -> None:
    with pytest.raises(UserError, match=rf"delta {delta} does not fit alpha {alpha} and {num_classes} classes"):
        Formula(10, num_classes, alpha, Structured(delta, "random"))


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("alpha", [0, 1, 20])
def test_delta_0_is_the_uniform_law(alpha: int, num_classes: int) -> None:
    found = Structured(0.0, "random").matrix(alpha, num_classes)
    np.testing.assert_allclose(found, Uniform().matrix(alpha, num_classes), rtol=1e-13)


@pytest.mark.parametrize("alpha", [2, 5, 20, 100])
def test_at_delta_1_the_first_false_label_is_as_frequent_as_the_right_one(alpha: int) -> None:
    law = Structured(1.0, "random", order_seed=5)
    matrix, first = law.matrix(alpha, 10), law.false_classes(10)[:, 0].astype(int)
    np.testing.assert_allclose(matrix[np.arange(10), first], np.diagonal(matrix), rtol=1e-14)


@pytest.mark.parametrize("delta", [0.1, 0.6, 1.0])
def test_the_true_class_keeps_its_uniform_share(delta: float) -> None:
    right = np.diagonal(Structured(delta, "random").matrix(5, 10))
    np.testing.assert_allclose(right, np.diagonal(Uniform().matrix(5, 10)), rtol=1e-14)


def test_classes_that_are_confused_most_come_first_and_ties_by_number() -> None:
    assert confusing_order(CONFUSION).tolist() == [[2, 1, 3], [0, 2, 3], [1, 3, 0], [0, 1, 2]]


def test_counts_and_shares_give_the_same_order() -> None:
    shares = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(confusing_order(shares), confusing_order(CONFUSION))


def test_reverse_mirrors_confusing() -> None:
    confusing, reverse = (Structured(0.7, order, RANKING) for order in ("confusing", "reverse"))
    np.testing.assert_array_equal(reverse.false_classes(4), confusing.false_classes(4)[:, ::-1])
    a, b = confusing.matrix(3, 4), reverse.matrix(3, 4)
    assert a[0, 2] > a[0, 1] > a[0, 3]
    for true, (first, second, third) in enumerate(confusing_order(CONFUSION).tolist()):
        assert (b[true, third], b[true, second], b[true, first]) == (a[true, first], a[true, second], a[true, third])


@pytest.mark.parametrize("num_classes", [2, 3, 10, 300])
def test_a_random_order_ranks_every_false_class_once(num_classes: int) -> None:
    order = random_order(num_classes, 1)
    assert order.shape == (num_classes, num_classes - 1)
    for true, row in enumerate(order.tolist()):
        assert sorted([*row, true]) == list(range(num_classes))


def test_random_orders_are_uniform_over_seeds_and_classes() -> None:
    orders = np.array([random_order(4, seed) for seed in range(1500)])
    codes = orders[:, :, 0] * 16 + orders[:, :, 1] * 4 + orders[:, :, 2]
    for true in range(4):
        _, counts = np.unique(codes[:, true], return_counts=True)
        assert len(counts) == 6
        assert chisquare(counts).pvalue > 1e-6  # the false-alarm rate
    assert len(np.unique(codes, axis=0)) > 800  # of 6^4 = 1,296: rows are drawn apart; expected are 889


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"delta": -0.1}, r"delta is -0.1; give a number in \[0, 1\]"),
        ({"delta": 1.1}, "delta is 1.1"),
        ({"delta": float("nan")}, "delta is nan"),
        ({"order": "confused"}, "orders are: confusing, reverse, random"),
        ({"order": "random"}, "takes no confusion matrix"),
        ({"ranking": None}, "needs a confusion matrix"),
        ({"order": "reverse", "ranking": None}, "needs a confusion matrix"),
        ({"order_seed": -1}, "seed of the order of classes is -1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Structured(**{"delta": 0.5, "ranking": RANKING, **parameters})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (np.ones((3, 4)), r"shape \(3, 4\)"),
        (np.ones(3), r"shape \(3,\)"),
        (np.eye(3) - 1, "negative or not finite"),
        (np.full((3, 3), np.nan), "negative or not finite"),
        (np.eye(3), "ranks nothing"),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(confusion: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        confusing_order(confusion)
