"""Noisy labels: uniform over the classes, or from an alias table per true class.

A label is a pure function of (seed, image_id, copy), so any subset can be drawn in any order on any number of
threads. Uniform: one Philox block gives eight labels, one per half-word (Lemire's method on 16 bits; a rejected
half-word is drawn again from the same place of draw + 1). Alias: a block gives two labels, two words each.

Source: Lemire 2019, "Fast random integer generation in an interval"; Walker 1977 and Vose 1991 for the tables.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64, UInt16, UInt64
from numpy import ndarray as Array

from kernels.jit import inline, jit, parallel, prange
from kernels.philox import ALIAS, FLIP_LABEL, LABEL, philox, philox_plain

MAX_CLASSES: Final = 65_535
MAX_TABLE_CLASSES: Final = 4_096

_LABEL: Final = np.uint32(LABEL)
_ALIAS: Final = np.uint32(ALIAS)
_FLIP_LABEL: Final = np.uint32(FLIP_LABEL)
_TILE: Final = 256  # images a tile: its words stay in the first-level cache and the loops over it vectorise
_LOW: Final = np.uint64(0xFFFFFFFF)
_32: Final = np.uint64(32)


@inline
def _half_word(words: tuple[np.uint32, np.uint32, np.uint32, np.uint32], half: int) -> np.uint32:
    """Return half-word 0..7 of a block: the low half of a word comes before its high half."""
    index = half >> 1
    value = words[0]
    if index == 1:
        value = words[1]
    elif index == 2:
        value = words[2]
    elif index == 3:
        value = words[3]
    return np.uint32(value >> np.uint32(16 * (half & 1))) & np.uint32(0xFFFF)


@jit
def _uniform(
    image_id: np.uint64, copy: int, num_classes: np.uint32, k0: np.uint32, k1: np.uint32, draw: int
) -> np.uint16:
    """Draw one label, from try `draw` on."""
    threshold = np.uint32(65536) % num_classes
    block = np.uint32((copy - 1) >> 3)
    half = (copy - 1) & 7
    while True:
        counter = _LABEL | np.uint32(draw << 8)
        words = philox(np.uint32(image_id & _LOW), np.uint32(image_id >> _32), block, counter, k0, k1)
        product = _half_word(words, half) * num_classes
        if (product & np.uint32(0xFFFF)) >= threshold:
            return np.uint16(product >> np.uint32(16))
        draw += 1


@parallel
def _uniform_rows(
    seed: np.uint64, image_ids: Int64[Array, " n"], num_classes: np.uint32, out: UInt16[Array, "n a"]
) -> None:
    num_images, alpha = out.shape
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    threshold = np.uint32(65536) % num_classes
    num_tiles = (num_images + _TILE - 1) // _TILE
    for tile in prange(num_tiles):
        first = tile * _TILE
        size = min(_TILE, num_images - first)
        words = np.empty((4, _TILE), dtype=np.uint32)
        labels = np.empty((8, _TILE), dtype=np.uint16)
        rejected = np.empty(_TILE, dtype=np.uint32)
        for block in range((alpha + 7) >> 3):
            for j in range(size):
                image_id = np.uint64(image_ids[first + j])
                w0, w1, w2, w3 = philox(
                    np.uint32(image_id & _LOW), np.uint32(image_id >> _32), np.uint32(block), _LABEL, k0, k1
                )
                words[0, j] = w0
                words[1, j] = w1
                words[2, j] = w2
                words[3, j] = w3
                rejected[j] = 0
            for w in range(4):
                for j in range(size):
                    low = (words[w, j] & np.uint32(0xFFFF)) * num_classes
                    high = (words[w, j] >> np.uint32(16)) * num_classes
                    labels[2 * w, j] = np.uint16(low >> np.uint32(16))
                    labels[2 * w + 1, j] = np.uint16(high >> np.uint32(16))
                    rejected[j] |= np.uint32((low & np.uint32(0xFFFF)) < threshold) << np.uint32(2 * w)
                    rejected[j] |= np.uint32((high & np.uint32(0xFFFF)) < threshold) << np.uint32(2 * w + 1)
            count = min(8, alpha - 8 * block)
            for j in range(size):
                for half in range(count):
                    out[first + j, 8 * block + half] = labels[half, j]
            for j in range(size):
                if rejected[j]:
                    for half in range(count):
                        if (rejected[j] >> np.uint32(half)) & np.uint32(1):
                            copy = 8 * block + half + 1
                            out[first + j, copy - 1] = _uniform(
                                np.uint64(image_ids[first + j]), copy, num_classes, k0, k1, 1
                            )


@parallel
def _uniform_some(
    seed: np.uint64,
    image_ids: Int64[Array, " b"],
    copies: Int64[Array, " b"],
    num_classes: np.uint32,
    out: UInt16[Array, " b"],
) -> None:
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in prange(out.shape[0]):
        out[i] = _uniform(np.uint64(image_ids[i]), copies[i], num_classes, k0, k1, 0)


@inline
def _pick(table: Array, row: int, shift: np.uint32, w0: np.uint32, w1: np.uint32) -> np.uint16:
    """Read a label off an alias table: the top bits of w0 choose a column, w1 the side of it."""
    column = np.uint64(w0) >> np.uint64(shift)
    entry = table[row, column]
    if np.uint64(w1) < entry >> np.uint64(16):
        return np.uint16(column)
    return np.uint16(entry & np.uint64(0xFFFF))


@parallel
def _alias_rows(
    seed: np.uint64,
    image_ids: Array,
    classes: Array,
    table: Array,
    shift: np.uint32,
    out: Array,
) -> None:
    num_images, alpha = out.shape
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    num_tiles = (num_images + 31) // 32
    for tile in prange(num_tiles):  # 32 images a tile: their table rows stay in the second-level cache
        first = tile * 32
        size = min(32, num_images - first)
        words = np.empty((4, 32), dtype=np.uint32)
        for block in range((alpha + 1) >> 1):
            for j in range(size):
                image_id = np.uint64(image_ids[first + j])
                w0, w1, w2, w3 = philox(
                    np.uint32(image_id & _LOW), np.uint32(image_id >> _32), np.uint32(block), _ALIAS, k0, k1
                )
                words[0, j] = w0
                words[1, j] = w1
                words[2, j] = w2
                words[3, j] = w3
            for j in range(size):
                out[first + j, 2 * block] = _pick(table, classes[first + j], shift, words[0, j], words[1, j])
            if 2 * block + 1 < alpha:
                for j in range(size):
                    out[first + j, 2 * block + 1] = _pick(table, classes[first + j], shift, words[2, j], words[3, j])


@parallel
def _alias_some(
    seed: np.uint64,
    image_ids: Array,
    copies: Array,
    classes: Array,
    table: Array,
    shift: np.uint32,
    out: Array,
) -> None:
    k0 = np.uint32(seed & _LOW)
    k1 = np.uint32(seed >> _32)
    for i in prange(out.shape[0]):
        image_id = np.uint64(image_ids[i])
        copy = copies[i]
        block = np.uint32(0)
        domain = _FLIP_LABEL
        if copy > 0:
            block = np.uint32((copy - 1) >> 1)
            domain = _ALIAS
        w0, w1, w2, w3 = philox(np.uint32(image_id & _LOW), np.uint32(image_id >> _32), block, domain, k0, k1)
        if copy > 0 and (copy - 1) & 1:
            w0, w1 = w2, w3
        out[i] = _pick(table, classes[i], shift, w0, w1)


@jit
def _fill_tables(weights: Array, table: Array) -> None:
    """Vose's construction in whole numbers: row i of `weights` sums to columns · 2^32 and is used up."""
    num_rows, columns = weights.shape
    full = np.int64(1) << np.int64(32)
    small = np.empty(columns, dtype=np.int64)
    large = np.empty(columns, dtype=np.int64)
    for row in range(num_rows):
        num_small = 0
        num_large = 0
        for column in range(columns):
            table[row, column] = (np.uint64(full) << np.uint64(16)) | np.uint64(column)
            if weights[row, column] < full:
                small[num_small] = column
                num_small += 1
            else:
                large[num_large] = column
                num_large += 1
        while num_small and num_large:
            num_small -= 1
            poor = small[num_small]
            rich = large[num_large - 1]
            table[row, poor] = (np.uint64(weights[row, poor]) << np.uint64(16)) | np.uint64(rich)
            weights[row, rich] -= full - weights[row, poor]
            if weights[row, rich] < full:
                num_large -= 1
                small[num_small] = rich
                num_small += 1


def uniform_rows(seed: int, image_ids: Int64[Array, " n"], *, num_classes: int, alpha: int) -> UInt16[Array, "n a"]:
    """Draw the labels of copies 1..alpha of each image.

    Args:
        seed: The noise seed, 64 bits.
        image_ids: Non-negative.
        num_classes: K in [1, 65535]; every class has probability 1/K exactly.
        alpha: Noisy labels an image.
    """
    out = np.empty((len(image_ids), alpha), dtype=np.uint16)
    _uniform_rows(np.uint64(seed), np.ascontiguousarray(image_ids), np.uint32(num_classes), out)
    return out


def uniform_at(
    seed: int, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], *, num_classes: int
) -> UInt16[Array, " b"]:
    """Draw the labels of some (image_id, copy) pairs, copy ≥ 1; the same ones as `uniform_rows`."""
    out = np.empty(len(image_ids), dtype=np.uint16)
    ids, copies = np.ascontiguousarray(image_ids), np.ascontiguousarray(copies)
    _uniform_some(np.uint64(seed), ids, copies, np.uint32(num_classes), out)
    return out


def alias_table(probabilities: Float64[Array, "k j"]) -> UInt64[Array, "k c"]:
    """Make the alias tables of a transition matrix.

    There is a power of two of columns, so that a column is the top bits of one word and none is favoured. An entry
    holds the threshold of its own class (in 2^-32, above bit 16) and the other class (below it). Probabilities are
    quantised to 2^-32 / columns; what rounding leaves over goes to the most likely class of the row. A probability
    of zero stays zero.

    Args:
        probabilities: One row per true class, each summing to 1 (within 1e-6; rows are normalised).

    Raises:
        ValueError: If a row has a negative or non-finite entry or another sum, or there are too many classes.
    """
    num_rows, num_classes = probabilities.shape
    if not 1 <= num_classes <= MAX_TABLE_CLASSES:
        raise ValueError(f"{num_classes} classes given; a table holds 1 to {MAX_TABLE_CLASSES}")
    sums = np.array([math.fsum(row) for row in probabilities.tolist()])
    bad = np.flatnonzero(~(np.abs(sums - 1) <= 1e-6) | ~(probabilities >= 0).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} of the matrix sums to {sums[bad[0]]:.9g} (smallest entry "
            f"{probabilities[bad[0]].min():.9g}); every row needs entries >= 0 that sum to 1"
        )
    columns = 1 << (num_classes - 1).bit_length()
    total = columns << 32
    weights = np.zeros((num_rows, columns), dtype=np.int64)
    weights[:, :num_classes] = np.floor(probabilities / sums[:, None] * total)
    weights[np.arange(num_rows), weights.argmax(axis=1)] += total - weights.sum(axis=1)
    table = np.empty((num_rows, columns), dtype=np.uint64)
    _fill_tables(weights, table)
    return table


def alias_rows(
    seed: int,
    image_ids: Int64[Array, " n"],
    classes: UInt16[Array, " n"],
    *,
    table: UInt64[Array, "k c"],
    alpha: int,
) -> UInt16[Array, "n a"]:
    """Draw the labels of copies 1..alpha of each image from the table row of its true class."""
    out = np.empty((len(image_ids), alpha), dtype=np.uint16)
    ids, rows = np.ascontiguousarray(image_ids), np.ascontiguousarray(classes)
    _alias_rows(np.uint64(seed), ids, rows, table, _shift(table), out)
    return out


def alias_at(
    seed: int,
    image_ids: Int64[Array, " b"],
    copies: Int64[Array, " b"],
    classes: UInt16[Array, " b"],
    *,
    table: UInt64[Array, "k c"],
) -> UInt16[Array, " b"]:
    """Draw the labels of some (image_id, copy) pairs; copy 0 has a domain of its own (the label under a flip)."""
    out = np.empty(len(image_ids), dtype=np.uint16)
    ids, copies = np.ascontiguousarray(image_ids), np.ascontiguousarray(copies)
    _alias_some(np.uint64(seed), ids, copies, np.ascontiguousarray(classes), table, _shift(table), out)
    return out


def _shift(table: UInt64[Array, "k c"]) -> np.uint32:
    """Bits to drop from a word so that the rest is a column; a table of one column has shift 32."""
    return np.uint32(32 - (table.shape[1] - 1).bit_length())


def uniform_plain(seed: int, image_id: int, copy: int, num_classes: int) -> int:
    """Draw one uniform label in plain Python integers: the twin of `uniform_rows` and `uniform_at`."""
    for draw in itertools.count():
        counter = (image_id & 0xFFFFFFFF, image_id >> 32, (copy - 1) >> 3, LABEL | draw << 8)
        words = philox_plain(counter, (seed & 0xFFFFFFFF, seed >> 32))
        half = (copy - 1) & 7
        product = (words[half // 2] >> 16 * (half % 2) & 0xFFFF) * num_classes
        if product % 65536 >= 65536 % num_classes:
            return product // 65536
    raise AssertionError("unreachable")


def alias_plain(seed: int, image_id: int, copy: int, row: list[int]) -> int:
    """Draw one label from one row of an alias table in plain Python: the twin of `alias_rows` and `alias_at`."""
    block, domain = ((copy - 1) // 2, ALIAS) if copy else (0, FLIP_LABEL)
    counter = (image_id & 0xFFFFFFFF, image_id >> 32, block, domain)
    words = philox_plain(counter, (seed & 0xFFFFFFFF, seed >> 32))
    choose, side = words[2:] if copy and (copy - 1) % 2 else words[:2]
    column = choose * len(row) >> 32
    return column if side < row[column] >> 16 else row[column] & 0xFFFF
