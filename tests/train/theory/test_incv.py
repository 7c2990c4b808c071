import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from train.theory.incv import (
    agreeing_noise_ratio,
    candidates_from,
    candidates_of_batch,
    estimate_noise_ratio,
    remove_ratio,
    selected_noise_ratio,
)
from train.theory.quadratic_law import flip_law

MANY = 10**12  # examples: nothing is left to chance


def scanned(accuracy: float, num_classes: int) -> float:
    """Estimate the noise ratio as the authors do, in steps of .001."""
    steps = range(1, 1000)
    return next(
        step / 1000 for step in steps if flip_law(step / 1000, num_targets=num_classes - 1).accuracy <= accuracy
    )


@given(num_classes=st.integers(2, 1000), share=st.floats(0, 0.99))
def test_the_estimate_inverts_the_law(num_classes: int, share: float) -> None:
    noise_ratio = share * (num_classes - 1) / num_classes
    accuracy = flip_law(noise_ratio, num_targets=num_classes - 1).accuracy
    found = estimate_noise_ratio(accuracy, num_classes=num_classes, num_examples=MANY)
    # Accuracies are good to 1e-16; the curve is flattest at 0.99, where a ratio is worth 0.02 of an accuracy.
    assert found == pytest.approx(noise_ratio, abs=1e-12)


@given(accuracy=st.floats(0.112, 0.998))
def test_the_authors_scan_ends_at_the_next_of_its_steps(accuracy: float) -> None:
    found = estimate_noise_ratio(accuracy, num_classes=10, num_examples=MANY)
    assert -1e-9 <= scanned(accuracy, 10) - found <= 0.001 + 1e-9


@pytest.mark.parametrize(
    ("accuracy", "estimate"),
    [(0.61, 0.22), (0.26, 0.52), (0.108, 0.82), (0.52, 0.285), (0.46, 0.332)],
    ids=["symmetric .2", "symmetric .5", "symmetric .8", "asymmetric .4 by the law", "asymmetric .4 as measured"],
)
def test_measured_accuracies_give_the_published_estimates(accuracy: float, estimate: float) -> None:
    found = estimate_noise_ratio(accuracy, num_classes=10, num_examples=25_000)
    assert found == pytest.approx(estimate, abs=0.006)  # the accuracies are read off a figure


@given(noise_ratio=st.floats(0.01, 0.5), num_classes=st.integers(3, 100))
def test_asymmetric_noise_is_underestimated(noise_ratio: float, num_classes: int) -> None:
    accuracy = flip_law(noise_ratio, num_targets=1).accuracy
    assert estimate_noise_ratio(accuracy, num_classes=num_classes, num_examples=MANY) < noise_ratio


@pytest.mark.parametrize(
    ("alpha", "num_examples", "refused"),
    [
        (1, 300, True),  # stands out of chance, but ratios too far apart fit
        (1, 400, False),
        (10, 7_000, True),
        (10, 7_200, False),
        (20, 86_000, True),
        (20, 87_000, False),
        (100, 1_000_000, True),
    ],
)
def test_where_the_curve_is_flat_it_takes_more_examples(alpha: int, num_examples: int, refused: bool) -> None:
    accuracy = 0.1 + 0.9 / (1 + alpha) ** 2
    if refused:
        with pytest.raises(UserError, match=f"the noisy labels of {num_examples:,} examples of 10 classes fits every"):
            estimate_noise_ratio(accuracy, num_classes=10, num_examples=num_examples)
    else:
        wrong = 0.9 * alpha / (1 + alpha)
        assert estimate_noise_ratio(accuracy, num_classes=10, num_examples=num_examples) == pytest.approx(wrong)


def test_a_refusal_says_what_fits_and_what_to_do() -> None:
    with pytest.raises(UserError) as refused:
        estimate_noise_ratio(0.11, num_classes=10, num_examples=2_000)
    assert str(refused.value) == (
        "accuracy 0.11 against the noisy labels of 2,000 examples of 10 classes fits every noise ratio from 0.75 to "
        "0.90: the curve is flat near 0.1, which is chance, and so few examples are uncertain; measure on more, "
        "or say the ratio"
    )


def test_a_perfect_accuracy_on_few_examples_is_no_certainty() -> None:
    assert estimate_noise_ratio(1.0, num_classes=10, num_examples=1_000) == 0
    with pytest.raises(UserError, match=r"from 0\.00 to 0\.16"):
        estimate_noise_ratio(1.0, num_classes=10, num_examples=10)


@pytest.mark.parametrize("accuracy", [0.0, 0.05])
def test_an_accuracy_below_chance_is_refused(accuracy: float) -> None:
    with pytest.raises(UserError, match=r"to 0\.90: the curve"):
        estimate_noise_ratio(accuracy, num_classes=10, num_examples=1_000_000)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1])
def test_an_accuracy_that_is_no_share_is_refused(accuracy: float) -> None:
    with pytest.raises(UserError, match=f"accuracy is {accuracy}"):
        estimate_noise_ratio(accuracy, num_classes=10, num_examples=100)


@pytest.mark.parametrize(("noise_ratio", "expected"), [(0, 0), (0.2, 0.25), (0.5, 1), (0.6, 1.5), (2 / 3, 2), (0.9, 2)])
def test_the_remove_ratio_is_the_odds_of_a_wrong_label_but_at_most_two(noise_ratio: float, expected: float) -> None:
    assert remove_ratio(noise_ratio) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("noise_ratio", "num_targets", "expected"), [(0.5, 9, 0.10), (0.2, 9, 0.007), (0.8, 9, 0.64), (0.334, 1, 0.20)]
)
def test_the_noise_of_a_selection_has_the_values_computed_by_hand(
    noise_ratio: float, num_targets: int, expected: float
) -> None:
    assert selected_noise_ratio(noise_ratio, num_targets=num_targets) == pytest.approx(expected, abs=1.1e-3)


@given(noise_ratio=st.floats(0, 0.99), num_targets=st.integers(1, 1000))
def test_the_noise_of_a_selection_is_what_its_precision_leaves(noise_ratio: float, num_targets: int) -> None:
    precision = flip_law(noise_ratio, num_targets=num_targets).label_precision
    assert selected_noise_ratio(noise_ratio, num_targets=num_targets) == pytest.approx(1 - precision, abs=1e-12)


def test_agreement_of_a_net_that_says_the_class_tells_how_many_wrong_labels_it_agrees_with() -> None:
    """At α = 5 and K = 10, .75 are wrong; a net right about 8 in 10 agrees with .2 + .2 * .75 / 9 of the labels."""
    agreement = 0.2 + 0.2 * 0.75 / 9
    assert agreeing_noise_ratio(0.75, agreement=agreement, num_classes=10) == pytest.approx(0.2 * 0.75 / 9 / agreement)
    assert agreeing_noise_ratio(0.75, agreement=0.25, num_classes=10) == 0  # it knows every class
    assert agreeing_noise_ratio(0.75, agreement=0.05, num_classes=10) == 1  # it knows none
    assert agreeing_noise_ratio(0.9, agreement=0.1, num_classes=10) == 0.9  # labels that say nothing
    assert agreeing_noise_ratio(0.0, agreement=1.0, num_classes=10) == 0


@pytest.mark.parametrize("noise_ratio", [0.1, 0.5, 0.8])
def test_a_net_that_has_fitted_its_labels_agrees_with_as_many_wrong_ones_by_either_formula(noise_ratio: float) -> None:
    agreement = (1 - noise_ratio) ** 2 + noise_ratio**2 / 9
    found = agreeing_noise_ratio(noise_ratio, agreement=agreement, num_classes=10)
    assert found == pytest.approx(selected_noise_ratio(noise_ratio, num_targets=9))


@pytest.mark.parametrize("function", [remove_ratio, lambda ratio: selected_noise_ratio(ratio, num_targets=9)])
@pytest.mark.parametrize("noise_ratio", [-0.1, 1.0])
def test_a_noise_ratio_that_is_none_is_refused(function: object, noise_ratio: float) -> None:
    assert callable(function)
    with pytest.raises(UserError, match=f"noise ratio is {noise_ratio}"):
        function(noise_ratio)


@pytest.mark.parametrize(
    ("num_selected", "num_candidates", "rows"), [(1000, 0, 0), (1000, 250, 26), (1000, 500, 43), (10, 10_000, 43)]
)
def test_candidates_have_their_share_of_a_batch_and_at_most_a_third(
    num_selected: int, num_candidates: int, rows: int
) -> None:
    assert candidates_of_batch(128, num_selected=num_selected, num_candidates=num_candidates) == rows


def test_candidates_join_later_where_labels_say_less() -> None:
    assert candidates_from(0.5, pairs=False) == 40 / 200
    assert candidates_from(0.61, pairs=False) == candidates_from(0.3, pairs=True) == 80 / 200
