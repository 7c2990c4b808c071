"""Flips: the label of an image is replaced; no copy is added."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float64
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.law import StoredArray, TableLaw, check_share
from pipeline.laws.structured import check_square

CIFAR10_MAP: Final = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}  # truck → automobile, bird → airplane, deer → horse, cat ↔ dog
_SMALLEST_RATE: Final = 1e-6  # draws have 32 bits: a rate near 2^-32 would silently come out as none


@dataclass(frozen=True)
class Flip(TableLaw):
    """A share of the labels is drawn from another distribution, the others stay.

    Args:
        rate: Share in [0, 1); 0 has to be asked for, no flip has a default.

    Raises:
        UserError: If the rate is out of range, or so small that it would come out as none.
    """

    replaces: ClassVar[bool] = True
    rate: float

    def __post_init__(self) -> None:
        check_share("rate", self.rate, below_one=True)
        if 0 < self.rate < _SMALLEST_RATE:
            raise UserError(f"rate is {self.rate}; give 0, or at least {_SMALLEST_RATE}: smaller ones cannot be drawn")

    @abstractmethod
    def targets(self, num_classes: int) -> Float64[Array, "k k"]:
        """Return where a label goes that is drawn: row = true class."""

    def draws(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return (1 − rate) I + rate · targets."""
        return (1 - self.rate) * np.eye(num_classes) + self.rate * self.targets(num_classes)


@dataclass(frozen=True)
class Symmetric(Flip):
    """To one of the K−1 false classes, each as likely; `rate` is the share of wrong labels.

    Source: Han et al. 2018 (Co-teaching) and Chen et al. 2019 (INCV), symmetric noise.
    """

    name: ClassVar[str] = "symmetric"

    def targets(self, num_classes: int) -> Float64[Array, "k k"]:
        """Return 1/(K−1) off the diagonal."""
        return (1 - np.eye(num_classes)) / (num_classes - 1)


@dataclass(frozen=True)
class SymmetricInclusive(Flip):
    """To one of all K classes, the true one included; the share of wrong labels is rate · (K−1)/K.

    Source: Gui et al. 2021 (RSL), uniform noise.
    """

    name: ClassVar[str] = "symmetric-inclusive"

    def targets(self, num_classes: int) -> Float64[Array, "k k"]:
        """Return 1/K everywhere."""
        return np.full((num_classes, num_classes), 1 / num_classes)


@dataclass(frozen=True)
class Pair(Flip):
    """To the next class, (y + 1) mod K.

    Source: Han et al. 2018 (Co-teaching), pair flip; Chen et al. 2019 (INCV) call it asymmetric.
    """

    name: ClassVar[str] = "pair"

    def targets(self, num_classes: int) -> Float64[Array, "k k"]:
        """Return 1 right of the diagonal."""
        return np.roll(np.eye(num_classes), 1, axis=1)


@dataclass(frozen=True)
class Map(Flip):
    """CIFAR-10's five confusable classes go each to one other, the other five stay: wrong labels are rate/2.

    By class index: truck 9 → automobile 1, bird 2 → airplane 0, deer 4 → horse 7, cat 3 ↔ dog 5.

    Source: Gui et al. 2021 (RSL), structured noise; Li et al. 2019 (MLNT), asymmetric noise.
    """

    name: ClassVar[str] = "map"

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Check that there are CIFAR-10's classes.

        Raises:
            UserError: If not.
        """
        super().check(num_classes=num_classes, alpha=alpha)
        if num_classes != 10:
            raise UserError(f"law map is made for the 10 classes of CIFAR-10; the data set has {num_classes}")

    def targets(self, num_classes: int) -> Float64[Array, "k k"]:
        """Return the five pairs, and the identity for the other classes."""
        return np.eye(num_classes)[[CIFAR10_MAP.get(true, true) for true in range(num_classes)]]


@dataclass(frozen=True)
class Matrix(TableLaw):
    """The label of an image of class i is j with probability T[i, j].

    Args:
        transition: T, float64; rows sum to 1 within 1e-6 and are normalised.

    Raises:
        UserError: If a row is no distribution.
    """

    name: ClassVar[str] = "matrix"
    replaces: ClassVar[bool] = True
    transition: StoredArray

    def __post_init__(self) -> None:
        matrix = self.transition.array
        check_square("the transition matrix", matrix)
        sums = matrix.sum(axis=1)
        bad = np.flatnonzero(~((np.abs(sums - 1) <= 1e-6) & (matrix >= 0).all(axis=1)))
        if len(bad):
            row = bad[0]
            raise UserError(
                f"row {row} of the transition matrix sums to {sums[row]:.9g} (smallest entry {matrix[row].min():.6g}); "
                "every row (true class) needs entries >= 0 that sum to 1"
            )

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Check that the matrix is of these classes, and changes labels.

        Raises:
            UserError: If not.
        """
        super().check(num_classes=num_classes, alpha=alpha)
        matrix = self.transition.array
        if len(matrix) != num_classes:
            raise UserError(f"the transition matrix is of {len(matrix)} classes; the data set has {num_classes}")
        if (1 - np.diagonal(matrix) / matrix.sum(axis=1)).max() < _SMALLEST_RATE:
            raise UserError("the transition matrix is the identity: no label would change; give alpha 0 without a law")

    def draws(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return T as it was given; the table normalises its rows."""
        return self.transition.array
