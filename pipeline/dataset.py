"""A diluted data set as loaders, trainer and tools see it, whether it lies in shards or in memory."""

from __future__ import annotations

import dataclasses
import mmap
import os
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer, UInt8, UInt16
from numpy import ndarray as Array
from PIL import Image

from pipeline.errors import DamagedImageError as DamagedImageError
from pipeline.errors import UserError
from pipeline.laws import Formula, Law, Uniform
from pipeline.manifest import INDEX_DTYPE, Manifest, SplitFiles, read_manifest
from pipeline.order import balanced_order
from pipeline.sources.types import ArraySplit, Augmentation, Item, Source, Split


@runtime_checkable
class ImageSplit(Protocol):
    """The images of one split, by image id."""

    @property
    def num_images(self) -> int:
        """Number of images."""

    @property
    def source_ids(self) -> Integer[Array, " n"]:
        """Where the source keeps every image."""

    @property
    def source_labels(self) -> UInt16[Array, " n"]:
        """The source label of every image."""

    def item(self, image_id: int) -> Item:
        """Return an image as it is stored.

        Raises:
            DamagedImageError: If its bytes are not those that were written.
        """

    def prefix(self, num_images: int) -> ImageSplit:
        """Return the split of the first `num_images` images."""


class MemorySplit:
    """A source's split, put in the data set's order; nothing is copied.

    Args:
        split: The source's split.
        order: Source index of each image id.
    """

    def __init__(self, split: Split, order: Int64[Array, " n"]) -> None:
        self.split = split
        self.order = order
        self.source_labels: UInt16[Array, " n"] = split.labels[order]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.order)

    @property
    def source_ids(self) -> Integer[Array, " n"]:
        """Where the source keeps every image."""
        return self.order

    def item(self, image_id: int) -> Item:
        """Return an image as the source has it."""
        return self.split.item(int(self.order[image_id]))

    def prefix(self, num_images: int) -> MemorySplit:
        """Return the split of the first `num_images` images."""
        return type(self)(self.split, self.order[:num_images])


class ShardSplit:
    """A split that lies in tar shards, which are memory-mapped when they are first read.

    Args:
        folder: Where the shards lie.
        files: The manifest's list of them.
        encoding: The image files' type.
        num_images: Length of the prefix to show; all by default.
    """

    def __init__(self, folder: Path, files: SplitFiles, encoding: str, num_images: int | None = None) -> None:
        self.folder = folder
        self.files = files
        self.encoding = encoding
        self.num_images = files.num_images if num_images is None else num_images
        self._firsts = np.array([shard.first for shard in files.shards])
        self._maps: dict[int, mmap.mmap] = {}
        for file in (files.index, *files.shards):  # stat only: hashes are verify_shards' task
            try:
                found = os.stat(f"{folder}/{file.name}").st_size
            except FileNotFoundError:
                found = None
            if found != file.num_bytes:
                state = "is missing" if found is None else f"has {found:,} bytes"
                raise UserError(
                    f"{folder / file.name} {state}; the manifest says {file.num_bytes:,} bytes: "
                    "run tools/verify_shards, or build the data set again with --force"
                )
        try:
            self.index = np.load(folder / files.index.name, mmap_mode="r")
        except Exception as error:  # NumPy raises ValueError, TokenError, OverflowError … on a bad header
            raise UserError(
                f"{folder / files.index.name} cannot be read ({error}); build the data set again with --force"
            ) from None
        if self.index.dtype != INDEX_DTYPE or self.index.shape != (files.num_images,):
            raise UserError(
                f"{folder / files.index.name} does not fit the manifest; build the data set again with --force"
            )

    @property
    def source_ids(self) -> Integer[Array, " n"]:
        """Where the source keeps every image, in the mapped index."""
        ids: Integer[Array, " n"] = self.index["source"][: self.num_images]
        return ids

    @property
    def source_labels(self) -> UInt16[Array, " n"]:
        """The source label of every image, in the mapped index: nothing is read until a label is asked for."""
        labels: UInt16[Array, " n"] = self.index["label"][: self.num_images]
        return labels

    def item(self, image_id: int) -> Item:
        """Return an image's file, checked against its checksum."""
        row = self.index[image_id]
        shard = int(np.searchsorted(self._firsts, image_id, side="right")) - 1
        data = self._map(shard)[int(row["offset"]) : int(row["offset"]) + int(row["size"])]
        if zlib.crc32(data) != row["crc32"]:
            raise DamagedImageError(f"{self.files.shards[shard].name}: image {image_id} does not match its crc32")
        return Item(data, self.encoding)  # type: ignore[arg-type]

    def prefix(self, num_images: int) -> ShardSplit:
        """Return the split of the first `num_images` images."""
        return type(self)(self.folder, self.files, self.encoding, num_images)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with (self.folder / self.files.shards[shard].name).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


def decode(item: Item) -> UInt8[Array, "h w c"]:
    """Decode an image on the CPU: grey stays one channel, everything else becomes RGB.

    Raises:
        DamagedImageError: If it does not decode.
    """
    if item.encoding == "raw":
        return np.frombuffer(item.data, dtype=np.uint8).reshape(item.height, item.width, item.channels)
    try:
        with Image.open(BytesIO(item.data)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on bad bytes
        raise DamagedImageError(f"does not decode: {error}") from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@dataclass(frozen=True)
class DilutedSet:
    """A diluted data set: images, source labels, and the formula of all the others.

    Args:
        name: The clean set's name.
        classes: Class names; K of them.
        formula: n, K, alpha, law and noise seed.
        train: The n images that are diluted.
        test: The clean test split.
        augmentation: How to augment it in training.
        image_shape: (h, w, c) where all images have one shape, else None.
        mean: Per channel, of the source's whole training split, in units of full scale.
        std: Likewise.
        origin: Where it lies, for people: a folder, or "memory".
    """

    name: str
    classes: tuple[str, ...]
    formula: Formula
    train: ImageSplit
    test: ImageSplit
    augmentation: Augmentation
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    @property
    def num_classes(self) -> int:
        """K."""
        return self.formula.num_classes


def open_shards(folder: Path) -> DilutedSet:
    """Open a folder of shards; this reads the manifest and maps the index, whatever n and α are.

    Raises:
        UserError: If the folder holds no finished data set, or a file is missing or has another size.
    """
    return from_manifest(read_manifest(folder), folder)


def from_manifest(manifest: Manifest, folder: Path) -> DilutedSet:
    """Open the data set that a manifest describes.

    Raises:
        UserError: If a file is missing or has another size.
    """
    train = ShardSplit(folder, manifest.train, manifest.encoding)
    return DilutedSet(
        manifest.name,
        manifest.classes,
        manifest.formula.bind(train),
        train,
        ShardSplit(folder, manifest.test, manifest.encoding),
        manifest.augmentation,
        manifest.image_shape,
        manifest.mean,
        manifest.std,
        str(folder),
    )


def dilute(
    source: Source, *, alpha: int, law: Law | None = None, noise_seed: int = 0, clean: int | None = None
) -> DilutedSet:
    """Dilute a clean set in memory: the same data set as its shards, label for label.

    Args:
        source: The clean set.
        alpha: Noisy labels an image, at least 0.
        law: Where they come from; uniform by default.
        noise_seed: 64 bits.
        clean: Use the first `clean` images of the class-balanced order; all by default.

    Raises:
        UserError: If a number is out of range, or the law does not fit the set.
    """
    num_classes = len(source.classes)
    train = MemorySplit(source.train, balanced_order(source.train.labels, num_classes))
    num_images = check_clean(clean, train.num_images)
    mean, std = pixel_statistics(source.train)
    return DilutedSet(
        source.name,
        source.classes,
        Formula(num_images, num_classes, alpha, (law or Uniform()).bind(train), noise_seed),
        train.prefix(num_images),
        MemorySplit(source.test, balanced_order(source.test.labels, num_classes)),
        source.augmentation,
        common_shape(source),
        mean,
        std,
        "memory",
    )


def view(
    dataset: DilutedSet,
    *,
    alpha: int | None = None,
    law: Law | None = None,
    noise_seed: int | None = None,
    clean: int | None = None,
) -> DilutedSet:
    """Read the same images as another formula; what is None stays as it is (but α, under a law that is a flip: 0).

    Raises:
        UserError: If a number is out of range, or the law does not fit the set.
    """
    formula = dataset.formula
    num_images = check_clean(clean, formula.num_images)
    if alpha is None:
        alpha = 0 if law is not None and law.replaces else formula.alpha
    formula = Formula(
        num_images,
        formula.num_classes,
        alpha,
        (formula.law if law is None else law).bind(dataset.train),
        formula.noise_seed if noise_seed is None else noise_seed,
    )
    train = dataset.train if num_images == dataset.train.num_images else dataset.train.prefix(num_images)
    return dataclasses.replace(dataset, formula=formula, train=train)


def check_clean(clean: int | None, available: int) -> int:
    """Return how many clean images to use.

    Raises:
        UserError: If it is not in [1, available].
    """
    if clean is None:
        return available
    if not 1 <= clean <= available:
        raise UserError(f"--clean {clean}: the training split has {available:,} images; give 1 to {available}")
    return clean


def common_shape(source: Source) -> tuple[int, int, int] | None:
    """Return (h, w, c) of a source that holds all its images in one array, else None."""
    if isinstance(source.train, ArraySplit):
        _, height, width, channels = source.train.images.shape
        return height, width, channels
    return None


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel, from exact sums, in units of full scale."""
    if not isinstance(split, ArraySplit):  # too many pixels to read twice: the field's constants for RGB photos
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    counts = np.stack(
        [np.bincount(split.images[..., c].reshape(-1), minlength=256) for c in range(split.images.shape[3])]
    )
    values = np.arange(256, dtype=np.int64)
    total = counts.sum(axis=1)
    first, second = (counts * values).sum(axis=1), (counts * values**2).sum(axis=1)
    variance = (total * second - first**2) / total.astype(np.float64) ** 2
    mean = tuple(float(x) for x in first / total / 255)
    return mean, tuple(float(max(x, 1.0)) / 255 for x in np.sqrt(variance))
