"""The whole set as uint8 on the device; gather, shift, flip and normalise there. The reference of all loaders."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int8, Int32, Int64, UInt8
from numpy import ndarray as Array
from torch import Tensor

from kernels.crops import flips, shifts
from kernels.images import gather_shift, normalised_values
from kernels.white import white_images
from pipeline.dataset import DamagedImageError, DilutedSet, ImageSplit, MemorySplit, decode
from pipeline.laws import Foreign, White
from pipeline.loaders.augmented import Augmented
from pipeline.loaders.types import Decoded, How, Loader, Shown
from pipeline.sources.types import ArraySplit, Augmentation
from pipeline.stream import Places

# Training, validation and other evaluations of one split share its pixels, on the device too; they go with the split.
_DECODED: WeakKeyDictionary[ImageSplit, tuple[UInt8[Array, "n h w c"], Bool[Array, " n"]]] = WeakKeyDictionary()
_ON_DEVICE: WeakKeyDictionary[ImageSplit, dict[torch.device, UInt8[Tensor, "n h w c"]]] = WeakKeyDictionary()


class Resident:
    """Images of one split on one device, and the foreign ones that its examples show.

    Args:
        dataset: Where shape and statistics come from; all its images must have one shape.
        split: The images.
        seed: The run's seed; draws shifts and flips.
        augmentation: How to augment; kind "none" for evaluation.
        device: Where batches are made.

    Raises:
        UserError: If the images differ in size.
    """

    def __init__(
        self,
        dataset: DilutedSet,
        split: ImageSplit,
        *,
        seed: int,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        if dataset.image_shape is None:
            raise TypeError("images of differing sizes do not fit into one array")
        self.seed, self.augmentation, self.device = seed, augmentation, device
        self.mean, self.std, self.formula = dataset.mean, dataset.std, dataset.formula
        if split not in _DECODED:
            _DECODED[split] = read_pixels(split, dataset.image_shape)
        pixels, damaged = _DECODED[split]
        shared = _ON_DEVICE.setdefault(split, {})
        if split is dataset.train and isinstance(self.formula.law, Foreign) and dataset.foreign is not None:
            foreign, damaged_foreign = read_pixels(dataset.foreign, dataset.image_shape)
            pixels, damaged = np.concatenate([pixels, foreign]), np.concatenate([damaged, damaged_foreign])
            shared = {}
        self.pixels, self.damaged = pixels, damaged
        if device.type != "cpu":
            if device not in shared:
                shared[device] = torch.from_numpy(pixels).to(device)
            self.on_device = shared[device]
            self.table = torch.tensor(normalised_values(self.mean, self.std), device=device)

    def images(
        self, places: Places, example_ids: Int64[Array, " b"]
    ) -> tuple[Float32[Tensor, "b c h w"], Bool[Array, " b"]]:
        """Make a batch of the images at some places, and say which of them could not be read."""
        shown = self.formula.shown(places.image_ids, places.copies)
        bad: Bool[Array, " b"] = self.damaged[shown] & (shown >= 0)
        return self._images(places, example_ids, shown), bad

    def _images(
        self, places: Places, example_ids: Int64[Array, " b"], shown: Int64[Array, " b"]
    ) -> Float32[Tensor, "b c h w"]:
        batch, augmentation = len(example_ids), self.augmentation
        if augmentation.kind == "shift":
            shift = shifts(self.seed, places.epochs, example_ids, augmentation.shift_px)
        else:
            shift = np.zeros((batch, 2), dtype=np.int8)
        flip = flips(self.seed, places.epochs, example_ids) if augmentation.flip else np.zeros(batch, dtype=np.bool_)
        pixels = self.pixels
        if isinstance(self.formula.law, White):
            pixels, shown = self._with_noise(shown, example_ids), np.arange(batch)
        if self.device.type != "cpu":
            return gather_shift_torch(
                self.on_device if pixels is self.pixels else torch.from_numpy(pixels).to(self.device),
                torch.from_numpy(shown).to(self.device, non_blocking=True),
                torch.from_numpy(shift).to(self.device, non_blocking=True),
                torch.from_numpy(flip).to(self.device, non_blocking=True),
                self.table,
            )
        _, height, width, channels = pixels.shape
        out = np.empty((batch, channels, height, width), dtype=np.float32)
        gather_shift(pixels, shown, shift, flip, self.mean, self.std, out)
        return torch.from_numpy(out)

    def _with_noise(self, shown: Int64[Array, " b"], example_ids: Int64[Array, " b"]) -> UInt8[Array, "b h w c"]:
        """Put clean images and white noise into a batch of pixels; on the CPU, for any device."""
        noisy = shown < 0
        pixels = np.empty((len(shown), *self.pixels.shape[1:]), dtype=np.uint8)
        pixels[~noisy] = self.pixels[shown[~noisy]]
        pixels[noisy] = white_images(
            self.formula.noise_seed, example_ids[noisy], pixels.shape[1:], mean=self.mean, std=self.std
        )
        return pixels

    def expect(self, places: Places) -> None:
        """All images are there already."""

    def close(self) -> None:
        """Nothing runs in the background."""


class AllDecoded:
    """Images of any size, all decoded beforehand, by Pillow.

    Args:
        shown: The images.
        num_images: How many there are.
    """

    def __init__(self, shown: Shown, num_images: int) -> None:
        self._images: list[UInt8[Array, "_h _w _c"] | None] = []
        self._shapes = shown.shapes(np.arange(num_images))
        for number in range(num_images):
            try:
                self._images.append(decode(shown.item(number)))
            except DamagedImageError:
                self._images.append(None)

    def shapes(self, ids: Int64[Array, " b"]) -> Int64[Array, "b 2"]:
        """Return (height, width) of some images."""
        shapes: Int64[Array, "b 2"] = self._shapes[ids]  # of headers: some say "cut short" of what still decodes
        return shapes

    def decode(self, ids: Int64[Array, " b"], bounds: Int32[Array, "b 4"] | None) -> Decoded:
        """Return some images, whole."""
        images = [self._images[number] for number in ids.tolist()]
        nothing = np.zeros((1, 1, 3), dtype=np.uint8)
        return Decoded(
            [nothing if image is None else image for image in images],
            np.zeros((len(ids), 2), dtype=np.int32),
            np.array([image is None for image in images], dtype=np.bool_),
        )

    def expect(self, ids: Int64[Array, " b"]) -> None:
        """All images are there already."""

    def close(self) -> None:
        """Nothing runs in the background."""


def open_resident(dataset: DilutedSet, split: ImageSplit, how: How) -> Loader:
    """Open the images of a split, all decoded and in memory."""
    if how.augmentation.kind not in ("window", "centre"):
        return Resident(dataset, split, seed=how.seed, augmentation=how.augmentation, device=how.device)
    foreign = dataset.foreign if split is dataset.train else None
    pixels = AllDecoded(Shown(dataset, split), split.num_images + (foreign.num_images if foreign else 0))
    return Augmented(pixels, dataset, split, how)


def read_pixels(split: ImageSplit, shape: tuple[int, int, int]) -> tuple[UInt8[Array, "n h w c"], Bool[Array, " n"]]:
    """Decode a whole split into one array.

    Returns:
        The pixels, zero where an image is damaged, and which images are damaged.
    """
    if isinstance(split, MemorySplit) and isinstance(split.split, ArraySplit):
        return split.split.images[split.order], np.zeros(split.num_images, dtype=np.bool_)
    pixels = np.zeros((split.num_images, *shape), dtype=np.uint8)
    damaged = np.zeros(split.num_images, dtype=np.bool_)
    for image_id in range(split.num_images):
        try:
            image = decode(split.item(image_id))[:, :, : shape[2]]  # a beton holds grey as three equal channels
            if image.shape != shape:
                raise DamagedImageError(f"image {image_id} is {image.shape}, not {shape}")
            pixels[image_id] = image
        except DamagedImageError:
            damaged[image_id] = True
    return pixels, damaged


def gather_shift_torch(
    images: UInt8[Tensor, "n h w c"],
    image_ids: Int64[Tensor, " b"],
    shift: Int8[Tensor, "b 2"],
    flip: Bool[Tensor, " b"],
    table: Float32[Tensor, "c 256"],
) -> Float32[Tensor, "b c h w"]:
    """Do what `kernels.images.gather_shift` does, with torch operations on the images' device.

    Args:
        images: The whole set.
        image_ids: Rows to gather.
        shift: (dy, dx) in px.
        flip: Whether to mirror the columns.
        table: The normalised value of each pixel value, per channel.
    """
    _, height, width, channels = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + shift[:, :1].long()  # b h
    columns = torch.arange(width, device=device).expand(len(flip), width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + shift[:, 1:].long()  # b w
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images[image_ids[:, None, None], rows[:, :, None], columns[:, None, :]]  # b h w c
    pixels = torch.where(inside[..., None], pixels, 0).permute(0, 3, 1, 2).long()  # b c h w
    return table[torch.arange(channels, device=device)[None, :, None, None], pixels]
