"""Which part of an image an example shows, as `kernels.resize` wants it told."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from numpy import ndarray as Array

from kernels.crops import flips, windows


class Crops(NamedTuple):
    """Where the pixels of some output images come from.

    Args:
        boxes: (top, left, vertical scale, horizontal scale), see `kernels.resize.resize_windows`.
        bounds: (first row, end row, first column, end column) of the pixels that may be looked at.
        flips: Whether to mirror the columns.
    """

    boxes: Float64[Array, "b 4"]
    bounds: Int32[Array, "b 4"]
    flips: Bool[Array, " b"]

    def at(self, rows: Int64[Array, " g"]) -> Crops:
        """Return the crops of some rows."""
        return Crops(self.boxes[rows], self.bounds[rows], self.flips[rows])

    def within(self, origins: Int32[Array, "b 2"]) -> Crops:
        """Return the same crops for images of which only a part was decoded, from these (row, column) on."""
        boxes, bounds = self.boxes.copy(), self.bounds.copy()
        boxes[:, :2] -= origins
        bounds[:, :2] -= origins[:, :1]
        bounds[:, 2:] -= origins[:, 1:]
        return Crops(boxes, bounds, self.flips)


def random_crops(
    seed: int,
    epochs: Int64[Array, " b"],
    example_ids: Int64[Array, " b"],
    shapes: Int64[Array, "b 2"],
    *,
    size: int,
    flip: bool,
) -> Crops:
    """Draw random resized crops: a window of 8 to 100 % of the area, of aspect 3:4 to 4:3.

    Args:
        seed: The run's seed.
        epochs: One an example.
        example_ids: What else the draw depends on.
        shapes: (height, width) of the images, in px.
        size: Of the output, in px.
        flip: Whether half of them are mirrored.
    """
    window = windows(seed, epochs, example_ids, shapes[:, 0], shapes[:, 1])  # top, left, height, width
    boxes = window.astype(np.float64)
    boxes[:, 2:] /= size
    ends = window[:, :2] + window[:, 2:]
    bounds = np.stack([window[:, 0], ends[:, 0], window[:, 1], ends[:, 1]], axis=1)
    mirrored = flips(seed, epochs, example_ids) if flip else np.zeros(len(window), dtype=np.bool_)
    return Crops(boxes, bounds, mirrored)


def centre_crops(shapes: Int64[Array, "b 2"], *, size: int) -> Crops:
    """Return the crops of evaluation: the shorter side resized to 8/7 of `size` (256 for 224), the centre cut out.

    Sizes are rounded as torchvision's Resize and CenterCrop round them.
    """
    shorter = round(size * 8 / 7)
    low = shapes.min(axis=1)
    resized = np.where(shapes == low[:, None], shorter, shorter * shapes // low[:, None])
    scales = shapes / resized
    boxes = np.concatenate([np.round((resized - size) / 2) * scales, scales], axis=1)
    zeros = np.zeros(len(shapes), dtype=np.int64)
    bounds = np.stack([zeros, shapes[:, 0], zeros, shapes[:, 1]], axis=1).astype(np.int32)
    return Crops(boxes, bounds, np.zeros(len(shapes), dtype=np.bool_))
