"""Labels whose mistakes have an order: some false classes are more likely than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Real, UInt16
from numpy import ndarray as Array

from kernels import philox
from pipeline.errors import UserError
from pipeline.laws.law import StoredArray, TableLaw, check_share

ORDERS = ("confusing", "reverse", "random")


@dataclass(frozen=True)
class Structured(TableLaw):
    """The false classes of a true class are ranked, and those of a higher rank are drawn more often.

    The true class keeps its uniform share of the noisy labels; `false_class_masses` gives the others theirs. A draw
    depends on α, so that a set of a smaller alpha is no prefix of one of a larger alpha, unlike under `Uniform`.

    Args:
        delta: Degree of structure in [0, 1]: 0 is uniform; at 1 the first false label is as frequent as the right one.
        order: "confusing": the class that a true class is most confused with comes first; "reverse": it comes last;
            "random": any order.
        ranking: The confusing order, as `confusing_order` makes it, whichever of the two orders uses it.
        order_seed: Draws the random order, 64 bits.

    Raises:
        UserError: If delta or order_seed is out of range, or order and ranking do not fit each other.

    Source: Rolnick et al. 2017, section on structured noise.
    Deviates: the paper gives no formula of the ramp and does not say which confusion matrix ranks the classes.
    """

    name: ClassVar[str] = "structured"
    delta: float
    order: str = "confusing"
    ranking: StoredArray | None = None
    order_seed: int = 0

    def __post_init__(self) -> None:
        check_share("delta", self.delta, below_one=False)
        if self.order not in ORDERS:
            raise UserError(f"unknown order of classes '{self.order}'; the orders are: {', '.join(ORDERS)}")
        if (self.ranking is None) != (self.order == "random"):
            needs = "takes no" if self.order == "random" else "needs a"
            raise UserError(f"order of classes '{self.order}' {needs} confusion matrix")
        if not 0 <= self.order_seed < 2**64:
            raise UserError(f"the seed of the order of classes is {self.order_seed}; give a whole number in [0, 2^64)")

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Check that there are masses for this delta, and that the ranking is of these classes.

        Raises:
            UserError: If not.
        """
        super().check(num_classes=num_classes, alpha=alpha)
        false_class_masses(alpha, self.delta, num_classes)
        if self.ranking is not None and len(self.ranking.array) != num_classes:
            raise UserError(
                f"the confusion matrix is of {len(self.ranking.array)} classes; the data set has {num_classes}"
            )

    def false_classes(self, num_classes: int) -> UInt16[Array, "k j"]:
        """Return the K−1 false classes of every true class, the most likely one first."""
        if self.ranking is None:
            return random_order(num_classes, self.order_seed)
        ranking = self.ranking.array
        false: UInt16[Array, "k j"] = ranking if self.order == "confusing" else ranking[:, ::-1]
        return false

    def draws(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return the distribution of a noisy label: 1/K for the true class, mass / α for a false one."""
        draws = np.empty((num_classes, num_classes))
        np.fill_diagonal(draws, 1 / num_classes)
        masses = false_class_masses(alpha, self.delta, num_classes)
        noisy = masses / alpha if alpha else np.full(num_classes - 1, 1 / num_classes)
        np.put_along_axis(draws, self.false_classes(num_classes).astype(np.int64), noisy[None], axis=1)
        return draws


def false_class_masses(alpha: int, delta: float, num_classes: int) -> Float64[Array, " j"]:
    """Return how many noisy labels a clean one gets from each false class, the most likely class first.

    The first one's mass is α/K + δ, so that at δ = 1 it equals the right label's 1 + α/K; all together have
    α(K−1)/K, so that the true class keeps α/K. While δ ≤ α/K the masses fall linearly, above that (where the
    line's last masses would be negative) geometrically. Only + − × ÷ are used: every machine gets the same.

    Args:
        alpha: α, at least 0.
        delta: δ in [0, 1].
        num_classes: K, at least 2.

    Raises:
        UserError: If the first mass alone exceeds the total: neither ramp fits.

    Source: Rolnick et al. 2017, section on structured noise (both end points of δ).
    Deviates: the paper gives no formula in between; the two ramps are ours.
    """
    uniform, ranks = alpha / num_classes, num_classes - 1
    largest = alpha * (num_classes - 2) / num_classes
    if delta > largest:
        raise UserError(
            f"delta {delta} does not fit alpha {alpha} and {num_classes} classes: the first false label alone would "
            f"need more than all false labels have; give a delta up to {min(1.0, largest):.6g}, or a larger alpha"
        )
    if delta <= uniform:
        slope = 2 / max(1, ranks - 1)
        line = uniform + delta * (1 - slope * np.arange(ranks))
        masses: Float64[Array, " j"] = np.maximum(line, 0.0)  # rounding must not make the last one negative
        return masses
    first = uniform + delta
    ratio = _ratio_of_sum(uniform * ranks / first, ranks)
    masses = first * np.cumprod(np.concatenate([[1.0], np.full(ranks - 1, ratio)]))
    return masses


def _ratio_of_sum(total: float, num_terms: int) -> float:
    """Find q in [0, 1] with 1 + q + … + q^(num_terms − 1) = total, by bisection to 2^-60."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        value = 0.0
        for _ in range(num_terms):
            value = value * middle + 1
        low, high = (middle, high) if value < total else (low, middle)
    return high


def confusing_order(confusion: Real[Array, ...]) -> UInt16[Array, "k j"]:
    """Rank the false classes of every true class by how often they are predicted for it.

    Each row is judged alone, so counts and shares give the same order. Classes that are confused equally often
    stand in the order of their numbers.

    Args:
        confusion: Row = true class, column = predicted class; the diagonal is not looked at.

    Raises:
        UserError: If it is not square, has a negative or non-finite entry, or nothing off the diagonal.
    """
    check_square("the confusion matrix", confusion)
    if not np.isfinite(confusion).all() or confusion.min() < 0:
        raise UserError("the confusion matrix has an entry that is negative or not finite; give counts or shares")
    false = confusion.astype(np.float64)
    np.fill_diagonal(false, 0)
    if not false.any():
        raise UserError("the confusion matrix is zero off its diagonal: it ranks nothing; give that of a weaker net")
    np.fill_diagonal(false, -1)  # last, and cut off
    order: UInt16[Array, "k j"] = np.argsort(-false, axis=1, kind="stable")[:, :-1].astype(np.uint16)
    return order


def random_order(num_classes: int, seed: int) -> UInt16[Array, "k j"]:
    """Rank the false classes of every true class at random."""
    words = np.empty((num_classes, num_classes), dtype=np.uint64)
    true = np.arange(num_classes, dtype=np.uint64)
    for false in range(num_classes):
        drawn = philox.blocks(seed, philox.CLASS_ORDER, true, false).astype(np.uint64)
        words[:, false] = drawn[:, 0] | drawn[:, 1] << np.uint64(32)
    order = np.argsort(words, axis=1, kind="stable")
    false = order[order != np.arange(num_classes)[:, None]]
    ranking: UInt16[Array, "k j"] = false.astype(np.uint16).reshape(num_classes, num_classes - 1)
    return ranking


def check_square(what: str, matrix: Array) -> None:
    """Check the shape of a K×K matrix.

    Raises:
        UserError: If it has another one.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise UserError(f"{what} has shape {matrix.shape}; give one row and one column per class")
