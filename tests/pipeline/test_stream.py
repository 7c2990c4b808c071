from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.stream import Stream, Subset, check_batch, rank_positions

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.builds(
    lambda start, count, copies, seed: Stream(range(start, start + count), copies, seed),
    st.integers(0, 50),
    st.integers(1, 60),
    st.integers(1, 9),
    SEEDS,
)


@given(STREAMS, st.integers(0, 2**40))
def test_an_epoch_holds_every_example_exactly_once(stream: Stream, epoch: int) -> None:
    places = stream.at(np.arange(len(stream)) + epoch * len(stream))
    assert (places.epochs == epoch).all()
    expected = Counter((image, copy) for image in stream.images for copy in range(stream.num_copies))
    assert Counter(zip(places.image_ids.tolist(), places.copies.tolist(), strict=True)) == expected


@given(SEEDS, st.sets(st.integers(0, 399), min_size=1), st.integers(0, 2**40))
def test_an_epoch_of_a_subset_holds_each_of_its_examples_once(seed: int, chosen: set[int], epoch: int) -> None:
    subset = Subset(np.array(sorted(chosen)), 100, seed)
    places = subset.at(np.arange(len(subset)) + epoch * len(subset))
    assert (places.epochs == epoch).all()
    assert Counter((places.copies * 100 + places.image_ids).tolist()) == Counter(chosen)


@given(SEEDS, st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_a_subset_of_everything_is_the_stream(seed: int, positions: list[int]) -> None:
    whole, subset = Stream(range(60), 4, seed), Subset(np.arange(240), 60, seed)
    np.testing.assert_array_equal(whole.at(np.array(positions)), subset.at(np.array(positions)))


@given(STREAMS, st.lists(st.integers(0, 2**60), min_size=1, max_size=20))
def test_any_position_alone_is_what_it_is_among_others(stream: Stream, positions: list[int]) -> None:
    together = np.stack(stream.at(np.array(positions)))
    alone = [np.stack(stream.at(np.array([position])))[:, 0] for position in positions]
    np.testing.assert_array_equal(together.T, alone)


@given(STREAMS, st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 2, 3, 8]))
def test_the_ranks_together_see_the_global_batch(stream: Stream, step: int, share: int, world_size: int) -> None:
    batch = share * 24
    parts = [rank_positions(step * batch, batch, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    whole = np.arange(step * batch, (step + 1) * batch)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(
        np.concatenate([np.stack(stream.at(part)) for part in parts], axis=1), np.stack(stream.at(whole))
    )


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    stream, other = Stream(range(500), 4, 1), Stream(range(500), 4, 2)
    first, second = (stream.at(np.arange(2000) + epoch * 2000) for epoch in (0, 1))
    third = other.at(np.arange(2000))
    for a, b in [(first, second), (first, third)]:
        same = (a.image_ids == b.image_ids) & (a.copies == b.copies)
        assert same.sum() <= 12  # Poisson(1): more has a chance below 1e-9


def test_an_epoch_of_an_imagenet_of_alpha_50_takes_no_memory() -> None:
    import tracemalloc

    stream = Stream(range(1_281_167), 51, 0)
    stream.at(np.array([0]))  # compiles
    tracemalloc.start()
    places = stream.at(np.arange(60_000_000, 60_001_024))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places.image_ids) == 1024
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(("batch", "world_size"), [(0, 1), (-4, 1), (10, 3), (101, 1)])
def test_a_batch_that_does_not_fit_is_refused(batch: int, world_size: int) -> None:
    with pytest.raises(UserError, match=f"batch {batch}"):
        check_batch(batch, num_examples=100, world_size=world_size)
