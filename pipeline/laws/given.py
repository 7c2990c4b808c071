"""Labels that somebody else made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt16
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.law import Images, Law, StoredArray


@dataclass(frozen=True)
class Given(Law):
    """Copy 0 carries a label from a list; nothing is drawn, so the list is stored with the data set.

    Args:
        labels: uint16 [n], by source index: the order in which the source keeps its training images.
        clean: What the labels' author takes for the source labels, by source index; checked when the law is bound.
        source_ids: Source index of each image; `bind` fills it in.

    Raises:
        UserError: If the labels are no list of class numbers.
    """

    name: ClassVar[str] = "given"
    replaces: ClassVar[bool] = True
    labels: StoredArray
    clean: UInt16[Array, " n"] | None = field(default=None, compare=False, repr=False)
    source_ids: Integer[Array, " n"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        labels = self.labels.array
        if labels.ndim != 1 or labels.dtype != np.uint16 or not len(labels):
            raise UserError(f"given labels are {labels.dtype} {labels.shape}; give one class number per training image")

    def check(self, *, num_classes: int, alpha: int) -> None:
        """Check that every label is one of these classes.

        Raises:
            UserError: If not.
        """
        super().check(num_classes=num_classes, alpha=alpha)
        outside = np.flatnonzero(self.labels.array >= num_classes)
        if len(outside):
            raise UserError(
                f"given label {self.labels.array[outside[0]]} of training image {outside[0]} is none of the "
                f"{num_classes} classes 0 to {num_classes - 1}"
            )

    def bind(self, images: Images) -> Given:
        """Return the law for these images.

        Raises:
            UserError: If there is another number of labels, they are for another order of the images, or they are
                the source labels.
        """
        ids = np.asarray(images.source_ids)
        labels, needed = self.labels.array, int(ids.max()) + 1
        whole = len(ids) == needed  # not a prefix of the source's images, as --clean makes it
        if len(labels) < needed or (whole and len(labels) > needed):
            raise UserError(
                f"{len(labels):,} labels are given for {'' if whole else 'at least '}{needed:,} training images; "
                "give one for each, in the order of the data set's own files"
            )
        truth = np.asarray(images.source_labels)
        if self.clean is not None and (self.clean[ids] != truth).any():
            place = ids[self.clean[ids] != truth].min()
            raise UserError(
                f"the file of labels takes training image {place} for class {self.clean[place]}, the data set has "
                "another source label there: the file is for another order of the images"
            )
        if whole and (labels[ids] == truth).all():
            raise UserError("the given labels are the source labels: no label would change; give alpha 0 without a law")
        return dataclasses.replace(self, source_ids=ids)

    def rows(
        self,
        seed: int,
        image_ids: Int64[Array, " n"],
        classes: UInt16[Array, " n"],
        *,
        num_classes: int,
        alpha: int,
    ) -> UInt16[Array, "n a"]:
        """Return no column: nothing is added."""
        return np.empty((len(image_ids), 0), dtype=np.uint16)

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
        """Look the labels of some images up.

        Raises:
            ValueError: If the law was not bound to images.
        """
        if self.source_ids is None:
            raise ValueError("given labels are looked up by source index: bind the law to its images first")
        found: UInt16[Array, " b"] = self.labels.array[self.source_ids[image_ids]]
        return found

    def matrix(self, alpha: int, num_classes: int) -> Float64[Array, "k k"]:
        """Refuse: nobody knows the law of labels that were not drawn here.

        Raises:
            UserError: Always.
        """
        raise UserError("given labels follow no known transition matrix; the realised one stands in counts.npz")

    def right_share(self, alpha: int, num_classes: int, source_labels: UInt16[Array, " n"]) -> float:
        """Return the realised share of labels that equal the source label."""
        ids = np.arange(len(source_labels))
        found = self.at(0, ids, ids, source_labels, num_classes=num_classes, alpha=alpha)
        return float((found == source_labels).mean())
