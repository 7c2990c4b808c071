"""What every noise law offers: draws, the matrix they follow, and a check that it fits a data set."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt16, UInt64
from numpy import ndarray as Array

from kernels.labels import MAX_TABLE_CLASSES, alias_at, alias_rows, alias_table
from pipeline.errors import UserError


@runtime_checkable
class Images(Protocol):
    """The images that a law labels, by image id."""

    @property
    def source_ids(self) -> Integer[Array, " n"]:
        """Where the source keeps each of them."""

    @property
    def source_labels(self) -> UInt16[Array, " n"]:
        """Their source labels."""


class StoredArray:
    """An array that is a law's parameter: read-only, and equal to another one if their hashes are.

    Args:
        array: Numbers; kept in little-endian byte order.
    """

    def __init__(self, array: Array) -> None:
        self.array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).view()
        self.array.flags.writeable = False
        digest = hashlib.sha256(f"{self.array.dtype.str} {self.array.shape} ".encode())
        digest.update(self.array.data)
        self.sha256 = digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredArray) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"StoredArray({self.array.dtype} {self.array.shape}, sha256 {self.sha256[:16]})"


class Law(ABC):
    """A distribution of noisy labels. A law is a frozen dataclass; its fields are its parameters.

    Attributes:
        name: What the user calls it.
        replaces: A flip: copy 0 carries a noisy label in place of the source label, and α is 0.
        adds_images: Copies 1..α show other images than copy 0, of none of the classes.
    """

    name: ClassVar[str]
    replaces: ClassVar[bool] = False
    adds_images: ClassVar[bool] = False

    @abstractmethod
    def rows(
        self,
        seed: int,
        image_ids: Int64[Array, " n"],
        classes: UInt16[Array, " n"],
        *,
        num_classes: int,
        alpha: int,
    ) -> UInt16[Array, "n a"]:
        """Draw the labels of copies 1..alpha of images whose source labels are `classes`."""

    @abstractmethod
    def at(
        self,
        seed: int,
        image_ids: Int64[Array, " b"],
        copies: Int64[Array, " b"],
        classes: UInt16[Array, " b"],
        *,
        num_classes: int,
        alpha: int,
    ) -> UInt16[Array, " b"]:
        """Draw the labels of some (image_id, copy) pairs: copy ≥ 1, the same ones as `rows`; copy 0 of a flip."""

    def shown(
        self, seed: int, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], *, num_images: int
    ) -> Int64[Array, " b"]:
        """Say which images some (image_id, copy) pairs show: an image id, n + a foreign one, or −1 for white noise."""
        return image_ids

    @abstractmethod
    def matrix(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return the transition matrix of all labels, copy 0 included: row = true class, column = label.

        Raises:
            UserError: If the law knows none.
        """

    def right_share(self, alpha: int, num_classes: int, source_labels: UInt16[Array, " n"]) -> float:
        """Return the expected share of all labels of some images that equal the source label."""
        right = np.diagonal(self.matrix(alpha, num_classes))
        counts = np.bincount(source_labels, minlength=num_classes)
        return float(right @ counts) / len(source_labels)

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Check that the law fits a data set.

        Raises:
            UserError: If it does not.
        """
        if self.replaces and alpha:
            raise UserError(f"law {self.name} replaces source labels and adds none: it goes with alpha 0, not {alpha}")

    def bind(self, images: Images) -> Law:
        """Return the law for the images of a data set; only labels that are given depend on which these are.

        Raises:
            UserError: If the given labels are not for these images.
        """
        return self


class TableLaw(Law):
    """A law that draws from one alias table per true class."""

    @abstractmethod
    def draws(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return the distribution of one drawn label: row = true class; rows sum to 1 within 1e-6."""

    def rows(
        self,
        seed: int,
        image_ids: Int64[Array, " n"],
        classes: UInt16[Array, " n"],
        *,
        num_classes: int,
        alpha: int,
    ) -> UInt16[Array, "n a"]:
        """Draw the labels of copies 1..alpha of each image."""
        return alias_rows(seed, image_ids, classes, table=_table(self, alpha, num_classes), alpha=alpha)

    def at(
        self,
        seed: int,
        image_ids: Int64[Array, " b"],
        copies: Int64[Array, " b"],
        classes: UInt16[Array, " b"],
        *,
        num_classes: int,
        alpha: int,
    ) -> UInt16[Array, " b"]:
        """Draw the labels of some (image_id, copy) pairs."""
        return alias_at(seed, image_ids, copies, classes, table=_table(self, alpha, num_classes))

    def matrix(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return the transition matrix of all labels, copy 0 included."""
        draws = self.draws(alpha, num_classes)
        return draws if self.replaces else (np.eye(num_classes) + alpha * draws) / (1 + alpha)

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Refuse what one class or too many for a table would make of the law.

        Raises:
            UserError: If the number of classes is out of range, or a flip meets an alpha.
        """
        super().check(num_classes=num_classes, alpha=alpha)
        if num_classes < 2:
            raise UserError(f"law {self.name} needs at least 2 classes; with 1 no label could be wrong")
        if num_classes > MAX_TABLE_CLASSES:
            raise UserError(
                f"{num_classes:,} classes; above {MAX_TABLE_CLASSES:,} there is law uniform, not {self.name}"
            )


# A table of 4,096 classes takes 134 MB; a run needs one.
@lru_cache(maxsize=2)
def _table(law: TableLaw, alpha: int, num_classes: int) -> UInt64[Array, "k c"]:
    return alias_table(law.draws(alpha, num_classes))


def check_share(name: str, value: Any, *, below_one: bool) -> None:
    """Check a parameter that is a share.

    Raises:
        UserError: If it is not in [0, 1], or is 1 where only less is meant.
    """
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise UserError(f"{name} is {value}; give a number in [0, 1{')' if below_one else ']'}")
