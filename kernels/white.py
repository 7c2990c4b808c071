"""White-noise images: every pixel value is drawn alone, from a normal distribution a channel that is cut to 0 to 255.

A value is a pure function of (seed, example_id, place in the image). One Philox block gives eight values, one per
half-word: value v of an image (in h w c order) is half-word v & 7 of block v >> 3, sent through its channel's table of
the inverse distribution. The table is made of integers and + − × ÷ on float64 by Python itself, which no compiler
contracts and no library of functions rounds in its own way: every machine gets the same pixels.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray as Array

from kernels.jit import jit, parallel, prange
from kernels.philox import WHITE, philox, philox_plain

_WHITE: Final = np.uint32(WHITE)
_LOW: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)
_LEVELS: Final = 1 << 16  # a half-word
_TILE: Final = 256  # blocks whose words are made before their values are looked up: the first loop vectorises
_ROOT: Final = 0.3989422804014327  # 1/√(2π)
_BEYOND: Final = 5.0  # Φ(5) = 1 − 2.9e-7, which 16 bits round to 1


def normal_cdf(z: float) -> float:
    """Return Φ(z) as 1/2 + (z − z³/(2·3) + z⁵/(2²·2!·5) − …)/√(2π), and 0 or 1 beyond ±5.

    The error is below 1e-10 between: terms grow to 1e4 before they shrink, and float64 has 16 digits.
    """
    if abs(z) > _BEYOND:
        return float(z > 0)
    power, total, k = z, z, 0
    while abs(power) > 1e-12:
        k += 1
        power *= -z * z / (2 * k)
        total += power / (2 * k + 1)
    return 0.5 + _ROOT * total


@cache
def white_values(mean: tuple[float, ...], std: tuple[float, ...]) -> UInt8[Array, "c 65536"]:
    """Return the pixel value that each half-word stands for, per channel: ascending, so that the table is F⁻¹.

    Value x has the mass of [x − 1/2, x + 1/2] under the normal distribution, in units of 2^-16; 0 and 255 have that of
    all below and above as well.

    Args:
        mean: Mean of each channel, in [0, 1] units.
        std: Standard deviation of each channel, in [0, 1] units, above 0.
    """
    table = np.empty((len(mean), _LEVELS), dtype=np.uint8)
    for channel, (centre, width) in enumerate(zip(mean, std, strict=True)):
        below = [round(_LEVELS * normal_cdf((x + 0.5 - 255 * centre) / (255 * width))) for x in range(255)]
        table[channel] = np.repeat(np.arange(256, dtype=np.uint8), np.diff([0, *below, _LEVELS]))
    table.setflags(write=False)  # one array is shared by all callers
    return table


@jit
def _fill_words(a0: np.uint32, a1: np.uint32, first: int, k0: np.uint32, k1: np.uint32, words: Array) -> None:
    """Draw a tile of blocks; a loop of its own, since it vectorises only where nothing else happens."""
    for j in range(words.shape[1]):
        w0, w1, w2, w3 = philox(a0, a1, np.uint32(first + j), _WHITE, k0, k1)
        words[0, j] = w0
        words[1, j] = w1
        words[2, j] = w2
        words[3, j] = w3


@parallel
def _white(seed: np.uint64, example_ids: Int64[Array, " b"], table: UInt8[Array, "c 65536"], out: Array) -> None:
    """Fill the rows of out [b, h·w·c], threads sharing the images."""
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    channels, num_values = table.shape[0], out.shape[1]
    for i in prange(out.shape[0]):
        example_id = np.uint64(example_ids[i])
        words = np.empty((4, _TILE), dtype=np.uint32)
        channel = 0
        for first in range(0, num_values, 8 * _TILE):
            size = min(8 * _TILE, num_values - first)
            blocks = words[:, : (size + 7) >> 3]
            _fill_words(np.uint32(example_id & _LOW), np.uint32(example_id >> _32), first >> 3, k0, k1, blocks)
            for v in range(size):
                word = blocks[(v >> 1) & 3, v >> 3]
                half = np.uint32(word >> np.uint32(16 * (v & 1))) & np.uint32(0xFFFF)
                out[i, first + v] = table[channel, half]
                channel = channel + 1 if channel + 1 < channels else 0


def white_images(
    seed: int,
    example_ids: Int64[Array, " b"],
    shape: tuple[int, int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> UInt8[Array, "b h w c"]:
    """Draw the white-noise image of each example.

    Args:
        seed: 64-bit key, the noise seed.
        example_ids: Example ids, 64 bits.
        shape: (h, w, c).
        mean: Mean of each channel before values are cut to 0 to 255, in [0, 1] units.
        std: Standard deviation likewise, above 0.

    Raises:
        ValueError: If there is not one mean and std a channel.
    """
    height, width, channels = shape
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"{len(mean)} means and {len(std)} stds for {channels} channels; give one per channel")
    out = np.empty((len(example_ids), height * width * channels), dtype=np.uint8)
    _white(np.uint64(seed), np.ascontiguousarray(example_ids), white_values(mean, std), out)
    return out.reshape(-1, *shape)


def white_plain(
    seed: int, example_id: int, shape: tuple[int, int, int], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> UInt8[Array, "h w c"]:
    """Draw one image in plain Python integers: the twin of `white_images`."""
    height, width, channels = shape
    table, values = white_values(mean, std), []
    for v in range(height * width * channels):
        counter = (example_id & 0xFFFFFFFF, example_id >> 32, v >> 3, WHITE)
        words = philox_plain(counter, (seed & 0xFFFFFFFF, seed >> 32))
        values.append(table[v % channels, words[(v & 7) >> 1] >> 16 * (v & 1) & 0xFFFF])
    return np.array(values, dtype=np.uint8).reshape(shape)
