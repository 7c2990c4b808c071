"""Philox4x32-10, the counter-based generator behind every random choice.

A draw is a pure function: key = the seed (64 bits), counter = (a low word, a high word, b, domain | draw << 8).
`a` and `b` are the coordinates that the domain's line below names; `draw` counts repeated tries for one choice.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; known answers from Random123.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import UInt32, UInt64
from numpy import ndarray as Array

from kernels.jit import inline, jit

# What a draw is for. A number is never reused: old data sets depend on it.      a, b
LABEL: Final = 1  # a uniform noisy label                                        image_id, (copy - 1) >> 3
ALIAS: Final = 2  # a noisy label from a table                                   image_id, (copy - 1) >> 1
ORDER: Final = 3  # round keys of the order of examples                          epoch, round
WINDOW: Final = 4  # a random-resized-crop window (draw = the try)               example_id, epoch
SHIFT: Final = 5  # the shift of a padded crop                                   example_id, epoch
FLIP: Final = 6  # a horizontal flip                                             example_id, epoch
IMAGE_ORDER: Final = 7  # shuffle and place of the class-balanced order             source index, 0
TORCH: Final = 8  # the seed of torch's generator for one step                   step, rank
INIT: Final = 9  # the seed of initial weights                                   learner, 0
SYNTHETIC: Final = 10  # pixels and labels of synthetic images                   image, pixel block
FLIP_LABEL: Final = 11  # the label of copy 0 under a flip law                   image_id, 0
FOREIGN: Final = 12  # round keys of the order of foreign images                 0, round
WHITE: Final = 13  # white-noise pixels                                          example_id, pixel block
META: Final = 14  # synthetic labels of meta-learning                            step, part of its batch
FOLD: Final = 15  # folds of a cross-validation                                  image_id, iteration
COPY_ORDER: Final = 16  # the copy of an image that `passes` shows first          image_id, epoch
BLOCK_ORDER: Final = 17  # round keys of the order of blocks in a pass            pass, round
CLASS_ORDER: Final = 18  # random order of the false classes of a class          true class, false class
WINDOW_ORDER: Final = 19  # round keys of the order of images in a sweep          pass, window and sweep, round
MIXUP: Final = 20  # the seed of mixup's weight in one step                       step, 0
DRAW: Final = 21  # a draw with replacement from a selection                       position, 0

_M0: Final = np.uint64(0xD2511F53)
_M1: Final = np.uint64(0xCD9E8D57)
_W0: Final = np.uint32(0x9E3779B9)
_W1: Final = np.uint32(0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)


@inline
def philox(
    c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32
) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    """Return one block of four 32-bit words; for use inside kernels, all arguments uint32."""
    for _ in range(10):
        p0 = _M0 * np.uint64(c0)
        p1 = _M1 * np.uint64(c2)
        c0, c1, c2, c3 = (
            np.uint32(p1 >> _32) ^ c1 ^ k0,
            np.uint32(p1 & _LOW),
            np.uint32(p0 >> _32) ^ c3 ^ k1,
            np.uint32(p0 & _LOW),
        )
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)
    return c0, c1, c2, c3


@jit
def fill_blocks(
    seed: np.uint64, a: UInt64[Array, " n"], b: np.uint32, domain: np.uint32, out: UInt32[Array, "n 4"]
) -> None:
    """Write the blocks of the counters (a[i], b, domain, draw 0) to `out`."""
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in range(a.shape[0]):
        words = philox(np.uint32(a[i] & _LOW), np.uint32(a[i] >> _32), b, domain, k0, k1)
        out[i, 0] = words[0]
        out[i, 1] = words[1]
        out[i, 2] = words[2]
        out[i, 3] = words[3]


def blocks(seed: int, domain: int, a: UInt64[Array, " n"], b: int = 0) -> UInt32[Array, "n 4"]:
    """Draw one block of four words for each `a`; for the few draws that no kernel of their own makes.

    Args:
        seed: 64-bit key.
        domain: One of the numbered domains of this module.
        a: First coordinates.
        b: Second coordinate in [0, 2^32).
    """
    out = np.empty((len(a), 4), dtype=np.uint32)
    fill_blocks(np.uint64(seed), np.ascontiguousarray(a, dtype=np.uint64), np.uint32(b), np.uint32(domain), out)
    return out


def word(seed: int, domain: int, a: int = 0, b: int = 0, draw: int = 0) -> int:
    """Draw 63 bits for one choice, as a Python int: a seed for a library's own generator."""
    words = philox_plain((a & 0xFFFFFFFF, a >> 32, b, domain | draw << 8), (seed & 0xFFFFFFFF, seed >> 32))
    return (words[0] | words[1] << 32) & 0x7FFFFFFFFFFFFFFF


def philox_plain(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute one block in plain Python integers: the twin of `philox`."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = 0xD2511F53 * c0
        p1 = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
