"""Windows of images of any size, resampled to one size, flipped and normalised, in one pass over the pixels.

The filter is torchvision's and Pillow's: bilinear, and antialiased where a window is larger than the output (a triangle
as wide as the reduction). Sums are in float32 and are not rounded to 8 bits in between, as those do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8, UInt64
from numpy import ndarray as Array

from kernels.jit import array_at, jit, parallel, prange


@jit
def _taps(
    start: float,
    scale: float,
    low: int,
    high: int,
    antialias: bool,
    firsts: Int64[Array, " s"],
    weights: Float32[Array, "s t"],
) -> int:
    """Write which pixels of [low, high) each output pixel is made of, and with which weights; return the most of them.

    Output pixel i lies at start + (i + 0.5) * scale, in px.
    """
    reach = max(scale, 1.0) if antialias else 1.0
    most = 0
    for i in range(firsts.shape[0]):
        centre = start + (i + 0.5) * scale
        first = min(max(math.floor(centre - reach + 0.5), low), high - 1)
        last = max(min(math.floor(centre + reach + 0.5), high), first + 1)
        total = 0.0
        for k in range(last - first):
            weight = max(1.0 - abs(first + k + 0.5 - centre) / reach, 0.0)
            weights[i, k] = weight
            total += weight
        if total == 0.0:
            weights[i, 0] = 1.0
            total = 1.0
        for k in range(last - first):
            weights[i, k] /= total
        for k in range(last - first, weights.shape[1]):
            weights[i, k] = 0.0
        firsts[i] = first
        most = max(most, last - first)
    return most


@jit
def _resize_one(
    address: int,
    height: int,
    width: int,
    box: Float64[Array, " 4"],
    bound: Int32[Array, " 4"],
    flip: bool,
    antialias: bool,
    num_taps: int,
    factors: Float32[Array, " 3"],
    offsets: Float32[Array, " 3"],
    out: Float32[Array, "s s 3"],
) -> None:
    # Unsigned numbers in the innermost loops: numba checks every signed one for counting from the end, which made the
    # kernel 1.5 times as slow.
    size = out.shape[0]
    one, two = np.uint64(1), np.uint64(2)
    image = array_at(address, (height, width * 3))
    tops, lefts = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    rows = np.empty((size, num_taps), dtype=np.float32)
    columns = np.empty((size, num_taps), dtype=np.float32)
    _taps(box[0], box[2], bound[0], bound[1], antialias, tops, rows)
    most = _taps(box[1], box[3], bound[2], bound[3], antialias, lefts, columns)
    first = lefts[0] * 3  # only these columns of a row are ever needed
    length = min(lefts[size - 1] + most, width) * 3 - first
    row = np.zeros((length + 3 * most), dtype=np.float32)  # weights past the end are 0
    starts = (lefts * 3 - first).astype(np.uint64)
    for y in range(size):
        source = image[tops[y], first : first + length]
        weight = rows[y, 0]
        for j in range(length):
            row[j] = weight * np.float32(source[j])
        for k in range(1, num_taps):
            weight = rows[y, k]
            if weight == 0:
                break
            source = image[tops[y] + k, first : first + length]
            for j in range(length):
                row[j] += weight * np.float32(source[j])
        target = out[y]
        for x in range(np.uint64(size)):
            at = starts[x]
            red = green = blue = np.float32(0)
            for k in range(np.uint64(most)):
                weight = columns[x, k]
                red += weight * row[at]
                green += weight * row[at + one]
                blue += weight * row[at + two]
                at += np.uint64(3)
            place = np.uint64(size) - one - x if flip else x
            target[place, 0] = red * factors[0] + offsets[0]
            target[place, 1] = green * factors[1] + offsets[1]
            target[place, 2] = blue * factors[2] + offsets[2]


@parallel
def _resize(
    addresses: UInt64[Array, " b"],
    shapes: Int64[Array, "b 2"],
    boxes: Float64[Array, "b 4"],
    bounds: Int32[Array, "b 4"],
    flips: Bool[Array, " b"],
    antialias: bool,
    num_taps: int,
    factors: Float32[Array, " 3"],
    offsets: Float32[Array, " 3"],
    out: Float32[Array, "b s s 3"],
) -> None:
    for i in prange(out.shape[0]):
        _resize_one(
            addresses[i],
            shapes[i, 0],
            shapes[i, 1],
            boxes[i],
            bounds[i],
            flips[i],
            antialias,
            num_taps,
            factors,
            offsets,
            out[i],
        )


def resize_windows(
    images: Sequence[UInt8[Array, "_h _w 3"]],
    boxes: Float64[Array, "b 4"],
    bounds: Int32[Array, "b 4"],
    flips: Bool[Array, " b"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Float32[Array, "b s s 3"],
    *,
    antialias: bool = True,
) -> None:
    """Resample a window of each image to s × s px, flip it and normalise it into `out`.

    Args:
        images: b images, contiguous.
        boxes: (top, left, vertical scale, horizontal scale): output pixel (y, x) lies at
            (top + (y + 0.5) * vertical scale, left + (x + 0.5) * horizontal scale), in px of the image.
        bounds: (first row, end row, first column, end column): pixels outside are never looked at.
        flips: Whether to mirror the columns.
        mean: Of each channel, in [0, 1] units.
        std: Likewise, above 0.
        out: Written.
        antialias: Widen the filter where the image is reduced.

    Raises:
        ValueError: If shapes do not fit each other, an image is not contiguous uint8 RGB, a bound lies outside of its
            image, or a scale is not above 0.
    """
    _check(boxes, bounds, flips, out, len(images))
    for image, bound in zip(images, bounds.tolist(), strict=True):
        _check_image(image, bound)
    if len(images):
        _resize(
            np.array([image.ctypes.data for image in images], dtype=np.uint64),
            np.array([image.shape[:2] for image in images], dtype=np.int64),
            boxes,
            bounds,
            flips,
            antialias,
            *_arguments(boxes, mean, std, antialias=antialias),
            out,
        )


def window_resizer(
    boxes: Float64[Array, "b 4"],
    bounds: Int32[Array, "b 4"],
    flips: Bool[Array, " b"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Float32[Array, "b s s 3"],
    *,
    antialias: bool = True,
) -> Callable[[int, UInt8[Array, "_h _w 3"]], None]:
    """Return a function (row, image) that does for one row what `resize_windows` does for all, in the calling thread.

    Raises:
        ValueError: Likewise.
    """
    _check(boxes, bounds, flips, out, len(out))
    if not len(out):
        return lambda row, image: None
    common = _arguments(boxes, mean, std, antialias=antialias)

    def resize(row: int, image: UInt8[Array, "_h _w 3"]) -> None:
        _check_image(image, bounds[row].tolist())
        height, width = image.shape[:2]
        address: int = image.ctypes.data
        _resize_one(address, height, width, boxes[row], bounds[row], flips[row], antialias, *common, out[row])

    return resize


def _check(
    boxes: Float64[Array, "_ 4"],
    bounds: Int32[Array, "_ 4"],
    flips: Bool[Array, " _"],
    out: Float32[Array, "_ _s _t 3"],
    batch: int,
) -> None:
    if out.shape != (batch, out.shape[1], out.shape[1], 3) or out.dtype != np.float32:
        raise ValueError(
            f"an output of shape {out.shape}, {out.dtype}, for {batch} images; float32 [b, s, s, 3] is needed"
        )
    if boxes.shape != (batch, 4) or bounds.shape != (batch, 4) or flips.shape != (batch,):
        raise ValueError(f"shapes {boxes.shape}, {bounds.shape}, {flips.shape} do not fit {batch} images")
    if not (boxes[:, 2:] > 0).all():
        raise ValueError("a scale must be above 0")


def _check_image(image: UInt8[Array, "_h _w 3"], bound: list[int]) -> None:
    top, bottom, left, right = bound
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.flags.c_contiguous:
        raise ValueError(f"an image of shape {image.shape}, {image.dtype}; contiguous uint8 [h, w, 3] is needed")
    if not (0 <= top < bottom <= image.shape[0] and 0 <= left < right <= image.shape[1]):
        raise ValueError(f"bounds {(top, bottom, left, right)} outside of an image of {image.shape[:2]}")


def _arguments(
    boxes: Float64[Array, "b 4"], mean: tuple[float, ...], std: tuple[float, ...], *, antialias: bool
) -> tuple[int, Float32[Array, " 3"], Float32[Array, " 3"]]:
    """Return the most taps that a filter can have, and what turns a sum of weighted pixels into an output."""
    reach = max(float(boxes[:, 2:].max()), 1.0) if antialias else 1.0
    factors = 1 / (255 * np.array(std, dtype=np.float64))
    offsets = -np.array(mean, dtype=np.float64) / np.array(std, dtype=np.float64)
    return int(2 * reach) + 2, factors.astype(np.float32), offsets.astype(np.float32)


def resize_window_plain(
    image: UInt8[Array, "h w 3"],
    box: Float64[Array, " 4"],
    bound: Int32[Array, " 4"],
    flip: bool,
    *,
    size: int,
    antialias: bool = True,
) -> Float64[Array, "s s 3"]:
    """Resample one window in float64, before it is normalised: the twin of `resize_windows`."""
    top, left, vertical, horizontal = box.tolist()
    rows = _weights_plain(top, vertical, *bound[:2].tolist(), size=size, length=image.shape[0], antialias=antialias)
    columns = _weights_plain(
        left, horizontal, *bound[2:].tolist(), size=size, length=image.shape[1], antialias=antialias
    )
    out: Float64[Array, "s s 3"] = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)
    return out[:, ::-1] if flip else out


def _weights_plain(
    start: float, scale: float, low: int, high: int, *, size: int, length: int, antialias: bool
) -> Float64[Array, "s n"]:
    reach = max(scale, 1.0) if antialias else 1.0
    centres = start + (np.arange(size) + 0.5) * scale
    places = np.arange(length) + 0.5
    weights = np.clip(1 - abs(places[None, :] - centres[:, None]) / reach, 0, None)
    weights[:, :low] = weights[:, high:] = 0
    nearest = np.clip(np.floor(centres).astype(np.int64), low, high - 1)
    empty = weights.sum(axis=1) == 0
    weights[empty, nearest[empty]] = 1
    normalised: Float64[Array, "s n"] = weights / weights.sum(axis=1, keepdims=True)
    return normalised
