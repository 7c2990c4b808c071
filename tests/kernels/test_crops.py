import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy import ndarray as Array
from torchvision.transforms import RandomResizedCrop

from kernels import crops
from kernels.crops import flips, flips_plain, shifts, shifts_plain, windows, windows_plain

SEED = st.integers(0, 2**64 - 1)
EPOCH = st.integers(0, 2**32 - 1)
EXAMPLE_ID = st.integers(0, 2**63 - 1)
SIDE = st.one_of(st.integers(1, 12), st.integers(1, 700), st.just(5000), st.just(65535))
ROWS = st.lists(st.tuples(EPOCH, EXAMPLE_ID), max_size=20)
TRAINING = ((0.08, 1.0), (3 / 4, 4 / 3))
FROZEN = [[99, 0, 163, 210], [163, 121, 187, 224], [37, 94, 322, 316], [41, 77, 306, 315]]


def columns(rows: Sequence[tuple[int, ...]], count: int) -> list[Array[Any, Any]]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, count).T)


@given(SEED, st.lists(st.tuples(EPOCH, EXAMPLE_ID, SIDE, SIDE), max_size=20))
@example(2**64 - 1, [(2**32 - 1, 2**63 - 1, 1, 1), (0, 2**32, 1, 5000), (1, 2**32 + 1, 5000, 1)])
def test_windows_are_their_plain_twin_bit_for_bit_and_lie_inside_the_image(
    seed: int, rows: list[tuple[int, int, int, int]]
) -> None:
    epochs, example_ids, heights, widths = columns(rows, 4)
    drawn = windows(seed, epochs, example_ids, heights, widths)
    np.testing.assert_array_equal(drawn, windows_plain(seed, epochs, example_ids, heights, widths))
    top, left, height, width = drawn.T
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, 2:] >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


def test_windows_are_twins_on_many_sizes() -> None:
    rng = np.random.default_rng(0)
    epochs, example_ids = rng.integers(0, 2**32, 3000), rng.integers(0, 2**63, 3000)
    heights, widths = rng.integers(1, 600, 3000), rng.integers(1, 600, 3000)
    np.testing.assert_array_equal(
        windows(7, epochs, example_ids, heights, widths), windows_plain(7, epochs, example_ids, heights, widths)
    )


def test_windows_never_change() -> None:
    drawn = windows(0, np.zeros(4, np.int64), np.arange(4), np.full(4, 375), np.full(4, 500))
    assert drawn.tolist() == FROZEN


@given(st.integers(0, 2**32 - 1))
@example(0)
@example(2**32 - 1)
def test_the_aspect_is_log_uniform(word: int) -> None:
    # 32 factors, each within 2^-52, and 32 products, each within 2^-53, keep the relative error below 1.1e-14.
    expected = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * (word / 2**32))
    assert crops.aspect_plain(word) == pytest.approx(expected, rel=1.2e-14, abs=0)


def largest_gap(a: Array[Any, Any], b: Array[Any, Any]) -> float:
    """The two-sample Kolmogorov-Smirnov statistic."""
    points = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), points, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), points, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (100, 290)])
def test_windows_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    # Kolmogorov-Smirnov at 1e-5 each: 12 comparisons raise a false alarm for at most 1.2e-4 of all seeds (ties make
    # it rarer still). An aspect that is uniform instead of log-uniform has a gap of 0.07, twice the bound.
    n = 10_000
    torch.manual_seed(1)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, *TRAINING) for _ in range(n)])
    ours = windows(1, np.arange(n) % 3, np.arange(n), np.full(n, height), np.full(n, width))
    bound = math.sqrt(-math.log(1e-5 / 2) / n)

    def measures(drawn: Array[Any, Any]) -> dict[str, Array[Any, Any]]:
        top, left, h, w = drawn.T
        room_y, room_x = height - h, width - w
        return {
            "area": h * w / (height * width),
            "aspect": w / h,
            "top": (top + 0.5) / (room_y + 1),
            "left": (left + 0.5) / (room_x + 1),
        }

    expected = measures(theirs)
    for name, values in measures(ours).items():
        assert largest_gap(values, expected[name]) < bound, name


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 5000), (5000, 1), (9, 1001), (1001, 9), (2, 1000), (1000, 2)]
)
def test_where_no_window_fits_the_centre_is_cropped_as_in_torchvision(height: int, width: int) -> None:
    torch.manual_seed(0)
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), *TRAINING)
    drawn = windows(0, np.zeros(50, np.int64), np.arange(50), np.full(50, height), np.full(50, width))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(expected)}


def test_an_image_without_pixels_is_refused() -> None:
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        windows(0, one, one, one, one - 1)


@given(SEED, ROWS, st.integers(0, 127))
@example(0, [(0, 2**32 + 5)], 127)
def test_shifts_are_their_plain_twin_and_in_range(seed: int, rows: list[tuple[int, int]], shift_px: int) -> None:
    epochs, example_ids = columns(rows, 2)
    drawn = shifts(seed, epochs, example_ids, shift_px)
    np.testing.assert_array_equal(drawn, shifts_plain(seed, epochs, example_ids, shift_px))
    assert drawn.dtype == np.int8
    assert (np.abs(drawn.astype(int)) <= shift_px).all()


@given(SEED, ROWS)
def test_flips_are_their_plain_twin(seed: int, rows: list[tuple[int, int]]) -> None:
    epochs, example_ids = columns(rows, 2)
    drawn = flips(seed, epochs, example_ids)
    np.testing.assert_array_equal(drawn, flips_plain(seed, epochs, example_ids))
    assert drawn.dtype == np.bool_


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    # 5 × 5 shifts × 2 flips: chi-square with 49 degrees of freedom, above 99.7 for 2.5e-5 of all seeds.
    epochs, example_ids = np.repeat([0, 1], 25_000), np.tile(np.arange(25_000), 2)
    dy, dx = shifts(3, epochs, example_ids, 2).astype(np.int64).T
    cells = np.bincount(((dy + 2) * 5 + dx + 2) * 2 + flips(3, epochs, example_ids), minlength=50)
    assert ((cells - 1000) ** 2 / 1000).sum() < 99.7


def test_every_epoch_draws_anew() -> None:
    ids = np.arange(1000)
    sides = np.full(1000, 200)
    first, second = np.zeros(1000, np.int64), np.ones(1000, np.int64)
    assert (windows(0, first, ids, sides, sides) != windows(0, second, ids, sides, sides)).any(axis=1).mean() > 0.99
    assert 0.4 < (flips(0, first, ids) != flips(0, second, ids)).mean() < 0.6  # 6 standard deviations


@pytest.mark.parametrize("shift_px", [-1, 128])
def test_a_shift_that_int8_cannot_hold_is_refused(shift_px: int) -> None:
    with pytest.raises(ValueError, match=r"\[0, 127\]"):
        shifts(0, np.zeros(1, np.int64), np.zeros(1, np.int64), shift_px)
