"""A diluted data set as a formula."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from kernels.labels import MAX_CLASSES
from pipeline.errors import UserError
from pipeline.laws.law import Images, Law
from pipeline.laws.uniform import Uniform


@dataclass(frozen=True)
class Formula:
    """A diluted data set as a formula: every label of its N = n(1+α) examples is computed when asked for.

    ``example_id = copy * n + image_id``; copy 0 carries the source label, or the noisy one under a flip.

    Args:
        num_images: n, at least 1.
        num_classes: K in [1, 65535].
        alpha: Noisy labels an image, at least 0.
        law: Where they come from.
        noise_seed: 64 bits; draws the labels and nothing else.

    Raises:
        UserError: If a number is out of range, or the law does not fit the others.
    """

    num_images: int
    num_classes: int
    alpha: int = 0
    law: Law = field(default_factory=Uniform)
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
        if self.alpha > 2**33:  # the block counter of a label's draw has 32 bits, and a block holds two labels or eight
            raise UserError(f"alpha is {self.alpha}; at most 2^33 labels of an image are distinct draws: lower alpha")
        if self.num_examples > 2**62:
            raise UserError(f"{self.num_examples} examples; at most 2^62 can be ordered: lower alpha")
        self.law.check(num_classes=self.num_classes, alpha=self.alpha)

    @property
    def num_examples(self) -> int:
        """N = n(1+α)."""
        return self.num_images * (1 + self.alpha)

    def bind(self, images: Images) -> Formula:
        """Return the formula for these images; only given labels depend on which these are.

        Raises:
            UserError: If the given labels are not for these images.
        """
        return dataclasses.replace(self, law=self.law.bind(images))

    def right_share(self, source_labels: UInt16[Array, " n"]) -> float:
        """Return the expected share of all N labels that equal the source label.

        Args:
            source_labels: Of all images, by image id; some laws spoil one class more than another.
        """
        return self.law.right_share(self.alpha, self.num_classes, source_labels)

    def labels(
        self, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], source_labels: UInt16[Array, " b"]
    ) -> UInt16[Array, " b"]:
        """Compute the labels of some examples.

        Args:
            image_ids: In [0, n).
            copies: In [0, α].
            source_labels: The source labels of those images.
        """
        if not self.alpha and not self.law.replaces:
            return source_labels
        drawn = copies if self.law.replaces else np.maximum(copies, 1)
        noisy = self.law.at(
            self.noise_seed, image_ids, drawn, source_labels, num_classes=self.num_classes, alpha=self.alpha
        )
        return noisy if self.law.replaces else np.where(copies == 0, source_labels, noisy)

    def shown(self, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"]) -> Int64[Array, " b"]:
        """Say which images some examples show: an image id, n + a foreign image's, or −1 for white noise."""
        return self.law.shown(self.noise_seed, image_ids, copies, num_images=self.num_images)

    def noisy_labels(self, image_ids: Int64[Array, " b"], source_labels: UInt16[Array, " b"]) -> UInt16[Array, "b a"]:
        """Compute the labels of copies 1..α of some images."""
        if not self.alpha:
            return np.empty((len(image_ids), 0), dtype=np.uint16)
        return self.law.rows(self.noise_seed, image_ids, source_labels, num_classes=self.num_classes, alpha=self.alpha)

    def all_labels(
        self, image_ids: Int64[Array, " b"], source_labels: UInt16[Array, " b"]
    ) -> UInt16[Array, "b copies"]:
        """Compute the labels of copies 0..α of some images, one column per copy."""
        first = self.labels(image_ids, np.zeros_like(image_ids), source_labels) if self.law.replaces else source_labels
        return np.concatenate([first[:, None], self.noisy_labels(image_ids, source_labels)], axis=1)

    def labels_by_example(self, source_labels: UInt16[Array, " n"]) -> UInt16[Array, " examples"]:
        """Compute the labels of all examples, by example id (copy · n + image id).

        Args:
            source_labels: Of all images, by image id.
        """
        ids = np.arange(self.num_images, dtype=np.int64)
        labels: UInt16[Array, " examples"] = self.all_labels(ids, source_labels).T.reshape(-1)
        return labels

    def labels_of_images(
        self, image_ids: Int64[Array, " b"], source_labels: UInt16[Array, " b"]
    ) -> UInt16[Array, "b copies"]:
        """Compute the labels of all examples that show these images, one column per copy.

        Copies 0..α, or copy 0 alone where the others show other images.
        """
        return source_labels[:, None] if self.law.adds_images else self.all_labels(image_ids, source_labels)
