"""Decoded images that are kept for as long as they will be shown again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numpy import ndarray as Array

from pipeline.loaders.types import Decoded, Pixels


class Kept:
    """Decodes whole images and keeps the latest ones.

    Args:
        pixels: Decodes them.
        num_images: How many to keep.
    """

    def __init__(self, pixels: Pixels, num_images: int) -> None:
        self._pixels, self._num_images = pixels, num_images
        self._images: OrderedDict[int, tuple[UInt8[Array, "h w c"], bool]] = OrderedDict()

    def shapes(self, ids: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images."""
        return self._pixels.shapes(ids)

    def decode(self, ids: Int64[Array, " b"], bounds: Int32[Array, "b 4"] | None) -> Decoded:
        """Return some images, whole; only those that are not kept are decoded."""
        missing = np.array([number for number in dict.fromkeys(ids.tolist()) if number not in self._images], np.int64)
        if len(missing):
            decoded = self._pixels.decode(missing, None)
            for number, image, bad in zip(missing.tolist(), decoded.images, decoded.bad.tolist(), strict=True):
                self._images[number] = image, bad
        found = [self._images[number] for number in ids.tolist()]
        for number in ids.tolist():
            self._images.move_to_end(number)
        while len(self._images) > self._num_images:
            self._images.popitem(last=False)
        origins = np.zeros((len(ids), 2), dtype=np.int32)
        return Decoded([image for image, _ in found], origins, np.array([bad for _, bad in found], dtype=np.bool_))

    def expect(self, ids: Int64[Array, " b"]) -> None:
        """Hear of some images that will be asked for later."""
        self._pixels.expect(ids)

    def close(self) -> None:
        """End whatever the decoder runs in the background."""
        self._pixels.close()
