"""What a clean set is: two splits, the names of its classes, and how to augment it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8, UInt16
from numpy import ndarray as Array

from pipeline.errors import UserError

Encoding = Literal["jpg", "png", "webp", "raw"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image as its source has it.

    Args:
        data: The encoded file, or for "raw" uint8 pixels in h w c order.
        encoding: What `data` is.
        height: In px; 0 where it is not known without decoding.
        width: In px; 0 where it is not known without decoding.
        channels: 0 where it is not known without decoding.
    """

    data: bytes
    encoding: Encoding
    height: int = 0
    width: int = 0
    channels: int = 0


@runtime_checkable
class Split(Protocol):
    """One split of a clean set, in the source's own fixed order."""

    @property
    def labels(self) -> UInt16[Array, " n"]:
        """The source label of every image."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Return one image as the source has it; nothing is decoded.

        Raises:
            DamagedImageError: If it cannot be read, or is no image of a known encoding.
        """

    def name_of(self, index: int) -> str:
        """Say where an image lies inside the source, for messages."""

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Tell a hash what makes this split another one: its pixels, or the names and sizes of its files.

        Raises:
            UserError: If a file is gone.
        """


class ArraySplit:
    """A split that lies in memory as one array; its items are raw pixels.

    Args:
        images: Pixels.
        labels: One class id an image.
        num_classes: K, at most 65,536.
        name: What an error calls this split, such as the file that the labels came from.

    Raises:
        UserError: If there is no image, the counts differ, or a label lies outside [0, K).
    """

    def __init__(
        self, images: UInt8[Array, "n h w c"], labels: Integer[Array, " m"], *, num_classes: int, name: str
    ) -> None:
        if len(images) != len(labels):
            raise UserError(
                f"{name}: {len(labels):,} labels for {len(images):,} images; "
                "both must be as many: give the labels that belong to these images"
            )
        if images.size == 0:
            raise UserError(f"{name}: images of shape {images.shape}; at least one image of one pixel is needed")
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise UserError(
                f"{name}: label {labels[wrong[0]]} of image {wrong[0]} (and {len(wrong) - 1:,} more); "
                f"allowed are 0 to {num_classes - 1}: give labels of this data set"
            )
        self.images = images
        self.name = name
        self.labels: UInt16[Array, " n"] = labels.astype(np.uint16)

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Item:
        """Return the raw pixels of one image."""
        _, height, width, channels = self.images.shape
        return Item(self.images[index].tobytes(), "raw", height, width, channels)

    def name_of(self, index: int) -> str:
        """Name the array and the image's place in it."""
        return f"{self.name} image {index}"

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Hash shape and pixels."""
        update(repr(self.images.shape).encode())
        update(self.images.tobytes())


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training sees the images of a clean set.

    Args:
        kind: "shift" pads and crops back at a random place; "window" is a random resized crop, and in evaluation
            "centre" resizes the shorter side to 8/7 of the output and crops its centre.
        shift_px: The largest shift, in each direction, of kind "shift".
        flip: Whether half of the images are mirrored left to right.
        size_px: Height and width of the output of "window" and "centre".
    """

    kind: Literal["shift", "window", "centre", "none"]
    shift_px: int = 0
    flip: bool = False
    size_px: int = 0

    def for_evaluation(self) -> Augmentation:
        """Return what evaluation does with these images: nothing at random."""
        return Augmentation("centre", size_px=self.size_px) if self.size_px else Augmentation("none")


@dataclass(frozen=True, slots=True)
class Source:
    """A clean set.

    Args:
        name: Its name in the menu.
        classes: The name of every class; K of them.
        train: What is diluted.
        test: What is never diluted.
        augmentation: How training augments it.
        observed: Whether the training labels are as they were found in the world: some are wrong, and nobody knows
            which. They stand where those of other sets have the truth, as source labels.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    augmentation: Augmentation
    observed: bool = False
