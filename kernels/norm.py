"""Batch norm and a leaky ReLU, and a 2 × 2 max-pool between them where it is asked for, in few passes over memory.

Forward, backward, and the derivative of the backward pass. Below 0 the ReLU has the slope `leak`: 0, or 1 for none.

Images lie pixel by pixel (n h w c), in float32 or in bfloat16, which NumPy knows only as its bits. The kernels see them
as lines, the rows of all images, and repeat what belongs to a channel for every pixel of a row: loops over a line are
long and go value by value. Sums are in float32 over few lines, then in float64 over all; who adds what to what does not
depend on the number of threads, so it changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray as Array

from kernels.jit import apart, jit, narrow, parallel, prange, widen

Values = Array[Any, Any]  # of float32, or of uint16: the bits of bfloat16
Window = tuple[Values, Values, Values, Values]  # the channels of its pixels, row by row

_CHUNK: Final = 1 << 16  # values of the lines that one thread sums at a time
_RUN: Final = 64  # lines at most: terms of a sum in float32
_SAMPLE: Final = 16  # lines that say roughly where the values of a channel lie
_BLOCK: Final = np.uint64(
    16
)  # channels; a loop whose length is known needs no remainder: 32 channels were 3 times as slow in one
_ZERO: Final = np.float32(0)


@jit
def _fold(total: Float32[Array, " l"], sums: Float64[Array, " c"]) -> None:
    """Add the sums of a line's values to those of the channels."""
    for first in range(0, len(total), len(sums)):
        for c in range(len(sums)):
            sums[c] += total[first + c]


@jit
def _add_moments(line: Values, pivot: Float32[Array, " l"], total: Float32[Array, "2 l"]) -> None:
    for j in range(np.uint64(len(line))):
        far = widen(line[j]) - pivot[j]
        total[0, j] += far
        total[1, j] += far * far


@parallel
def _moments(lines: Values, pivot: Float32[Array, " l"], step: int, sums: Float64[Array, "m 2 c"]) -> None:
    for chunk in prange(len(sums)):
        total = np.zeros((2, len(pivot)), dtype=np.float32)
        for i in range(chunk * step, min(chunk * step + step, len(lines))):
            _add_moments(lines[i], pivot, total)
        _fold(total[0], sums[chunk, 0])
        _fold(total[1], sums[chunk, 1])


@jit
def _clip_line(line: Values, terms: Float32[Array, "k l"], leak: np.float32, out: Values) -> None:
    for j in range(np.uint64(len(line))):
        value = (widen(line[j]) - terms[0, j]) * terms[1, j] + terms[2, j]
        out[j] = narrow(value * leak if value <= _ZERO else value, out)  # nan stays


@parallel
def _clip(lines: Values, terms: Float32[Array, "3 l"], leak: np.float32, out: Values) -> None:
    for i in prange(len(lines)):
        _clip_line(lines[i], terms, leak, out[i])


@jit
def _add_slopes(
    line: Values, grad: Values, terms: Float32[Array, "3 l"], leak: np.float32, total: Float32[Array, "2 l"]
) -> None:
    for j in range(np.uint64(len(line))):
        far = widen(line[j]) - terms[0, j]
        slope = widen(grad[j])  # read in any case, so that the loop has no branch
        slope = slope * leak if far * terms[1, j] + terms[2, j] <= _ZERO else slope
        total[0, j] += slope
        total[1, j] += slope * far


@parallel
def _slopes(
    lines: Values,
    grad: Values,
    terms: Float32[Array, "3 l"],
    leak: np.float32,
    step: int,
    sums: Float64[Array, "m 2 c"],
) -> None:
    for chunk in prange(len(sums)):
        total = np.zeros((2, lines.shape[1]), dtype=np.float32)
        for i in range(chunk * step, min(chunk * step + step, len(lines))):
            _add_slopes(lines[i], grad[i], terms, leak, total)
        _fold(total[0], sums[chunk, 0])
        _fold(total[1], sums[chunk, 1])


@jit
def _gradient_line(line: Values, grad: Values, terms: Float32[Array, "5 l"], leak: np.float32, out: Values) -> None:
    for j in range(np.uint64(len(line))):
        far = widen(line[j]) - terms[0, j]
        slope = widen(grad[j]) * terms[1, j]
        slope = slope * leak if far * terms[1, j] + terms[2, j] <= _ZERO else slope
        out[j] = narrow(slope + (far * terms[3, j] + terms[4, j]), out)


@parallel
def _gradient(lines: Values, grad: Values, terms: Float32[Array, "5 l"], leak: np.float32, out: Values) -> None:
    for i in prange(len(lines)):
        _gradient_line(lines[i], grad[i], terms, leak, out[i])


@jit
def _window(lines: Values, row: int, channels: int) -> Window:
    """Return two lines, twice: value j of each belongs to one pixel of the same window, where j lies in its left half.

    The second and fourth begin a pixel later, so no value is in two pixels: kernels take them for four arrays.
    """
    upper, lower = lines[row], lines[row + 1]
    return upper, upper[channels:], lower, lower[channels:]


@jit
def _choose(v0: np.float32, v1: np.float32, v2: np.float32, v3: np.float32, sign: np.float32) -> np.float32:
    """Return the one of four values whose norm is largest: the largest, or the smallest where the scale is below 0."""
    best = v1 if v1 * sign > v0 * sign else v0
    best = v2 if v2 * sign > best * sign else best
    return v3 if v3 * sign > best * sign else best


@jit
def _choose_line(window: Window, sign: Float32[Array, " c"], top: Values) -> None:
    """Fill a line with what the windows of two lines choose."""
    apart()
    p0, p1, p2, p3 = window
    channels = np.uint64(len(sign))
    whole = channels - channels % _BLOCK
    for left in range(np.uint64(0), np.uint64(len(top)), channels):
        for first in range(np.uint64(0), whole, _BLOCK):
            for k in range(_BLOCK):
                c = first + k
                j = left + left + c
                best = _choose(widen(p0[j]), widen(p1[j]), widen(p2[j]), widen(p3[j]), sign[c])
                top[left + c] = narrow(best, top)
        for c in range(whole, channels):
            j = left + left + c
            best = _choose(widen(p0[j]), widen(p1[j]), widen(p2[j]), widen(p3[j]), sign[c])
            top[left + c] = narrow(best, top)


@parallel
def _pool(
    lines: Values,
    height: int,
    sign: Float32[Array, " c"],
    terms: Float32[Array, "3 l"],
    leak: np.float32,
    top: Values,
    out: Values,
) -> None:
    rows = height // 2
    for i in prange(len(top)):
        _choose_line(_window(lines, i // rows * height + i % rows * 2, len(sign)), sign, top[i])
        _clip_line(top[i], terms, leak, out[i])


@jit
def _spread(
    c: int,
    left: int,
    window: Window,
    top: Values,
    grad: Values,
    terms: Float32[Array, "5 c"],
    leak: np.float32,
    out: Window,
) -> None:
    """Write the gradients of a channel of the window whose pixels begin at value `left` of a line of tops."""
    p0, p1, p2, p3 = window
    q0, q1, q2, q3 = out
    mean, scale, tilt, level = terms[0, c], terms[1, c], terms[3, c], terms[4, c]
    at = left + c
    j = left + at
    best, v0, v1, v2, v3 = widen(top[at]), widen(p0[j]), widen(p1[j]), widen(p2[j]), widen(p3[j])
    slope = widen(grad[at]) * scale
    slope = slope * leak if (best - mean) * scale + terms[2, c] <= _ZERO else slope
    q0[j] = narrow((slope if v0 == best else _ZERO) + ((v0 - mean) * tilt + level), q0)
    slope = _ZERO if v0 == best else slope  # of equal ones, only the first gets it
    q1[j] = narrow((slope if v1 == best else _ZERO) + ((v1 - mean) * tilt + level), q1)
    slope = _ZERO if v1 == best else slope
    q2[j] = narrow((slope if v2 == best else _ZERO) + ((v2 - mean) * tilt + level), q2)
    slope = _ZERO if v2 == best else slope
    q3[j] = narrow((slope if v3 == best else _ZERO) + ((v3 - mean) * tilt + level), q3)


@jit
def _spread_line(
    window: Window, top: Values, grad: Values, terms: Float32[Array, "5 c"], leak: np.float32, out: Window
) -> None:
    """Fill two lines with the gradients of their windows."""
    apart()
    channels = np.uint64(terms.shape[1])
    whole = channels - channels % _BLOCK
    for left in range(np.uint64(0), np.uint64(len(top)), channels):
        for first in range(np.uint64(0), whole, _BLOCK):
            for k in range(_BLOCK):
                _spread(first + k, left, window, top, grad, terms, leak, out)
        for c in range(whole, channels):
            _spread(c, left, window, top, grad, terms, leak, out)


@jit
def _level(pixel: Values, terms: Float32[Array, "5 c"], out: Values) -> None:
    for c in range(np.uint64(len(pixel))):
        out[c] = narrow((widen(pixel[c]) - terms[0, c]) * terms[3, c] + terms[4, c], out)


@parallel
def _pool_gradient(
    lines: Values,
    height: int,
    top: Values,
    grad: Values,
    terms: Float32[Array, "5 c"],
    leak: np.float32,
    out: Values,
) -> None:
    rows, channels = height // 2, terms.shape[1]
    for i in prange(len(top)):
        row = i // rows * height + i % rows * 2
        window, gradients = _window(lines, row, channels), _window(out, row, channels)
        _spread_line(window, top[i], grad[i], terms, leak, gradients)
        # What an odd width or height leaves over is in no window.
        end = row + 2 if i % rows < rows - 1 else (i // rows + 1) * height
        for y in range(row, end):
            for left in range(2 * top.shape[1] if y < row + 2 else 0, lines.shape[1], channels):
                _level(lines[y, left : left + channels], terms, out[y, left : left + channels])


@jit
def _add_bends(
    line: Values, grad: Values, bend: Values, mean: Float32[Array, " l"], total: Float32[Array, "5 l"]
) -> None:
    apart()
    for j in range(np.uint64(len(line))):
        far, g, h = widen(line[j]) - mean[j], widen(grad[j]), widen(bend[j])
        total[0, j] += g
        total[1, j] += g * far
        total[2, j] += h
        total[3, j] += h * far
        total[4, j] += g * h


@parallel
def _bends(
    lines: Values, grad: Values, bend: Values, mean: Float32[Array, " l"], step: int, sums: Float64[Array, "m 5 c"]
) -> None:
    for chunk in prange(len(sums)):
        total = np.zeros((5, len(mean)), dtype=np.float32)
        for i in range(chunk * step, min(chunk * step + step, len(lines))):
            _add_bends(lines[i], grad[i], bend[i], mean, total)
        for k in range(5):
            _fold(total[k], sums[chunk, k])


@jit
def _bend_line(
    line: Values, grad: Values, bend: Values, terms: Float32[Array, "8 l"], of_grad: Values, of_images: Values
) -> None:
    apart()
    for j in range(np.uint64(len(line))):
        far, g, h = widen(line[j]) - terms[0, j], widen(grad[j]), widen(bend[j])
        of_grad[j] = narrow(terms[1, j] + far * terms[2, j] + h * terms[3, j], of_grad)
        of_images[j] = narrow(terms[4, j] + far * terms[5, j] + h * terms[6, j] + g * terms[7, j], of_images)


@parallel
def _bend(
    lines: Values, grad: Values, bend: Values, terms: Float32[Array, "8 l"], of_grad: Values, of_images: Values
) -> None:
    for i in prange(len(lines)):
        _bend_line(lines[i], grad[i], bend[i], terms, of_grad[i], of_images[i])


def moments(images: Values) -> tuple[Float64[Array, " c"], Float64[Array, " c"]]:
    """Return mean and variance (over all values, not all but one) of each channel.

    Squares are of distances from the mean of a few lines: a mean that is large against the deviation costs no digits.

    Args:
        images: [n, h, w, c], contiguous.
    """
    lines, count = _lines(images), images.size // images.shape[3]
    sample = np.ascontiguousarray(lines[:: -(-len(lines) // _SAMPLE)])
    nowhere = np.zeros(lines.shape[1], dtype=np.float32)
    shape = 2, images.shape[3]
    middle = _sums(_moments, shape, sample, nowhere)[0] / (sample.size // images.shape[3])
    pivot = middle.astype(np.float32)
    far, square = _sums(_moments, shape, lines, _repeat(pivot, images)) / count
    return pivot + far, np.maximum(square - far**2, 0.0)


def norm_relu(images: Values, terms: Float32[Array, "3 c"], leak: float, out: Values) -> None:
    """Write (x − mean) · scale + shift of every value, times `leak` where that is below 0.

    Args:
        images: [n, h, w, c], contiguous, like all images here.
        terms: Mean, scale and shift of each channel.
        leak: From 0 to 1.
        out: Like `images`.
    """
    _clip(_lines(images), _repeat(terms, images), np.float32(leak), _lines(out))


def norm_pool_relu(images: Values, terms: Float32[Array, "3 c"], leak: float, top: Values, out: Values) -> None:
    """Do the same for the largest norm of each window of 2 × 2 pixels; an odd last row or column is in none.

    Args:
        images: At least 2 × 2 px.
        terms: Mean, scale and shift of each channel.
        leak: From 0 to 1.
        top: [n, h // 2, w // 2, c]: which values have the largest norms.
        out: Like `top`.
    """
    sign = np.sign(terms[1])
    _pool(_lines(images), images.shape[1], sign, _repeat(terms, top), np.float32(leak), _lines(top), _lines(out))


def slope_sums(chosen: Values, grad: Values, terms: Float32[Array, "3 c"], leak: float) -> Float64[Array, "2 c"]:
    """Sum the gradients that pass the ReLU, and those times the distances of the values from the mean.

    Args:
        chosen: The images, or the tops of their windows.
        grad: Of what `norm_relu` or `norm_pool_relu` wrote.
        terms: What it was given.
        leak: As well.
    """
    repeated = _repeat(terms, chosen)
    return _sums(_slopes, (2, chosen.shape[3]), _lines(chosen), _lines(grad), repeated, np.float32(leak))


def norm_relu_gradient(images: Values, grad: Values, terms: Float32[Array, "5 c"], leak: float, out: Values) -> None:
    """Write g · scale + (x − mean) · tilt + level of every value, where g is the gradient that passes the ReLU.

    Args:
        images: What `norm_relu` was given.
        grad: Of what it wrote.
        terms: Mean, scale, shift, tilt and level of each channel.
        leak: From 0 to 1.
        out: Like `images`.
    """
    _gradient(_lines(images), _lines(grad), _repeat(terms, images), np.float32(leak), _lines(out))


def norm_pool_relu_gradient(
    images: Values, top: Values, grad: Values, terms: Float32[Array, "5 c"], leak: float, out: Values
) -> None:
    """Do the same, g being the gradient of a window at the first of its values that is its top, and 0 elsewhere.

    Args:
        images: What `norm_pool_relu` was given.
        top: What it chose.
        grad: Of what it wrote.
        terms: Mean, scale, shift, tilt and level of each channel.
        leak: From 0 to 1.
        out: Like `images`.
    """
    _pool_gradient(_lines(images), images.shape[1], _lines(top), _lines(grad), terms, np.float32(leak), _lines(out))


def bend_sums(images: Values, grad: Values, bend: Values, mean: Float32[Array, " c"]) -> Float64[Array, "5 c"]:
    """Sum g, g · far, h, h · far and g · h over the values of each channel; far is the distance from the mean.

    Args:
        images: What was normalised.
        grad: g, of what came out.
        bend: h, of the gradient that `images` have from g.
        mean: Of each channel.
    """
    return _sums(_bends, (5, len(mean)), _lines(images), _lines(grad), _lines(bend), _repeat(mean, images))


def norm_bend(
    images: Values, grad: Values, bend: Values, terms: Float32[Array, "8 c"], of_grad: Values, of_images: Values
) -> None:
    """Write terms 1 to 3 of each channel with (1, far, h), and terms 4 to 7 with (1, far, h, g), of every value.

    Args:
        images: As in `bend_sums`, like `grad` and `bend`.
        grad: g.
        bend: h.
        terms: The mean of each channel, then the factors.
        of_grad: Like `images`: the first sum.
        of_images: As well: the second.
    """
    lines = _lines(images), _lines(grad), _lines(bend), _repeat(terms, images)
    _bend(*lines, _lines(of_grad), _lines(of_images))


def _lines(images: Values) -> Values:
    n, height, width, channels = images.shape
    return images.reshape(n * height, width * channels)


def _repeat(terms: Float32[Array, "*k c"], images: Values) -> Float32[Array, "*k l"]:
    return np.tile(terms, images.shape[2])


def _sums(kernel: Callable[..., None], shape: tuple[int, int], lines: Values, *rest: Any) -> Float64[Array, "k c"]:
    step = min(max(_CHUNK // lines.shape[1], 1), _RUN)
    sums = np.zeros((-(-len(lines) // step), *shape))
    kernel(lines, *rest, step, sums)
    return sums.sum(axis=0)  # type: ignore[no-any-return]
