"""Realised label counts: how often each true class carries each label, sparse, so that any K fits."""

from __future__ import annotations

from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

_BLOCK_LABELS: Final = 1 << 16
_DENSE_CLASSES: Final = 2_048  # a matrix of 32 MB


class Counts(NamedTuple):
    """The non-zero cells of the K×K matrix of (source label, label).

    Args:
        true: Row of each cell, ascending.
        label: Column of each cell, ascending in a row.
        num: Examples in it.
    """

    true: Int64[Array, " m"]
    label: Int64[Array, " m"]
    num: Int64[Array, " m"]

    @classmethod
    def of(cls, true: UInt16[Array, " n"], labels: UInt16[Array, "n a"]) -> Counts:
        """Count the labels, one column per copy, of images whose source labels are `true`."""
        step = max(1, _BLOCK_LABELS // labels.shape[1])  # in blocks: memory must not grow with α
        blocks = [slice(first, first + step) for first in range(0, len(true), step)]
        size = 1 + max(int(true.max(initial=0)), int(labels.max(initial=0)))
        if size > _DENSE_CLASSES:
            return sum((cls._sparse(true[block], labels[block]) for block in blocks), NO_COUNTS)
        matrix = np.zeros(size * size, dtype=np.int64)
        for block in blocks:
            keys = true[block].astype(np.int64)[:, None] * size + labels[block]
            matrix += np.bincount(keys.reshape(-1), minlength=size * size)
        cells = np.flatnonzero(matrix)
        return cls(cells // size, cells % size, matrix[cells])

    @classmethod
    def _sparse(cls, true: UInt16[Array, " n"], labels: UInt16[Array, "n a"]) -> Counts:
        keys = (true.astype(np.int64)[:, None] << 16 | labels).reshape(-1)
        cells, counts = np.unique(keys, return_counts=True)
        return cls(cells >> 16, cells & 0xFFFF, counts)

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        """Add two tables cell by cell."""
        keys = np.concatenate([self.true << 16 | self.label, other.true << 16 | other.label])
        cells, inverse = np.unique(keys, return_inverse=True)
        total = np.zeros(len(cells), dtype=np.int64)
        np.add.at(total, inverse, np.concatenate([self.num, other.num]))
        return Counts(cells >> 16, cells & 0xFFFF, total)

    @property
    def num_right(self) -> int:
        """Labels that equal the source label."""
        return int(self.num[self.true == self.label].sum())

    @property
    def num_examples(self) -> int:
        """All labels."""
        return int(self.num.sum())

    def dense(self, num_classes: int) -> Int64[Array, "k k"]:
        """Return the matrix, rows = source label."""
        matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        matrix[self.true, self.label] = self.num
        return matrix

    def to_bytes(self, num_classes: int) -> bytes:
        """Write a .npz file: the matrix ``counts`` up to K = 100, else the cells ``true``, ``label``, ``num``."""
        stream = BytesIO()  # not compressed: zlib's bytes depend on its version; NumPy dates the members 1980
        if num_classes > 100:
            true, label = self.true.astype(np.uint16), self.label.astype(np.uint16)
            np.savez(stream, true=true, label=label, num=self.num)
        else:
            np.savez(stream, counts=self.dense(num_classes))
        return stream.getvalue()


NO_COUNTS = Counts(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
