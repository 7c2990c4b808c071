from fractions import Fraction
from itertools import pairwise, product

import pytest

from pipeline.votes import vote_baseline


def share_by_enumeration(num_classes: int, alpha: int) -> Fraction:
    """Let the true class be 0, try every outcome of the α draws, and break ties evenly."""
    right = Fraction(0)
    for noisy in product(range(num_classes), repeat=alpha):
        votes = [(0, *noisy).count(label) for label in range(num_classes)]
        if votes[0] == max(votes):
            right += Fraction(1, votes.count(max(votes)))
    return right / num_classes**alpha


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("alpha", [0, 1, 2, 3, 4, 5])
def test_the_baseline_is_what_enumeration_gives(num_classes: int, alpha: int) -> None:
    # The sum stops where a term is below 1e-6 of a ball, and terms fall faster than geometrically.
    assert vote_baseline(num_classes, alpha) == pytest.approx(float(share_by_enumeration(num_classes, alpha)), abs=2e-6)


@pytest.mark.parametrize("alpha", [10, 11])
def test_the_baseline_is_what_enumeration_gives_for_many_votes_of_few_classes(alpha: int) -> None:
    assert vote_baseline(3, alpha) == pytest.approx(float(share_by_enumeration(3, alpha)), abs=2e-6)


@pytest.mark.parametrize(("alpha", "share"), [(5, 0.335), (20, 0.217), (100, 0.151)])
def test_the_published_values_for_ten_classes_come_out(alpha: int, share: float) -> None:
    assert vote_baseline(10, alpha) == pytest.approx(share, abs=0.002)  # the published ones were simulated


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_more_noise_never_helps_the_vote(num_classes: int) -> None:
    shares = [vote_baseline(num_classes, alpha) for alpha in range(130)]
    # With two classes an odd and the next even number of votes are equally good; 4e-6 is the rounding of both.
    assert all(after <= before + 4e-6 for before, after in pairwise(shares))
    assert shares[0] == 1
    assert 1 / num_classes < shares[-1] < shares[1]


@pytest.mark.parametrize(("num_classes", "alpha"), [(2, 4_000), (10, 10_000), (65_535, 50)])
def test_large_numbers_take_no_time_and_stay_probabilities(num_classes: int, alpha: int) -> None:
    assert 1 / num_classes < vote_baseline(num_classes, alpha) < 1.2 / min(num_classes, alpha + 1)


def test_two_classes_and_many_votes_follow_the_half_normal_law() -> None:
    # E[largest] = n/2 + E|n/2 - Binomial(n, 1/2)|, and the latter is sqrt(n / 2π) up to a share of 1/4n.
    votes = 20_001
    excess = vote_baseline(2, votes - 1) - 0.5
    assert excess == pytest.approx((2 * 3.141592653589793 * votes) ** -0.5, rel=1e-4)
