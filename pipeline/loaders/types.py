"""What a loader is made of: something that decodes, and something that makes batches of what was decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from numpy import ndarray as Array
from torch import Tensor

from pipeline.dataset import DilutedSet, ImageSplit
from pipeline.errors import DamagedImageError
from pipeline.formats.headers import read_shape
from pipeline.sources.types import Augmentation, Item
from pipeline.stream import Places


@dataclass(frozen=True)
class How:
    """How a loader makes batches.

    Args:
        augmentation: What it does to images.
        device: Where batches go.
        seed: The run's seed; draws windows, shifts and flips.
        antialias: Widen the filter where an image is reduced.
        keep: Decoded images that will soon be shown again.
        blocks: Blocks of images that are read close to each other, where they are asked for in order; 0 where not.
    """

    augmentation: Augmentation
    device: torch.device
    seed: int = 0
    antialias: bool = True
    keep: int = 0
    blocks: int = 0


@runtime_checkable
class Loader(Protocol):
    """Makes the images of batches."""

    def images(
        self, places: Places, example_ids: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        """Make a batch of the images at some places, and say which of them could not be read."""

    def expect(self, places: Places) -> None:
        """Hear of some places that will be asked for later."""

    def close(self) -> None:
        """End whatever runs in the background."""


class Decoded(NamedTuple):
    """Some decoded images.

    Args:
        images: RGB, or as many channels as the data set has where all its images have one shape.
        origins: (row, column) of the first pixel that was decoded; (0, 0) where all of the image was.
        bad: Which could not be read; their pixels say nothing.
    """

    images: list[UInt8[Array, "_h _w _c"]]
    origins: Int32[Array, "b 2"]
    bad: Bool[Array, " b"]


Use = Callable[[int, UInt8[Array, "_h _w _c"]], bool]


@runtime_checkable
class Pixels(Protocol):
    """Decodes images: each loader has one of its own."""

    def shapes(self, ids: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images in px; (0, 0) of those whose header cannot be read."""

    def decode(self, ids: Int64[Array, " b"], bounds: Int32[Array, "b 4"] | None) -> Decoded:
        """Decode some images, into memory that is the caller's from then on.

        Args:
            ids: As `Shown` numbers them.
            bounds: (first row, end row, first column, end column) that are needed of each; None for all of it.
        """

    def expect(self, ids: Int64[Array, " b"]) -> None:
        """Hear of some images that will be asked for later."""

    def close(self) -> None:
        """End whatever runs in the background."""


@runtime_checkable
class InThreads(Protocol):
    """Decodes images in threads, and hands each over in its thread, while the image lies in that core's cache."""

    def each(self, ids: Int64[Array, " b"], use: Use) -> Bool[Array, " b"]:
        """Decode some images, whole, and say which could be decoded and used.

        Args:
            ids: As `Shown` numbers them.
            use: Called with row and image, in any thread; says whether it could use the image, which it does not keep.
        """


@runtime_checkable
class Foresighted(Protocol):
    """Images that are fetched before they are asked for."""

    def expect(self, image_ids: Int64[Array, " b"]) -> None:
        """Send for some images."""

    def close(self) -> None:
        """End whatever runs in the background."""


class Shown:
    """The stored images that a split shows, by number: its own, and after them the foreign ones that noise shows.

    Args:
        dataset: What to read.
        split: Its training or its test split.
    """

    def __init__(self, dataset: DilutedSet, split: ImageSplit) -> None:
        self.split = split
        self.foreign = dataset.foreign if split is dataset.train else None
        self.shape = dataset.image_shape
        self._num_own = dataset.formula.num_images if split is dataset.train else split.num_images

    def item(self, number: int) -> Item:
        """Return an image as it is stored.

        Raises:
            DamagedImageError: If its bytes are not those that were written.
        """
        if number < self._num_own or self.foreign is None:
            return self.split.item(number)
        return self.foreign.item(number - self._num_own)

    def shapes(self, numbers: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images; (0, 0) of those whose header cannot be read."""
        return np.array([self._shape(number) for number in numbers.tolist()], dtype=np.int64).reshape(-1, 2)

    def _shape(self, number: int) -> tuple[int, int]:
        if self.shape is not None:
            return self.shape[:2]
        try:
            own = number < self._num_own or self.foreign is None
            found = (self.split if own else self.foreign).shape(number if own else number - self._num_own)  # type: ignore[union-attr]
            if found is None:
                item = self.item(number)
                if item.encoding == "raw":
                    return item.height, item.width
                found = read_shape(item.data, item.encoding)[:2]
        except DamagedImageError:
            return 0, 0
        return found

    def expect(self, numbers: Int64[Array, " b"]) -> None:
        """Tell what holds the images which of them will be asked for later."""
        if isinstance(self.split, Foresighted):
            self.split.expect(numbers[numbers < self._num_own])

    def close(self) -> None:
        """End whatever holds the images."""
        if isinstance(self.split, Foresighted):
            self.split.close()
