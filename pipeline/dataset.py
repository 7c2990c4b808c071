"""A diluted data set as loaders, trainer and tools see it, whether it lies in shards or in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import zlib
from bisect import bisect_right
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
from pipeline.laws import Foreign, Formula, Given, Law, Uniform, White
from pipeline.manifest import ENCODINGS, INDEX_DTYPE, Manifest, SplitFiles, read_manifest
from pipeline.order import balanced_order
from pipeline.sources.types import ArraySplit, Augmentation, Item, Source, Split
from pipeline.storage import Folder, View, open_folder


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

    def shape(self, image_id: int) -> tuple[int, int] | None:
        """Return an image's height and width, where they are known without reading it."""

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

    def shape(self, image_id: int) -> None:
        """Return nothing: a source knows its images by reading them."""

    def prefix(self, num_images: int) -> MemorySplit:
        """Return the split of the first `num_images` images."""
        return type(self)(self.split, self.order[:num_images])


class ShardSplit:
    """A split that lies in shards; local ones are memory-mapped when they are first read.

    Args:
        folder: Where the shards lie.
        files: The manifest's list of them.
        num_images: Length of the prefix to show; all by default.
        check_reads: Whether to check every image against its checksum as it is read.

    Raises:
        UserError: If a local file is missing or has another size, or the index does not fit.
    """

    def __init__(
        self, folder: Folder, files: SplitFiles, num_images: int | None = None, *, check_reads: bool = True
    ) -> None:
        self.folder = folder
        self.files = files
        self.check_reads = check_reads
        self.num_images = files.num_images if num_images is None else num_images
        self._firsts = [shard.first for shard in files.shards]
        self._views: dict[int, View] = {}
        for file in (files.index, *files.shards) if folder.local else ():  # hashes are verify_shards' task
            try:
                found = os.stat(f"{folder.local}/{file.name}").st_size
            except FileNotFoundError:
                found = None
            if found != file.num_bytes:
                state = "is missing" if found is None else f"has {found:,} bytes"
                raise UserError(
                    f"{folder}/{file.name} {state}; the manifest says {file.num_bytes:,} bytes: "
                    "run tools/verify_shards, or build the data set again with --force"
                )
        try:
            self.index = read_index(folder, files.index.name)
        except Exception as error:  # NumPy raises ValueError, TokenError, OverflowError … on a bad header
            raise UserError(
                f"{folder}/{files.index.name} cannot be read ({error}); build the data set again with --force"
            ) from None
        if self.index.dtype != INDEX_DTYPE or self.index.shape != (files.num_rows,):
            raise UserError(
                f"{folder}/{files.index.name} does not fit the manifest; build the data set again with --force"
            )
        self._rows = self.index.view(np.ndarray)  # the same map, without the slow parts of np.memmap

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
        """Return an image as it is stored."""
        offset, size, crc32, _, _, height, width, channels, encoding = self._rows[image_id].item()
        shard = self.shard_of(image_id)
        if shard not in self._views:
            self._views[shard] = self.folder.view(self.files.shards[shard].name)
        data = self._views[shard][offset : offset + size]
        if self.check_reads and zlib.crc32(data) != crc32:
            raise DamagedImageError(f"{self.files.shards[shard].name}: image {image_id} does not match its crc32")
        return Item(data, ENCODINGS[encoding], height, width, channels)

    def shard_of(self, image_id: int) -> int:
        """Return the number of the shard that an image lies in."""
        return bisect_right(self._firsts, image_id) - 1

    def shape(self, image_id: int) -> tuple[int, int] | None:
        """Return an image's height and width, if they were looked at when it was stored."""
        row = self._rows[image_id]
        return (int(row["height"]), int(row["width"])) if row["height"] else None

    def prefix(self, num_images: int) -> ShardSplit:
        """Return the split of the first `num_images` images."""
        return type(self)(self.folder, self.files, num_images, check_reads=self.check_reads)


def read_index(folder: Folder, name: str) -> Array:
    """Open an index: a memory-map of a local file; other storage is read whole, 28 bytes an image."""
    if folder.local:
        return np.load(folder.local / name, mmap_mode="r")  # type: ignore[no-any-return]
    return np.load(BytesIO(folder.read(name)))  # type: ignore[no-any-return]


def decode(item: Item) -> UInt8[Array, "h w c"]:
    """Decode an image on the CPU: grey stays one channel, everything else becomes RGB.

    Raises:
        DamagedImageError: If it does not decode.
    """
    if item.encoding == "raw":
        return np.frombuffer(item.data, dtype=np.uint8).reshape(item.height, item.width, item.channels)
    pixels = np.asarray(_loaded(item))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decoded_shape(item: Item) -> tuple[int, int, int]:
    """Decode an image that is not raw, and return the shape that `decode` would give.

    Raises:
        DamagedImageError: If it does not decode.
    """
    image = _loaded(item)
    return image.height, image.width, len(image.getbands())


def _loaded(item: Item) -> Image.Image:
    try:
        with Image.open(BytesIO(item.data), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            return image if image.mode in ("L", "RGB") else image.convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on bad bytes
        raise DamagedImageError(f"does not decode: {error}") from error


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
        foreign: What law foreign shows as noise, by foreign image id; None if there is nothing of the kind.
        observed: Whether the source labels of training images are as they were found, some of them wrong.

    Raises:
        UserError: If the law shows images that are not there.
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
    foreign: ImageSplit | None = None
    observed: bool = False

    @property
    def wrong_share(self) -> float | None:
        """Expected share of wrong labels by the law; None where nobody knows it."""
        if self.observed or isinstance(self.formula.law, Given):
            return None
        return 1 - self.formula.right_share(self.train.source_labels)

    def __post_init__(self) -> None:
        law = self.formula.law
        if isinstance(law, White) and self.image_shape is None:
            raise UserError(f"law white draws images of one size; those of {self.name} differ: choose another law")
        if isinstance(law, Foreign):
            found = 0 if self.foreign is None else self.foreign.num_images
            if found != law.num_foreign:
                raise UserError(
                    f"law foreign shows {law.num_foreign:,} images of {law.foreign}, this data set has {found:,}: "
                    f"give --law foreign --foreign {law.foreign}"
                )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.formula.num_classes

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images in a batch."""
        size = self.augmentation.size_px
        return self.image_shape or (size, size, 3)


def open_shards(where: Folder | str | Path, *, check_reads: bool = True) -> DilutedSet:
    """Open a folder of shards; this reads the manifest and maps the index, whatever n and α are.

    Args:
        where: A folder, or an address of other storage, such as s3://bucket/folder.
        check_reads: Whether to check every image against its checksum as it is read: most damage decodes without an
            error, to wrong pixels.

    Raises:
        UserError: If the folder holds no finished data set, or a file is missing or has another size.
    """
    folder = where if isinstance(where, Folder) else open_folder(where)
    return from_manifest(read_manifest(folder), folder, check_reads=check_reads)


def from_manifest(manifest: Manifest, folder: Folder, *, check_reads: bool = True) -> DilutedSet:
    """Open the data set that a manifest describes.

    Raises:
        UserError: If a file is missing or has another size.
    """
    train = ShardSplit(folder, manifest.train, check_reads=check_reads)
    return DilutedSet(
        manifest.name,
        manifest.classes,
        manifest.formula.bind(train),
        train,
        ShardSplit(folder, manifest.test, check_reads=check_reads),
        manifest.augmentation,
        manifest.image_shape,
        manifest.mean,
        manifest.std,
        str(folder),
        None if manifest.foreign is None else ShardSplit(folder, manifest.foreign, check_reads=check_reads),
        observed=manifest.observed,
    )


def dilute(
    source: Source,
    *,
    alpha: int,
    law: Law | None = None,
    noise_seed: int = 0,
    clean: int | None = None,
    foreign: Source | None = None,
) -> DilutedSet:
    """Dilute a clean set in memory: the same data set as its shards, label for label.

    Args:
        source: The clean set.
        alpha: Noisy labels an image, at least 0.
        law: Where they come from; uniform by default.
        noise_seed: 64 bits.
        clean: Use the first `clean` images of the class-balanced order; all by default.
        foreign: The set whose training images law foreign shows.

    Raises:
        UserError: If a number is out of range, or the law or the foreign images do not fit the set.
    """
    if foreign is not None and foreign.name == source.name and _fingerprint(foreign) == _fingerprint(source):
        raise UserError(
            f"the foreign images are those of {source.name} itself; with its own images, noise is law uniform"
        )
    num_classes, shape = len(source.classes), common_shape(source)
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
        shape,
        mean,
        std,
        "memory",
        None if foreign is None else _foreign_split(foreign, source.name, shape),
        observed=source.observed,
    )


def view(
    dataset: DilutedSet,
    *,
    alpha: int | None = None,
    law: Law | None = None,
    noise_seed: int | None = None,
    clean: int | None = None,
    foreign: Source | None = None,
) -> DilutedSet:
    """Read the same images as another formula; what is None stays as it is (but α, under a law that is a flip: 0).

    Raises:
        UserError: If a number is out of range, or the law or the foreign images do not fit the set.
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
    shown = dataset.foreign if foreign is None else _foreign_split(foreign, dataset.name, dataset.image_shape)
    return dataclasses.replace(dataset, formula=formula, train=train, foreign=shown)


def _foreign_split(foreign: Source, name: str, shape: tuple[int, int, int] | None) -> MemorySplit:
    """Put foreign images in their class-balanced order; nothing is resized, so their shape must be the clean set's."""
    found = common_shape(foreign)
    if shape is not None and found != shape:
        sizes = "differ in size" if found is None else f"are {found[0]} × {found[1]} × {found[2]}"
        raise UserError(
            f"the images of {foreign.name} {sizes}, those of {name} {shape[0]} × {shape[1]} × {shape[2]} "
            "(height × width × channels); foreign images need the same shape: give another --foreign"
        )
    return MemorySplit(foreign.train, balanced_order(foreign.train.labels, len(foreign.classes)))


def _fingerprint(source: Source) -> bytes:
    digest = hashlib.sha256(source.train.labels.tobytes())
    source.train.fingerprint(digest.update)
    return digest.digest()


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
    mean, std = [], []
    for channel in counts:  # as Python's integers: those of 60,000 images do not fit into 64 bits
        total, first, second = (int((channel * values**power).sum()) for power in range(3))
        mean.append(first / (total * 255))
        std.append(max(math.sqrt((total * second - first**2) / total**2), 1.0) / 255)
    return tuple(mean), tuple(std)
