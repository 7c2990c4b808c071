"""Noisy examples that show other images than the clean ones: foreign images, or white noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64, UInt16
from numpy import ndarray as Array

from kernels.permutation import Permutation, permutation
from kernels.philox import FOREIGN
from pipeline.errors import UserError
from pipeline.laws.uniform import UniformLabels


@dataclass(frozen=True)
class OtherImages(UniformLabels):
    """Copy 0 shows the clean image under its source label; copies 1..α show other images under uniform labels.

    The labels are those of law uniform. The other images are of none of the K classes, so that none of their labels is
    right: the share of right labels is 1/(1+α), and only copy 0 has a place in the transition matrix and in the
    realised counts, which are therefore diagonal.
    """

    adds_images: ClassVar[bool] = True

    def matrix(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Return the identity: an example whose image has a class carries its source label."""
        return np.eye(num_classes)

    def right_share(self, alpha: int, num_classes: int, source_labels: UInt16[Array, " n"]) -> float:
        """Return 1/(1+α): copy 0 is right, and no label of an image without a class is."""
        return 1 / (1 + alpha)


@dataclass(frozen=True)
class Foreign(OtherImages):
    """Noisy example q = (copy − 1)·n + image_id shows foreign image π(q mod m).

    π is a permutation of [0, m) that the noise seed draws, so each foreign image is shown before one is shown again.
    Foreign images are numbered in the class-balanced order of their own training split.

    Args:
        foreign: Name of the set that the images come from; its labels are not used.
        num_foreign: m, at least 1.

    Raises:
        UserError: If m is out of range.

    Source: Rolnick et al. 2017, section on the source of noise (CIFAR-100 images as noise for CIFAR-10).
    """

    name: ClassVar[str] = "foreign"
    foreign: str
    num_foreign: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_foreign <= 2**62:
            raise UserError(f"{self.num_foreign} foreign images; there are at least 1 and at most 2^62")

    def shown(
        self, seed: int, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], *, num_images: int
    ) -> Int64[Array, " b"]:
        """Return the image id of copy 0, and n + π(q mod m) of the others."""
        noisy = copies > 0
        shown = image_ids.copy()
        numbers = ((copies[noisy] - 1) * num_images + image_ids[noisy]) % self.num_foreign
        shown[noisy] = num_images + _foreign_order(self.num_foreign, seed)(numbers)
        return shown


@dataclass(frozen=True)
class White(OtherImages):
    """Noisy examples show white noise, a new image each: `kernels.white` draws it from the noise seed.

    Source: Rolnick et al. 2017, section on the source of noise.
    Deviates: the paper does not say how its noise is distributed. Here every pixel is drawn alone from the normal
        distribution with its channel's mean and standard deviation over the clean set, and cut to 0 to 255: where that
        range is narrow for it, as for MNIST, what is shown is brighter and less spread than the clean set.
    """

    name: ClassVar[str] = "white"

    def shown(
        self, seed: int, image_ids: Int64[Array, " b"], copies: Int64[Array, " b"], *, num_images: int
    ) -> Int64[Array, " b"]:
        """Return the image id of copy 0, and −1 of the others, which are nowhere stored."""
        return np.where(copies > 0, -1, image_ids)


@lru_cache(maxsize=4)
def _foreign_order(num_foreign: int, seed: int) -> Permutation:
    return permutation(num_foreign, seed=seed, domain=FOREIGN)
