import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.jit import num_threads
from kernels.permutation import MAX_SIZE, permutation, permute_plain

DOMAIN = 3
AWKWARD = [1, 2, 3, 4, 5, 7, 8, 9, 31, 97, 255, 256, 257, 1009, 4095, 4096, 4097]
SIZES = st.one_of(st.sampled_from(AWKWARD), st.integers(1, 3000))
HUGE = st.one_of(
    st.sampled_from([2**k + d for k in (32, 33, 40, 61) for d in (-1, 0, 1)] + [MAX_SIZE, MAX_SIZE - 1]),
    st.integers(2**31, MAX_SIZE),
)
SEEDS = st.integers(0, 2**64 - 1)


@given(SIZES, SEEDS, st.integers(0, 2**40))
def test_it_permutes(size: int, seed: int, epoch: int) -> None:
    image = permutation(size, seed=seed, domain=DOMAIN, a=epoch)(np.arange(size))
    assert sorted(image) == list(range(size))


@given(SIZES, SEEDS)
def test_the_inverse_undoes_it(size: int, seed: int) -> None:
    order = permutation(size, seed=seed, domain=DOMAIN)
    positions = np.arange(size)
    np.testing.assert_array_equal(order.inverse(order(positions)), positions)


@given(HUGE, SEEDS, st.data())
def test_huge_sizes_stay_in_range_and_come_back(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9, unique=True)))
    order = permutation(size, seed=seed, domain=DOMAIN)
    image = order(positions)
    assert ((image >= 0) & (image < size)).all()
    assert len(set(image.tolist())) == len(positions)
    np.testing.assert_array_equal(order.inverse(image), positions)


@given(st.one_of(SIZES, HUGE), SEEDS, st.integers(0, 2**40), st.data())
def test_the_kernel_equals_its_twin(size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    found = permutation(size, seed=seed, domain=DOMAIN, a=epoch)(np.array([position]))
    assert found[0] == permute_plain(position, size=size, seed=seed, domain=DOMAIN, a=epoch)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_slice_on_any_number_of_threads_is_the_same(threads: int) -> None:
    order = permutation(100_003, seed=9, domain=DOMAIN)
    whole = order(np.arange(100_003))
    with num_threads(threads):
        np.testing.assert_array_equal(order(np.arange(70_001, 99_999)), whole[70_001:99_999])
        np.testing.assert_array_equal(order(np.arange(100_003)), whole)


def test_seeds_epochs_and_domains_give_unrelated_orders() -> None:
    size = 10_000
    orders = [
        permutation(size, seed=seed, domain=domain, a=epoch)(np.arange(size))
        for seed, domain, epoch in [(0, 3, 0), (1, 3, 0), (2**32, 3, 0), (0, 3, 1), (0, 3, 2**32), (0, 7, 0)]
    ]
    # Two random orders agree at Poisson(1) places: more than 12 has a chance below 1e-9 a pair.
    assert max((a == b).sum() for i, a in enumerate(orders) for b in orders[:i]) <= 12


@pytest.mark.parametrize("size", [10, 101, 4097])
def test_every_place_is_equally_likely(size: int) -> None:
    # Where positions 0 and 1 go under 20,000 seeds, and how far apart: chi-square in 10 cells (9 degrees of freedom);
    # 35 is passed by chance once in 17,000 (three tests for three sizes: once in 1,900).
    pairs = np.array([permutation(size, seed=s, domain=DOMAIN)(np.arange(2)) for s in range(20_000)])
    for values in (pairs[:, 0], pairs[:, 1], (pairs[:, 1] - pairs[:, 0]) % size):
        share = np.diff([-(-size * cell // 10) for cell in range(11)]) / size
        if values is not pairs[:, 0] and values is not pairs[:, 1] and size == 10:
            values = values[values > 0]  # the distance is never 0
            share = np.array([0, *[1 / 9] * 9])
        found = np.bincount(values * 10 // size, minlength=10)
        expected = share * len(values)
        cells = expected > 0
        assert ((found - expected)[cells] ** 2 / expected[cells]).sum() < 35


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 2\\^62"):
        permutation(size, seed=0, domain=DOMAIN)


@pytest.mark.parametrize("position", [-1, 100, 2**62])
def test_a_position_out_of_range_is_refused(position: int) -> None:
    order = permutation(100, seed=0, domain=DOMAIN)
    for send in (order, order.inverse):
        with pytest.raises(ValueError, match=r"in \[0, 100\)"):
            send(np.array([5, position]))
