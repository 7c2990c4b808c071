"""Order `passes`: 1 + α passes over the images, read in sequential blocks, without an image twice in a pass.

It is a stratified order, not a shuffle of all examples: every pass shows each image once, under another of its labels
each time. Blocks of 1,024 images are permuted anew for each pass, images inside a window of some blocks, so that a
reader goes through storage block by block. With a reuse of r, an image is shown r times in r sweeps over its window,
each in an order of its own, so that it is read and decoded once for r of its labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Int64
from numpy import ndarray as Array

from kernels.permutation import Permutation, permutation
from kernels.philox import BLOCK_ORDER, WINDOW_ORDER
from pipeline.errors import UserError
from pipeline.stream import Places, copies_in_pass

BLOCK_IMAGES: Final = 1_024
DEFAULT_WINDOW: Final = 16


@dataclass(frozen=True)
class Passes:
    """A seeded order of all examples, pass after pass; any position is found at once.

    Args:
        images: The image ids that are streamed.
        num_copies: 1 + α, or 1 for a stream of images.
        seed: 64 bits; the run's seed, not the noise seed.
        window: Blocks that are mixed with each other, at least 1.
        reuse: Labels of an image that are shown in a row of sweeps over its window, at least 1.

    Raises:
        UserError: If window or reuse is below 1.
    """

    images: range
    num_copies: int
    seed: int
    window: int = DEFAULT_WINDOW
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"--window {self.window}; give at least 1 block of {BLOCK_IMAGES:,} images")
        if self.reuse < 1:
            raise UserError(f"--reuse {self.reuse}; give at least 1: each decoded image is shown so many times")

    def __len__(self) -> int:
        """Return the number of examples in an epoch."""
        return len(self.images) * self.num_copies

    def at(self, positions: Int64[Array, " b"]) -> Places:
        """Find the examples at some positions, in any order and at any distance."""
        num_images, num_windows = len(self.images), -(-self.num_blocks // self.window)
        epochs, offsets = np.divmod(positions, len(self))
        rounds, offsets = np.divmod(offsets, num_images * self.reuse)
        ranks, copies = np.empty_like(positions), np.empty_like(positions)
        for epoch, number in np.unique(np.stack([epochs, rounds]), axis=1).T.tolist():
            sweeps = min(self.reuse, self.num_copies - number * self.reuse)
            key = epoch * -(-self.num_copies // self.reuse) + number
            here = np.flatnonzero((epochs == epoch) & (rounds == number))
            order = _block_order(self.num_blocks, self.seed, key)
            windows = offsets[here] // (sweeps * self.window * BLOCK_IMAGES)
            windows += offsets[here] >= sweeps * self._start(order, windows + 1)  # one block is shorter than the others
            starts, ends = self._start(order, windows), self._start(order, windows + 1)
            sweep, place = np.divmod(offsets[here] - sweeps * starts, ends - starts)
            for window, turn in np.unique(np.stack([windows, sweep]), axis=1).T.tolist():
                inside = (windows == window) & (sweep == turn)
                coordinate = (key * num_windows + window) * self.reuse + turn
                size = int(ends[inside][0] - starts[inside][0])
                place[inside] = _window_order(size, self.seed, coordinate)(place[inside])
            ranks[here] = self._ranks(order, starts + place)
            copies[here] = copies_in_pass(
                number * self.reuse + sweep,
                ranks[here] + self.images.start,
                num_copies=self.num_copies,
                seed=self.seed,
                epoch=epoch,
            )
        return Places(epochs, ranks + self.images.start, copies)

    @property
    def num_blocks(self) -> int:
        """Number of blocks; the last one may be shorter."""
        return -(-len(self.images) // BLOCK_IMAGES)

    def _start(self, order: _BlockOrder, windows: Int64[Array, " b"]) -> Int64[Array, " b"]:
        """Return how many images come before some windows of a pass."""
        slots = np.minimum(windows * self.window, self.num_blocks)
        starts: Int64[Array, " b"] = slots * BLOCK_IMAGES - (slots > order.last) * self._missing
        return starts

    def _ranks(self, order: _BlockOrder, places: Int64[Array, " b"]) -> Int64[Array, " b"]:
        """Return the images at some places of a pass, whose blocks lie one after the other in their order."""
        short = (order.last + 1) * BLOCK_IMAGES - self._missing  # where the shorter block ends
        slots, inside = np.divmod(places + (places >= short) * self._missing, BLOCK_IMAGES)
        ranks: Int64[Array, " b"] = order.blocks(slots) * BLOCK_IMAGES + inside
        return ranks

    @property
    def _missing(self) -> int:
        return self.num_blocks * BLOCK_IMAGES - len(self.images)


@dataclass(frozen=True)
class _BlockOrder:
    """The order of the blocks in a pass, and where the last, shorter one stands in it."""

    blocks: Permutation
    last: int


@lru_cache(maxsize=8)
def _block_order(num_blocks: int, seed: int, key: int) -> _BlockOrder:
    order = permutation(num_blocks, seed=seed, domain=BLOCK_ORDER, a=key)
    return _BlockOrder(order, int(order.inverse(np.array([num_blocks - 1]))[0]))


@lru_cache(maxsize=64)
def _window_order(size: int, seed: int, coordinate: int) -> Permutation:
    return permutation(size, seed=seed, domain=WINDOW_ORDER, a=coordinate)
