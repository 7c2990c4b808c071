from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Int64
from numpy import ndarray as Array
from scipy.stats import chisquare

from pipeline.errors import UserError
from pipeline.stream import Draws, Joined, Late, Rest, Stream, Subset, check_batch, rank_positions

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.builds(
    lambda start, count, copies, seed: Stream(range(start, start + count), copies, seed),
    st.integers(0, 50),
    st.integers(1, 60),
    st.integers(1, 9),
    SEEDS,
)

# Of 60 images in 4 copies the first 7 examples are selected, with weights from 0.7 to 1.
DRAWS = st.builds(
    lambda others, views, seed: Draws(
        np.arange(7), Rest(np.linspace(0.7, 1, 7), np.array(sorted(others)), views), 60, seed
    ),
    st.sets(st.integers(7, 239), min_size=1),
    st.integers(1, 3),
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


@given(SEEDS, st.integers(2, 24), st.data())
def test_what_joins_has_its_rows_of_every_batch_from_then_on(seed: int, batch: int, data: st.DataObject) -> None:
    """Both parts in orders of their own, whatever the other one does; pieces of a batch share the rows that join."""
    rows, start = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, 5))
    part, others = Subset(np.arange(0, 70), 100, seed), Subset(np.arange(70, 100), 100, seed)
    joined = Joined(part, Late(others.example_ids, rows, start), batch)
    positions = np.arange(12 * batch)
    places = joined.at(positions)
    theirs = places.image_ids >= 70
    in_batches = theirs.reshape(12, batch)
    assert in_batches.sum(axis=1).tolist() == [0] * start + [rows] * (12 - start)
    for number in (2, 3, 4):
        if batch % number == 0:
            in_pieces = in_batches[start:].reshape(-1, batch // number).sum(axis=1)
            assert np.ptp(in_pieces) <= 1
    for order, own in ((part, ~theirs), (others, theirs)):
        np.testing.assert_array_equal(np.stack(places)[:, own], order.at(np.arange(own.sum())))
    some = data.draw(st.lists(st.integers(0, 12 * batch - 1), min_size=1, max_size=5))
    np.testing.assert_array_equal(joined.at(np.array(some)), np.stack(places)[:, some])
    assert len(joined) == 70


@given(SEEDS, st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_a_subset_of_everything_is_the_stream(seed: int, positions: list[int]) -> None:
    whole, subset = Stream(range(60), 4, seed), Subset(np.arange(240), 60, seed)
    np.testing.assert_array_equal(whole.at(np.array(positions)), subset.at(np.array(positions)))


@given(STREAMS | DRAWS, st.lists(st.integers(0, 2**60), min_size=1, max_size=20))
def test_any_position_alone_is_what_it_is_among_others(stream: Stream | Draws, positions: list[int]) -> None:
    together = np.stack(stream.at(np.array(positions)))
    alone = [np.stack(stream.at(np.array([position]))) for position in positions]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


@given(STREAMS | DRAWS, st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 2, 3, 8]))
def test_the_ranks_together_see_the_global_batch(
    stream: Stream | Draws, step: int, share: int, world_size: int
) -> None:
    batch = share * 24
    parts = [rank_positions(step * batch, batch, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    whole = np.arange(step * batch, (step + 1) * batch)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(
        np.concatenate([np.stack(stream.at(part)) for part in parts], axis=1), np.stack(stream.at(whole))
    )


def example_ids(draws: Draws, positions: Int64[Array, " b"]) -> Int64[Array, "b r"]:
    """Return what each position draws, and the views that it shows of another example."""
    places = draws.at(positions)
    return (places.copies * draws.num_images + places.image_ids).reshape(len(positions), -1)


@given(DRAWS, st.integers(0, 2**40))
def test_a_draw_comes_with_views_of_another_example_all_of_which_have_their_turn(draws: Draws, number: int) -> None:
    one_pass = len(draws.rest.example_ids)
    ids = example_ids(draws, np.arange(one_pass) + number * one_pass)
    assert set(ids[:, 0]) <= set(draws.example_ids)
    assert sorted(ids[:, 1]) == draws.rest.example_ids.tolist()
    assert ids.shape == (one_pass, 1 + draws.rest.views)
    assert (ids[:, 1:] == ids[:, 1:2]).all()


@given(DRAWS, st.integers(0, 2**30))
def test_whatever_a_draw_order_shows_it_shows_in_a_new_augmentation(draws: Draws, first: int) -> None:
    places = draws.at(np.arange(first, first + 40))  # several passes of a few, and each of seven often
    assert len({*zip(places.epochs.tolist(), places.copies.tolist(), places.image_ids.tolist(), strict=True)}) == len(
        places.epochs
    )


def test_draws_follow_their_weights() -> None:
    weights = np.array([1.0, 0.7, 0.1, 2.0])
    selected = np.array([3, 8, 11, 12])
    draws = Draws(selected, Rest(weights, np.array([1, 2]), 2), 20, 5)
    ids = example_ids(draws, np.arange(20_000))[:, 0]
    assert len(draws) == 4
    counts = [int((ids == each).sum()) for each in selected]
    # False alarms: one in 10,000 seeds.
    assert chisquare(counts, 20_000 * weights / weights.sum()).pvalue > 1e-4
    # One draw says nothing of the next one: pairs of neighbours are as frequent as their product.
    pairs = np.array([[((ids[:-1] == a) & (ids[1:] == b)).sum() for b in selected] for a in selected])
    assert chisquare(pairs.ravel(), 19_999 * np.outer(weights, weights).ravel() / weights.sum() ** 2).pvalue > 1e-4
    other = example_ids(Draws(selected, draws.rest, 20, 6), np.arange(20_000))[:, 0]
    assert 0.3 < (other == ids).mean() < 0.5  # another seed agrees by chance alone: 0.385


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
