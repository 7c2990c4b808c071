"""Batches of decoded images: crop and resize, or shift; flip, normalise. The same for every decoder."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray as Array
from torch import Tensor

from kernels.crops import flips, shifts
from kernels.images import gather_shift
from kernels.resize import resize_windows, window_resizer
from kernels.white import white_images
from pipeline.crops import Crops, centre_crops, random_crops
from pipeline.dataset import DilutedSet, ImageSplit
from pipeline.loaders.buffers import Buffers
from pipeline.loaders.types import Decoded, How, InThreads, Pixels
from pipeline.stream import Places


class Augmented:
    """A loader of images that are decoded when they are asked for.

    Args:
        pixels: Decodes them.
        dataset: Where formula and statistics come from.
        split: Its training or test split.
        how: How batches are made.
    """

    def __init__(self, pixels: Pixels, dataset: DilutedSet, split: ImageSplit, how: How) -> None:
        self.pixels, self.formula, self.shape = pixels, dataset.formula, dataset.image_shape
        self.training = split is dataset.train
        self.mean, self.std = dataset.mean, dataset.std
        self.how, self.seed, self.augmentation = how, how.seed, how.augmentation
        self._buffers = Buffers()

    def images(
        self, places: Places, example_ids: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        """Make a batch of the images at some places, and say which of them could not be read."""
        shown = self._shown(places)
        make = self._cropped if self.augmentation.kind in ("window", "centre") else self._shifted
        images, bad = make(places, example_ids, shown)
        return images.to(self.how.device, non_blocking=True), bad

    def expect(self, places: Places) -> None:
        """Hear of some places that will be asked for later."""
        self.pixels.expect(self._shown(places))

    def close(self) -> None:
        """End whatever the decoder runs in the background."""
        self.pixels.close()

    def _shown(self, places: Places) -> Int64[Array, " b"]:
        return self.formula.shown(places.image_ids, places.copies) if self.training else places.image_ids

    def _cropped(
        self, places: Places, example_ids: Int64[Array, " b"], shown: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        size, shapes = self.augmentation.size_px, self.pixels.shapes(shown)
        if self.augmentation.kind == "window":
            flip = self.augmentation.flip
            crops = random_crops(self.seed, places.epochs, example_ids, np.maximum(shapes, 1), size=size, flip=flip)
        else:
            crops = centre_crops(np.maximum(shapes, 1), size=size)
        known = np.flatnonzero(shapes.all(axis=1))
        out = self._buffers.take((len(shown), size, size, 3), np.float32)
        target = out if len(known) == len(shown) else self._buffers.take((len(known), size, size, 3), np.float32)
        good = self._fill(shown[known], crops.at(known), target)
        if target is not out:
            out[known] = target
        bad = np.ones(len(shown), dtype=np.bool_)
        bad[known[good]] = False
        return torch.from_numpy(out).permute(0, 3, 1, 2), bad  # channels_last, as fast nets want it

    def _fill(self, ids: Int64[Array, " b"], crops: Crops, out: Float32[Array, "b s s 3"]) -> Bool[Array, " b"]:
        """Decode and crop some images; say which could be."""
        if isinstance(self.pixels, InThreads):
            resize = window_resizer(*crops, self.mean, self.std, out, antialias=self.how.antialias)
            ends = crops.bounds[:, [1, 3]].tolist()

            def use(row: int, image: UInt8[Array, "_h _w _c"]) -> bool:
                bottom, right = ends[row]
                if image.shape[0] < bottom or image.shape[1] < right:  # some headers lie
                    return False
                resize(row, rgb(image))
                return True

            return self.pixels.each(ids, use)
        decoded = self.pixels.decode(ids, crops.bounds if self.augmentation.kind == "window" else None)
        crops = crops.within(decoded.origins)
        found = np.array([image.shape[:2] for image in decoded.images], dtype=np.int64).reshape(-1, 2)
        good: Bool[Array, " b"] = ~decoded.bad & (found >= crops.bounds[:, [1, 3]]).all(axis=1)
        rows = np.flatnonzero(good)
        part = out if good.all() else np.empty((len(rows), *out.shape[1:]), dtype=np.float32)
        images = [rgb(decoded.images[row]) for row in rows.tolist()]
        resize_windows(images, *crops.at(rows), self.mean, self.std, part, antialias=self.how.antialias)
        if part is not out:
            out[rows] = part
        return good

    def _shifted(
        self, places: Places, example_ids: Int64[Array, " b"], shown: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        if self.shape is None:
            raise TypeError("images of differing sizes are cropped, not shifted")
        batch = len(shown)
        pixels = np.zeros((batch, *self.shape), dtype=np.uint8)
        stored = np.flatnonzero(shown >= 0)
        decoded: Decoded = self.pixels.decode(shown[stored], None)
        bad = np.zeros(batch, dtype=np.bool_)
        for row, image, damaged in zip(stored.tolist(), decoded.images, decoded.bad.tolist(), strict=True):
            bad[row] = damaged or image.shape[:2] != self.shape[:2]
            if not bad[row]:
                pixels[row] = image[:, :, : self.shape[2]]  # a beton holds grey as three equal channels
        white = np.flatnonzero(shown < 0)
        if len(white):
            noise = example_ids[white]
            pixels[white] = white_images(self.formula.noise_seed, noise, self.shape, mean=self.mean, std=self.std)
        shift = np.zeros((batch, 2), dtype=np.int8)
        if self.augmentation.kind == "shift":
            shift = shifts(self.seed, places.epochs, example_ids, self.augmentation.shift_px)
        flip = np.zeros(batch, dtype=np.bool_)
        if self.augmentation.flip:
            flip = flips(self.seed, places.epochs, example_ids)
        height, width, channels = self.shape
        out = np.empty((batch, channels, height, width), dtype=np.float32)
        gather_shift(pixels, np.arange(batch), shift, flip, self.mean, self.std, out)
        return torch.from_numpy(out), bad


def rgb(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w 3"]:
    """Return an image in three channels: grey is repeated."""
    if image.shape[2] == 3 and image.flags.c_contiguous:  # nearly all are; the rest below takes 20 µs
        return image
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
