"""Noise laws: which label a noisy copy carries, as frozen dataclasses that drive the label kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from kernels.labels import MAX_CLASSES, uniform_at, uniform_rows
from pipeline.errors import UserError


class Law(Protocol):
    """A distribution of noisy labels."""

    name: ClassVar[str]

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
        ...

    def at(
        self,
        seed: int,
        image_ids: Int64[Array, " b"],
        copies: Int64[Array, " b"],
        classes: UInt16[Array, " b"],
        *,
        num_classes: int,
    ) -> UInt16[Array, " b"]:
        """Draw the labels of some (image_id, copy) pairs, copy ≥ 1; the same ones as `rows`."""
        ...

    def right_share(self, alpha: int, num_classes: int) -> float:
        """Return the expected share of all N labels that equal the source label."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every noisy label is uniform over all K classes, the true one included.

    Source: Rolnick et al. 2017, section on uniform noise (the H_α formula sums over all classes).
    """

    name: ClassVar[str] = "uniform"

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
    ) -> UInt16[Array, " b"]:
        """Draw the labels of some (image_id, copy) pairs, copy ≥ 1."""
        return uniform_at(seed, image_ids, copies, num_classes=num_classes)

    def right_share(self, alpha: int, num_classes: int) -> float:
        """Return (1 + α/K) / (1 + α)."""
        return (1 + alpha / num_classes) / (1 + alpha)


LAWS: dict[str, type[Law]] = {"uniform": Uniform}


def law_from_json(fields: dict[str, Any]) -> Law:
    """Make a law from its name and parameters, the inverse of `law_to_json`.

    Raises:
        UserError: If there is no law of that name.
    """
    name = fields.get("name")
    if name not in LAWS:
        raise UserError(f"unknown law '{name}'; the laws are: {', '.join(LAWS)}")
    return LAWS[name](**{key: value for key, value in fields.items() if key != "name"})


def law_to_json(law: Law) -> dict[str, Any]:
    """Write a law as its name and parameters."""
    return {"name": law.name, **vars(law)}


def noisy_share(alpha: int) -> float:
    """Return r = α/(1+α), the share of labels that were drawn at random."""
    return alpha / (1 + alpha)


def wrong_share(alpha: int, num_classes: int) -> float:
    """Return η = r(K−1)/K, the expected share of wrong labels under the uniform law."""
    return noisy_share(alpha) * (num_classes - 1) / num_classes


@dataclass(frozen=True)
class Formula:
    """A diluted data set as a formula: every label of its N = n(1+α) examples is computed when asked for.

    ``example_id = copy * n + image_id``; copy 0 is the source label.

    Args:
        num_images: n, at least 1.
        num_classes: K in [1, 65535].
        alpha: Noisy labels an image, at least 0.
        law: Where they come from.
        noise_seed: 64 bits; draws the labels and nothing else.

    Raises:
        UserError: If a number is out of range.
    """

    num_images: int
    num_classes: int
    alpha: int = 0
    law: Law = Uniform()
    noise_seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise UserError(f"alpha is {self.alpha}; give a whole number of noisy labels per clean one, 0 or more")
        if not 1 <= self.num_classes <= MAX_CLASSES:
            raise UserError(f"{self.num_classes} classes; a data set has 1 to {MAX_CLASSES}")
        if self.num_images < 1:
            raise UserError(f"{self.num_images} images; a data set has at least 1")
        if not 0 <= self.noise_seed < 2**64:
            raise UserError(f"noise seed {self.noise_seed}; give a whole number in [0, 2^64)")
        if self.num_examples > 2**62:
            raise UserError(f"{self.num_examples} examples; at most 2^62 can be ordered: lower alpha")

    @property
    def num_examples(self) -> int:
        """N = n(1+α)."""
        return self.num_images * (1 + self.alpha)

    @property
    def right_share(self) -> float:
        """The expected share of labels that equal the source label."""
        return self.law.right_share(self.alpha, self.num_classes)

    def labels(
        self, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], source_labels: UInt16[Array, " b"]
    ) -> UInt16[Array, " b"]:
        """Compute the labels of some examples.

        Args:
            image_ids: In [0, n).
            copies: In [0, α].
            source_labels: The source labels of those images.
        """
        if not self.alpha:
            return source_labels
        noisy = self.law.at(
            self.noise_seed, image_ids, np.maximum(copies, 1), source_labels, num_classes=self.num_classes
        )
        return np.where(copies == 0, source_labels, noisy)

    def noisy_labels(self, image_ids: Int64[Array, " b"], source_labels: UInt16[Array, " b"]) -> UInt16[Array, "b a"]:
        """Compute the labels of copies 1..α of some images."""
        return self.law.rows(self.noise_seed, image_ids, source_labels, num_classes=self.num_classes, alpha=self.alpha)

    def all_labels(
        self, image_ids: Int64[Array, " b"], source_labels: UInt16[Array, " b"]
    ) -> UInt16[Array, "b copies"]:
        """Compute the labels of copies 0..α of some images, one column per copy."""
        return np.concatenate([source_labels[:, None], self.noisy_labels(image_ids, source_labels)], axis=1)
