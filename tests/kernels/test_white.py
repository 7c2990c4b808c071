import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray as Array
from scipy.stats import chisquare, norm

from kernels.jit import num_threads
from kernels.white import normal_cdf, white_images, white_plain, white_values

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
DIGITS = ((0.1307,), (0.3081,))  # cut at 0, where a third of the mass lies
FALSE_ALARM = 1e-6  # of each statistical test here; seeds are fixed, so a test that passes goes on passing
LIMIT = norm.isf(FALSE_ALARM / 2)  # standard errors


@settings(max_examples=20)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**62),
    st.sampled_from([(1, 1, 1), (3, 3, 1), (5, 7, 3), (28, 28, 1), (27, 26, 3)]),  # the last one takes two tiles
)
def test_an_image_equals_its_twin(seed: int, example_id: int, shape: tuple[int, int, int]) -> None:
    statistics = {"mean": MEAN[: shape[2]], "std": STD[: shape[2]]}
    found = white_images(seed, np.array([example_id]), shape, **statistics)[0]
    np.testing.assert_array_equal(found, white_plain(seed, example_id, shape, **statistics))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_does_not_depend_on_its_batch_or_on_threads(threads: int) -> None:
    ids = np.arange(2**40, 2**40 + 100)
    alone = np.concatenate([white_images(3, ids[i : i + 1], (5, 5, 3), mean=MEAN, std=STD) for i in range(100)])
    shuffled = np.random.default_rng(0).permutation(100)
    with num_threads(threads):
        batch = white_images(3, ids[shuffled], (5, 5, 3), mean=MEAN, std=STD)
    np.testing.assert_array_equal(batch, alone[shuffled])


def test_every_machine_makes_these_pixels() -> None:
    assert zlib.crc32(white_values(MEAN, STD).tobytes()) == 3093010636
    assert zlib.crc32(white_images(1, np.arange(9), (32, 32, 3), mean=MEAN, std=STD).tobytes()) == 3495395650


def test_the_normal_distribution_is_exact_to_ten_digits() -> None:
    z = np.linspace(-5, 5, 20_001)
    np.testing.assert_allclose([normal_cdf(float(x)) for x in z], norm.cdf(z), rtol=0, atol=1e-10)
    assert normal_cdf(-5.01) == 0
    assert normal_cdf(5.01) == 1


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), DIGITS, ((0.0,), (1 / 255,)), ((1.0,), (0.5,))])
def test_a_table_holds_the_mass_of_each_pixel_value(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    table = white_values(mean, std)
    assert (np.diff(table.astype(int)) >= 0).all()
    for channel in range(len(mean)):
        below = norm.cdf((np.arange(255) + 0.5) / 255, mean[channel], std[channel])
        found = np.cumsum(np.bincount(table[channel], minlength=256))[:255] / 2**16
        np.testing.assert_allclose(found, below, rtol=0, atol=0.51 * 2**-16)  # thresholds are rounded to 2^-16


def pixels(mean: tuple[float, ...], std: tuple[float, ...], seed: int = 5) -> Array:
    """Return a million or more pixel values, one row a channel."""
    images = white_images(seed, np.arange(1_300), (28, 28, len(mean)), mean=mean, std=std)
    return images.reshape(-1, len(mean)).T


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), DIGITS])
def test_pixels_follow_the_table(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for values, table in zip(pixels(mean, std), white_values(mean, std), strict=True):
        found, expected = np.bincount(values, minlength=256), np.bincount(table, minlength=256) * len(values) / 2**16
        usual = expected > 0
        assert not found[~usual].any()
        assert chisquare(found[usual], expected[usual]).pvalue > FALSE_ALARM


def test_mean_and_standard_deviation_are_those_that_are_asked_for() -> None:
    mean, std = (0.5, 0.45), (0.1, 0.08)  # 0 and 255 lie five standard deviations away: nothing is cut
    for values, centre, width in zip(pixels(mean, std), mean, std, strict=True):
        values = values / 255
        assert abs(values.mean() - centre) < LIMIT * width / len(values) ** 0.5
        assert (
            abs(values.var() / width**2 - 1) < LIMIT * (2 / len(values)) ** 0.5 + 1e-3
        )  # rounding adds 1/12 of 1/255²


def test_neighbours_channels_examples_and_seeds_are_independent() -> None:
    same = {"mean": (0.5,) * 3, "std": (0.2,) * 3}  # channels that differ would correlate over the whole image
    images, other = (white_images(seed, np.arange(3_000), (8, 8, 3), **same) for seed in (5, 6))
    pairs = [
        (images[:, :, :-1], images[:, :, 1:]),
        (images[:, :-1], images[:, 1:]),
        (images[..., :1], images[..., 1:2]),
        (images[:-1], images[1:]),
        (images, other),
    ]
    for a, b in pairs:  # the correlation of m independent pairs has a standard error of 1/√m
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < LIMIT / a.size**0.5


def test_one_mean_and_std_a_channel_are_needed() -> None:
    with pytest.raises(ValueError, match="1 means and 3 stds for 3 channels"):
        white_images(0, np.arange(2), (2, 2, 3), mean=(0.5,), std=STD)
