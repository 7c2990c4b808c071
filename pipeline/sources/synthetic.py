"""Seeded images of any number and size whose class can be learnt; for tests and for measuring speed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from kernels import philox
from pipeline.errors import UserError
from pipeline.sources.types import ArraySplit, Augmentation, Source

GRID: Final = 4  # a template is a grid of 4 × 4 flat cells
# Where each kind of image starts among the coordinates of its domain, so that sizes do not change pixels.
_TRAIN: Final = 0
_TEST: Final = 1 << 40
_TEMPLATES: Final = 1 << 41
_CHUNK: Final = 1_024  # images mixed at once: bounds the memory of what lies between


def open_synthetic(path: Path | None = None) -> Source:
    """Open 10,000 + 1,000 images of 32 × 32 × 3 in 10 classes.

    Args:
        path: Must be None.

    Raises:
        UserError: If a path is given.
    """
    if path is not None:
        raise UserError(f"synthetic is computed and takes no --source ({path} given): leave it out")
    return synthetic()


def synthetic(
    *,
    num_train: int = 10_000,
    num_test: int = 1_000,
    height: int = 32,
    width: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    seed: int = 0,
) -> Source:
    """Make a clean set of one flat-celled pattern a class under three times as much noise.

    Image i is of class i mod K, and its pixels do not depend on how many images there are. Only integers are
    involved, so every machine makes the same bytes.

    Args:
        num_train: At least 1.
        num_test: At least 1.
        height: In px.
        width: In px.
        channels: 1 or 3 for what reads the images.
        num_classes: K, at most 65,536.
        seed: 64 bits.
    """
    templates = _templates(seed, num_classes, height, width, channels)
    train, test = (
        ArraySplit(
            _noisy(seed, first, count, templates),
            np.arange(count) % num_classes,
            num_classes=num_classes,
            name="synthetic",
        )
        for first, count in ((_TRAIN, num_train), (_TEST, num_test))
    )
    classes = tuple(f"pattern {label}" for label in range(num_classes))
    return Source("synthetic", classes, train, test, Augmentation("shift", shift_px=4, flip=True))


def _templates(seed: int, num_classes: int, height: int, width: int, channels: int) -> UInt8[Array, "k h w c"]:
    cells = _random_bytes(seed, _TEMPLATES, num_classes, GRID * GRID * channels)
    cells = cells.reshape(num_classes, GRID, GRID, channels)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return cells[:, rows[:, None], columns]


def _noisy(seed: int, first: int, count: int, templates: UInt8[Array, "k h w c"]) -> UInt8[Array, "n h w c"]:
    num_classes, *shape = templates.shape
    images = np.empty((count, *shape), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = images[start : start + _CHUNK]
        noise = _random_bytes(seed, first + start, len(chunk), chunk[0].size).reshape(chunk.shape)
        signal = templates[np.arange(start, start + len(chunk)) % num_classes]
        chunk[:] = (signal + noise * np.uint16(3)) // 4
    return images


def _random_bytes(seed: int, first: int, count: int, num_bytes: int) -> UInt8[Array, "n p"]:
    """Draw bytes for the images first, first + 1, ...; sixteen bytes a block."""
    images = np.arange(first, first + count, dtype=np.uint64)
    words = [philox.blocks(seed, philox.SYNTHETIC, images, block) for block in range(-(-num_bytes // 16))]
    return np.hstack(words).astype("<u4", copy=False).view(np.uint8)[:, :num_bytes]
