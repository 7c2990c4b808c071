from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import passes
from pipeline.errors import UserError
from pipeline.passes import BLOCK_IMAGES, Passes
from pipeline.stream import rank_positions

SEEDS = st.integers(0, 2**64 - 1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 images, so that a small set has many."""
    monkeypatch.setattr(passes, "BLOCK_IMAGES", 4)


ORDERS = st.builds(
    lambda start, count, copies, seed, window, reuse: Passes(range(start, start + count), copies, seed, window, reuse),
    st.integers(0, 50),
    st.integers(1, 60),
    st.integers(1, 9),
    SEEDS,
    st.integers(1, 20),
    st.integers(1, 10),
)


@given(ORDERS, st.integers(0, 2**20))
def test_an_epoch_holds_every_example_exactly_once(order: Passes, epoch: int) -> None:
    places = order.at(np.arange(len(order)) + epoch * len(order))
    assert (places.epochs == epoch).all()
    expected = Counter((image, copy) for image in order.images for copy in range(order.num_copies))
    assert Counter(zip(places.image_ids.tolist(), places.copies.tolist(), strict=True)) == expected


@given(ORDERS, st.integers(0, 2**20))
def test_no_image_comes_twice_in_a_pass(order: Passes, epoch: int) -> None:
    if order.reuse > 1:
        return
    image_ids = order.at(np.arange(len(order)) + epoch * len(order)).image_ids.reshape(order.num_copies, -1)
    assert (np.sort(image_ids, axis=1) == np.arange(order.images.start, order.images.stop)).all()


@given(ORDERS, st.lists(st.integers(0, 2**31), min_size=1, max_size=20))
def test_any_position_alone_is_what_it_is_among_others(order: Passes, positions: list[int]) -> None:
    together = np.stack(order.at(np.array(positions)))
    alone = [np.stack(order.at(np.array([position])))[:, 0] for position in positions]
    np.testing.assert_array_equal(together.T, alone)


@given(ORDERS, st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 2, 3, 8]))
def test_the_ranks_together_see_the_global_batch(order: Passes, step: int, share: int, world_size: int) -> None:
    batch = share * 24
    parts = [rank_positions(step * batch, batch, rank=r, world_size=world_size) for r in range(world_size)]
    whole = np.arange(step * batch, (step + 1) * batch)
    np.testing.assert_array_equal(
        np.concatenate([np.stack(order.at(part)) for part in parts], axis=1), np.stack(order.at(whole))
    )


@given(ORDERS)
def test_reading_stays_within_a_window_of_blocks(order: Passes) -> None:
    places = order.at(np.arange(len(order)))
    read = (places.image_ids - order.images.start) // 4
    rounds = -(-order.num_copies // order.reuse)
    for number in range(rounds):
        sweeps = min(order.reuse, order.num_copies - number * order.reuse)
        first = number * order.reuse * len(order.images)
        of_round = read[first : first + sweeps * len(order.images)]
        left = [int(np.flatnonzero(of_round == block).max()) for block in range(order.num_blocks)]
        entered = [int(np.flatnonzero(of_round == block).min()) for block in range(order.num_blocks)]
        for place in entered:  # blocks that are open at a time: those of one window
            assert sum(e <= place <= last for e, last in zip(entered, left, strict=True)) <= order.window


@given(ORDERS)
def test_a_round_shows_every_image_once_a_sweep(order: Passes) -> None:
    places = order.at(np.arange(len(order)))
    num_images = len(order.images)
    for number in range(-(-order.num_copies // order.reuse)):
        sweeps = min(order.reuse, order.num_copies - number * order.reuse)
        first = number * order.reuse * num_images
        counts = Counter(places.image_ids[first : first + sweeps * num_images].tolist())
        assert set(counts.values()) == {sweeps}


def test_passes_epochs_and_seeds_have_orders_of_their_own() -> None:
    order, other = Passes(range(500), 4, 1, 8), Passes(range(500), 4, 2, 8)
    first, second = (order.at(np.arange(2000) + epoch * 2000) for epoch in (0, 1))
    third = other.at(np.arange(2000))
    rows = [first.image_ids[start : start + 500] for start in range(0, 2000, 500)]
    rows += [second.image_ids[:500], third.image_ids[:500]]
    for i, a in enumerate(rows):
        for b in rows[:i]:
            assert (a == b).sum() <= 12  # Poisson(1): more has a chance below 1e-9
    assert (first.copies[:500] != second.copies[:500]).sum() > 300
    blocks = [tuple((row // 4)[:8]) for row in rows]
    assert len(set(blocks)) == len(blocks)


def test_every_pass_has_its_share_of_source_labels() -> None:
    order = Passes(range(4_000), 5, 3)
    copies = order.at(np.arange(20_000)).copies.reshape(5, 4_000)
    share = (copies == 0).mean(axis=1)
    assert abs(share - 0.2).max() < 6 * (0.2 * 0.8 / 4_000) ** 0.5  # false alarm below 1e-8


@pytest.mark.parametrize(("window", "reuse"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(window: int, reuse: int) -> None:
    with pytest.raises(UserError, match="give at least 1"):
        Passes(range(10), 2, 0, window, reuse)


@settings(max_examples=3, deadline=None)
@given(SEEDS)
def test_an_imagenet_of_alpha_50_is_streamed_from_any_position(seed: int) -> None:
    passes.BLOCK_IMAGES = BLOCK_IMAGES
    order = Passes(range(1_281_167), 51, seed, 16, 8)
    for start in (0, 60_000_000, 2**40):
        places = order.at(np.arange(start, start + 1024))
        assert len(set(zip(places.image_ids.tolist(), places.copies.tolist(), strict=True))) == 1024
        assert places.image_ids.max() < 1_281_167
