"""A seeded permutation of [0, N) that is computed, not stored: any index, any order, no memory.

Eight Feistel rounds over the smallest even number of bits that holds N; a value outside [0, N) is sent through
again until it falls inside (cycle-walking, fewer than four trips on average). A round adds
``high bits of mix(half * multiplier + offset)`` with its own odd 64-bit multiplier and offset from Philox.

Source: Luby and Rackoff 1988; Black and Rogaway 2002, "Ciphers with arbitrary finite domains", for the walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray as Array

from kernels.jit import inline, parallel, prange
from kernels.philox import philox_plain

MAX_SIZE: Final = 1 << 62
NUM_ROUNDS: Final = 8
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_32: Final = np.uint64(32)
_TILE: Final = 256


@dataclass(frozen=True)
class Permutation:
    """A permutation of [0, size), random access in both directions.

    Args:
        size: N in [1, 2^62].
        half_bits: Half the bits of the domain.
        keys: An odd multiplier and an offset per round.
    """

    size: int
    half_bits: int
    keys: UInt64[Array, "rounds 2"]

    def __call__(self, positions: Int64[Array, " b"]) -> Int64[Array, " b"]:
        """Return where each position, in [0, size), goes."""
        return self._send(positions, self.keys, False)

    def inverse(self, values: Int64[Array, " b"]) -> Int64[Array, " b"]:
        """Return the position that goes to each value, in [0, size)."""
        return self._send(values, self.keys[::-1], True)

    def _send(self, values: Int64[Array, " b"], keys: UInt64[Array, "rounds 2"], inverse: bool) -> Int64[Array, " b"]:
        if len(values) and (values.min() < 0 or values.max() >= self.size):  # walking would never come home
            raise ValueError(f"values from {values.min()} to {values.max()}; they must be in [0, {self.size})")
        out = np.zeros(len(values), dtype=np.int64)
        if self.size > 1:
            half_bits, size = np.uint64(self.half_bits), np.uint64(self.size)
            values, keys = np.ascontiguousarray(values), np.ascontiguousarray(keys)
            _permute(values, keys, inverse, half_bits, size, out)
        return out


def permutation(size: int, *, seed: int, domain: int, a: int = 0) -> Permutation:
    """Make the permutation of [0, size) that (seed, domain, a) names; eight Philox blocks, whatever the size.

    Args:
        size: N in [1, 2^62].
        seed: 64 bits.
        domain: What it is for, a number of philox.py.
        a: First coordinate (the epoch, say).

    Raises:
        ValueError: If size lies outside [1, 2^62].
    """
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"{size} elements given; a permutation has 1 to 2^62")
    keys = np.empty((NUM_ROUNDS, 2), dtype=np.uint64)
    for number in range(NUM_ROUNDS):
        w = philox_plain((a & 0xFFFFFFFF, a >> 32, number, domain), (seed & 0xFFFFFFFF, seed >> 32))
        keys[number] = w[0] | w[1] << 32 | 1, w[2] | w[3] << 32
    return Permutation(size, ((size - 1).bit_length() + 1) // 2, keys)


@inline
def _round(half: np.uint64, multiplier: np.uint64, offset: np.uint64, down: np.uint64) -> np.uint64:
    mixed = half * multiplier + offset
    return ((mixed ^ (mixed >> _32)) * _MIX) >> down


@parallel
def _permute(values: Array, keys: Array, inverse: bool, half_bits: np.uint64, size: np.uint64, out: Array) -> None:
    """Send values through the rounds; the inverse is the same network with its keys and halves turned round."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    down = np.uint64(64) - half_bits
    count = values.shape[0]
    for tile in prange((count + _TILE - 1) // _TILE):
        first = tile * _TILE
        pending = min(_TILE, count - first)
        value = np.empty(_TILE, dtype=np.uint64)
        place = np.empty(_TILE, dtype=np.int64)
        for j in range(pending):
            value[j] = np.uint64(values[first + j])
            place[j] = first + j
        while pending:
            for j in range(pending):  # vectorises: no branch depends on a value
                high = value[j] >> half_bits
                low = value[j] & mask
                left = low if inverse else high
                right = high if inverse else low
                for r in range(NUM_ROUNDS):
                    left, right = right, left ^ _round(right, keys[r, 0], keys[r, 1], down)
                high = right if inverse else left
                low = left if inverse else right
                value[j] = (high << half_bits) | low
            outside = 0
            for j in range(pending):  # those outside [0, size) move to the front and walk on
                if value[j] < size:
                    out[place[j]] = np.int64(value[j])
                else:
                    value[outside] = value[j]
                    place[outside] = place[j]
                    outside += 1
            pending = outside


def permute_plain(position: int, *, size: int, seed: int, domain: int, a: int = 0) -> int:
    """Compute one element in plain Python integers: the twin of `Permutation`."""
    half_bits = ((size - 1).bit_length() + 1) // 2
    value = position
    while size > 1:
        left, right = value >> half_bits, value & ((1 << half_bits) - 1)
        for number in range(NUM_ROUNDS):
            w = philox_plain((a & 0xFFFFFFFF, a >> 32, number, domain), (seed & 0xFFFFFFFF, seed >> 32))
            multiplier, offset = w[0] | w[1] << 32 | 1, w[2] | w[3] << 32
            mixed = (right * multiplier + offset) % 2**64
            mixed = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15 % 2**64
            left, right = right, left ^ mixed >> (64 - half_bits)
        value = left << half_bits | right
        if value < size:
            break
    return value
