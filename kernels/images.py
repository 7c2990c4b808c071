"""Batches out of a uint8 image set that is held in memory: gather, shift, flip and normalise in one pass."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64, UInt8
from numpy import ndarray as Array

from kernels.jit import jit, parallel, prange


@cache
def normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[Array, "c 256"]:
    """Return (x / 255 − mean) / std for each channel and pixel value x, computed in float64, rounded once.

    Args:
        mean: Mean of each channel, in [0, 1] units.
        std: Standard deviation of each channel, in [0, 1] units, above 0.
    """
    pixels = np.arange(256, dtype=np.float64) / 255
    values = (pixels - np.array(mean, dtype=np.float64)[:, None]) / np.array(std, dtype=np.float64)[:, None]
    table = values.astype(np.float32)
    table.setflags(write=False)  # one array is shared by all callers
    return table


@jit
def _all_below(ids: Int64[Array, " b"], count: int) -> bool:
    """Say whether all ids lie in [0, count)."""
    inside = True
    for i in range(ids.shape[0]):
        inside &= 0 <= ids[i] < count
    return inside


@parallel
def _gather_shift(
    images: UInt8[Array, "n h w c"],
    image_ids: Int64[Array, " b"],
    shifts: Int8[Array, "b 2"],
    flips: Bool[Array, " b"],
    table: Float32[Array, "c 256"],
    out: Float32[Array, "b c h w"],
) -> None:
    """Fill `out`, threads sharing the images: each output row is padding, a run of table look-ups, padding.

    The padding is written by loops, since slice assignments made it 1.2 times slower (28 × 28 × 1, one thread).
    """
    height, width, channels = images.shape[1:]
    for i in prange(image_ids.shape[0]):
        image = images[image_ids[i]]
        dy = np.int64(shifts[i, 0])
        dx = np.int64(shifts[i, 1])
        first = min(max(-dx, 0), width)  # columns [first, last) of the shifted image show the original
        last = max(first, min(width - dx, width))
        run_px = last - first
        left = width - last if flips[i] else first
        for channel in range(channels):
            values = table[channel]
            zero = values[0]
            for y in range(height):
                target = out[i, channel, y]
                if not 0 <= y + dy < height:
                    for x in range(width):
                        target[x] = zero
                    continue
                for x in range(left):
                    target[x] = zero
                for x in range(left + run_px, width):
                    target[x] = zero
                source = image[y + dy, first + dx : last + dx, channel]
                run = target[left : left + run_px]
                if flips[i]:
                    for x in range(run_px):
                        run[run_px - 1 - x] = values[source[x]]
                else:
                    for x in range(run_px):
                        run[x] = values[source[x]]


def gather_shift(
    images: UInt8[Array, "n h w c"],
    image_ids: Int64[Array, " b"],
    shifts: Int8[Array, "b 2"],
    flips: Bool[Array, " b"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Float32[Array, "b c h w"],
) -> None:
    """Gather images, shift them by (dy, dx), flip them and normalise them into `out`.

    Row y, column x of the shifted image is row y + dy, column x + dx of the original, and 0 (before normalising)
    outside of it: torchvision's pad by p, then crop at (p + dy, p + dx). The flip comes after the shift.

    Args:
        images: The whole set, contiguous.
        image_ids: Rows of `images` to gather, in [0, n).
        shifts: (dy, dx) in pixels; any size.
        flips: Whether to mirror the columns.
        mean: Mean of each channel, in [0, 1] units.
        std: Standard deviation of each channel, in [0, 1] units, above 0.
        out: Where the batch is written.

    Raises:
        ValueError: If the shapes do not fit each other.
        IndexError: If an image id lies outside [0, n).
    """
    num_images, height, width, channels = images.shape
    batch = len(image_ids)
    if out.shape != (batch, channels, height, width) or shifts.shape != (batch, 2) or flips.shape != (batch,):
        raise ValueError(
            f"out {out.shape}, shifts {shifts.shape}, flips {flips.shape} do not fit {batch} images of "
            f"{(height, width, channels)}; they must be (b, c, h, w), (b, 2), (b,)"
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"{len(mean)} means and {len(std)} stds for {channels} channels; give one per channel")
    if not _all_below(image_ids, num_images):
        raise IndexError(f"image ids from {image_ids.min()} to {image_ids.max()}; they must be in [0, {num_images})")
    _gather_shift(images, image_ids, shifts, flips, normalised_values(mean, std), out)


def gather_shift_plain(
    images: UInt8[Array, "n h w c"],
    image_ids: Int64[Array, " b"],
    shifts: Int8[Array, "b 2"],
    flips: Bool[Array, " b"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Float32[Array, "b c h w"],
) -> None:
    """Do the same in NumPy, one image after the other: the twin of `gather_shift`."""
    height, width = images.shape[1:3]
    table = normalised_values(mean, std)
    for i, image_id in enumerate(image_ids):
        dy, dx = (int(shift) for shift in shifts[i])
        py, px = abs(dy), abs(dx)
        padded = np.pad(images[image_id], ((py, py), (px, px), (0, 0)))
        crop = padded[py + dy : py + dy + height, px + dx : px + dx + width]
        if flips[i]:
            crop = crop[:, ::-1]
        for channel in range(images.shape[3]):
            out[i, channel] = table[channel][crop[:, :, channel]]
