"""Random windows, shifts and flips of images: which pixels an example shows in an epoch.

Each is a pure function of (seed, epoch, example_id). Everything here is integers and × ÷ √ on float64, which
IEEE 754 rounds the same way everywhere. Sums are of integers only, so no compiler can contract one into a fused
multiply-add: every machine gets the same windows, bit for bit.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64, UInt32, UInt64
from numpy import ndarray as Array

from kernels.jit import inline, jit
from kernels.philox import FLIP, SHIFT, WINDOW, philox, philox_plain

TRIES: Final = 10
MIN_ASPECT: Final = 3 / 4  # width / height
MAX_ASPECT: Final = 4 / 3

# A window covers (8 + 92 u) / 100 of its image, u = word / 2^32: torchvision's scale (0.08, 1), in integers.
_AREA_START: Final = 8 << 32
_AREA_STEP: Final = 92
_AREA_UNIT: Final = float(100 << 32)
_LOW: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)


def _aspect_factors() -> Float64[Array, "32 2"]:
    """Return [1, (16/9)^(2^-i)] for i in 1..32: the factors of `_aspect`, by repeated square roots."""
    factors = np.ones((32, 2))
    factor = MAX_ASPECT / MIN_ASPECT
    for i in range(32):
        factor = math.sqrt(factor)
        factors[i, 1] = factor
    return factors


ASPECT_FACTORS: Final = _aspect_factors()


@inline
def _aspect(word: np.uint32) -> float:
    """Return the log-uniform aspect 3/4 · (16/9)^u, u = word / 2^32: one factor for each set bit of the word.

    Its relative error is below 1e-14 (at most 32 factors and 32 products, each within a few 2^-53).
    """
    aspect = MIN_ASPECT
    for i in range(32):
        aspect *= ASPECT_FACTORS[i, (word >> np.uint32(31 - i)) & np.uint32(1)]
    return aspect


@inline
def _below(word: np.uint32, count: int) -> int:
    """Return an integer in [0, count), each with a probability within 2^-32 of 1 / count."""
    return np.int64((np.uint64(word) * np.uint64(count)) >> _32)  # type: ignore[return-value]


@jit
def _fill_windows(
    seed: np.uint64,
    epochs: UInt32[Array, " b"],
    example_ids: UInt64[Array, " b"],
    heights: Int64[Array, " b"],
    widths: Int64[Array, " b"],
    out: Int32[Array, "b 4"],
) -> None:
    """Write the window of each example; serial, since a window costs a thousandth of a JPEG's decoding."""
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in range(example_ids.shape[0]):
        a0 = np.uint32(example_ids[i] & _LOW)
        a1 = np.uint32(example_ids[i] >> _32)
        height = heights[i]
        width = widths[i]
        found = False
        for draw in range(TRIES):
            words = philox(a0, a1, epochs[i], np.uint32(WINDOW | draw << 8), k0, k1)
            share = np.int64(_AREA_START) + np.int64(_AREA_STEP) * np.int64(words[0])
            area = np.float64(height * width) * np.float64(share) / _AREA_UNIT
            aspect = _aspect(words[1])
            w = np.int64(round(math.sqrt(area * aspect)))
            h = np.int64(round(math.sqrt(area / aspect)))
            if 0 < w <= width and 0 < h <= height:
                out[i, 0] = _below(words[2], height - h + 1)
                out[i, 1] = _below(words[3], width - w + 1)
                found = True
                break
        if not found:
            h, w = height, width
            if width / height < MIN_ASPECT:
                h = np.int64(round(width / MIN_ASPECT))
            elif width / height > MAX_ASPECT:
                w = np.int64(round(height * MAX_ASPECT))
            out[i, 0] = (height - h) // 2
            out[i, 1] = (width - w) // 2
        out[i, 2] = h
        out[i, 3] = w


def windows(
    seed: int,
    epochs: Int64[Array, " b"],
    example_ids: Int64[Array, " b"],
    heights: Int64[Array, " b"],
    widths: Int64[Array, " b"],
) -> Int32[Array, "b 4"]:
    """Draw the random-resized-crop window (top, left, height, width) of each example.

    Ten tries at a window of uniform area and log-uniform aspect; where none fits, the largest central window whose
    aspect is allowed. Try t is draw t of (seed, WINDOW, example_id, epoch): word 0 is the area, 1 the aspect, 2 the
    top, 3 the left.

    Args:
        seed: 64-bit key.
        epochs: In [0, 2^32), one per example: a batch may straddle two epochs.
        example_ids: Example ids, 64 bits.
        heights: Image heights in pixels, at least 1.
        widths: Image widths in pixels, at least 1.

    Raises:
        ValueError: If an image has no pixels.

    Source: torchvision, `RandomResizedCrop.get_params` with scale (0.08, 1) and ratio (3/4, 4/3).
    Deviates: uniforms have 32 bits instead of float32's 24; a position in [0, m) has a probability within 2^-32 of
    1 / m.
    """
    if (np.less(heights, 1) | np.less(widths, 1)).any():
        raise ValueError("an image of height or width 0 has no window; both must be at least 1 pixel")
    out = np.empty((len(example_ids), 4), dtype=np.int32)
    _fill_windows(
        np.uint64(seed),
        np.ascontiguousarray(epochs, dtype=np.uint32),
        np.ascontiguousarray(example_ids, dtype=np.uint64),
        np.ascontiguousarray(heights, dtype=np.int64),
        np.ascontiguousarray(widths, dtype=np.int64),
        out,
    )
    return out


@jit
def _fill_shifts(
    seed: np.uint64,
    epochs: UInt32[Array, " b"],
    example_ids: UInt64[Array, " b"],
    shift_px: int,
    out: Int8[Array, "b 2"],
) -> None:
    """Write (dy, dx) of each example."""
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in range(example_ids.shape[0]):
        a0 = np.uint32(example_ids[i] & _LOW)
        a1 = np.uint32(example_ids[i] >> _32)
        words = philox(a0, a1, epochs[i], np.uint32(SHIFT), k0, k1)
        out[i, 0] = _below(words[0], 2 * shift_px + 1) - shift_px
        out[i, 1] = _below(words[1], 2 * shift_px + 1) - shift_px


def shifts(seed: int, epochs: Int64[Array, " b"], example_ids: Int64[Array, " b"], shift_px: int) -> Int8[Array, "b 2"]:
    """Draw the shift (dy, dx) of each example, both uniform in [-shift_px, shift_px].

    Args:
        seed: 64-bit key.
        epochs: In [0, 2^32), one per example.
        example_ids: Example ids, 64 bits.
        shift_px: Largest shift in pixels, in [0, 127].

    Raises:
        ValueError: If `shift_px` lies outside [0, 127].
    """
    if not 0 <= shift_px <= 127:
        raise ValueError(f"shift_px = {shift_px}; it must be in [0, 127]")
    out = np.empty((len(example_ids), 2), dtype=np.int8)
    _fill_shifts(
        np.uint64(seed),
        np.ascontiguousarray(epochs, dtype=np.uint32),
        np.ascontiguousarray(example_ids, dtype=np.uint64),
        shift_px,
        out,
    )
    return out


@jit
def _fill_flips(
    seed: np.uint64, epochs: UInt32[Array, " b"], example_ids: UInt64[Array, " b"], out: Bool[Array, " b"]
) -> None:
    """Write whether each example is flipped."""
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in range(example_ids.shape[0]):
        a0 = np.uint32(example_ids[i] & _LOW)
        a1 = np.uint32(example_ids[i] >> _32)
        words = philox(a0, a1, epochs[i], np.uint32(FLIP), k0, k1)
        out[i] = words[0] >= np.uint32(1 << 31)


def flips(seed: int, epochs: Int64[Array, " b"], example_ids: Int64[Array, " b"]) -> Bool[Array, " b"]:
    """Draw for each example whether it is flipped horizontally, with probability 1/2.

    Args:
        seed: 64-bit key.
        epochs: In [0, 2^32), one per example.
        example_ids: Example ids, 64 bits.
    """
    out = np.empty(len(example_ids), dtype=np.bool_)
    _fill_flips(
        np.uint64(seed),
        np.ascontiguousarray(epochs, dtype=np.uint32),
        np.ascontiguousarray(example_ids, dtype=np.uint64),
        out,
    )
    return out


def _words(seed: int, epoch: int, example_id: int, domain: int, draw: int = 0) -> tuple[int, int, int, int]:
    counter = (example_id & 0xFFFFFFFF, example_id >> 32, epoch, domain | draw << 8)
    return philox_plain(counter, (seed & 0xFFFFFFFF, seed >> 32))


def aspect_plain(word: int) -> float:
    """Return the aspect that a word stands for, in plain Python: the twin of `_aspect`."""
    aspect, factor = MIN_ASPECT, MAX_ASPECT / MIN_ASPECT
    for i in range(32):
        factor = math.sqrt(factor)
        if word >> (31 - i) & 1:
            aspect *= factor
    return aspect


def window_plain(seed: int, epoch: int, example_id: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw one window in plain Python."""
    for draw in range(TRIES):
        words = _words(seed, epoch, example_id, WINDOW, draw)
        area = float(height * width) * float(_AREA_START + _AREA_STEP * words[0]) / _AREA_UNIT
        aspect = aspect_plain(words[1])
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return words[2] * (height - h + 1) >> 32, words[3] * (width - w + 1) >> 32, h, w
    h, w = height, width
    if width / height < MIN_ASPECT:
        h = round(width / MIN_ASPECT)
    elif width / height > MAX_ASPECT:
        w = round(height * MAX_ASPECT)
    return (height - h) // 2, (width - w) // 2, h, w


def windows_plain(
    seed: int,
    epochs: Int64[Array, " b"],
    example_ids: Int64[Array, " b"],
    heights: Int64[Array, " b"],
    widths: Int64[Array, " b"],
) -> Int32[Array, "b 4"]:
    """Draw the windows in plain Python: the twin of `windows`."""
    rows = zip(epochs.tolist(), example_ids.tolist(), heights.tolist(), widths.tolist(), strict=True)
    return np.array([window_plain(seed, *row) for row in rows], dtype=np.int32).reshape(-1, 4)


def shifts_plain(
    seed: int, epochs: Int64[Array, " b"], example_ids: Int64[Array, " b"], shift_px: int
) -> Int8[Array, "b 2"]:
    """Draw the shifts in plain Python: the twin of `shifts`."""
    blocks = [_words(seed, e, i, SHIFT) for e, i in zip(epochs.tolist(), example_ids.tolist(), strict=True)]
    count = 2 * shift_px + 1
    drawn = [[(word * count >> 32) - shift_px for word in block[:2]] for block in blocks]
    return np.array(drawn, dtype=np.int8).reshape(-1, 2)


def flips_plain(seed: int, epochs: Int64[Array, " b"], example_ids: Int64[Array, " b"]) -> Bool[Array, " b"]:
    """Draw the flips in plain Python: the twin of `flips`."""
    blocks = [_words(seed, e, i, FLIP) for e, i in zip(epochs.tolist(), example_ids.tolist(), strict=True)]
    return np.array([block[0] >> 31 == 1 for block in blocks], dtype=np.bool_)
