"""Labels that are uniform over all classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64, UInt16
from numpy import ndarray as Array

from kernels.labels import uniform_at, uniform_rows
from pipeline.laws.law import Law


class UniformLabels(Law):
    """A law whose noisy labels are drawn from all K classes, the true one included, each as likely."""

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
        return uniform_rows(seed, image_ids, num_classes=num_classes, alpha=alpha)

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
        """Draw the labels of some (image_id, copy) pairs, copy ≥ 1."""
        return uniform_at(seed, image_ids, copies, num_classes=num_classes)


@dataclass(frozen=True)
class Uniform(UniformLabels):
    """Every noisy label is uniform over all K classes, the true one included.

    Source: Rolnick et al. 2017, section on uniform noise (the H_α formula sums over all classes).
    """

    name: ClassVar[str] = "uniform"

    def matrix(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return (I + α/K) / (1 + α)."""
        return (np.eye(num_classes) + alpha / num_classes) / (1 + alpha)

    def right_share(self, alpha: int, num_classes: int, source_labels: UInt16[Array, " n"]) -> float:
        """Return (1 + α/K) / (1 + α), whatever the classes of the images are."""
        return (1 + alpha / num_classes) / (1 + alpha)
