"""A tree that looks like ImageNet to whatever reads or decodes it, made from photos that Python packages ship.

Image i is of class i mod K. It is a blend of two random crops of photos (natural image statistics), a pattern of its
class, and film grain, as a JPEG file; sizes in pixels and bytes are distributed like ImageNet's (mean near 110 KB).
Each is a pure function of (seed, split, i), but the bytes depend on the version of Pillow's encoder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from kernels import philox
from pipeline.errors import UserError

Progress = Callable[[int], None]

FIRST_WNID: Final = 90_000_000  # WordNet's own ids end long before
TILES: Final = 3  # the pattern of a class is repeated 3 × 3 times over an image, so that a crop shows it whole
CELLS: Final = 4  # and has 4 × 4 smooth cells

# (package, file): photos of everyday scenes in colour.
_PHOTOS: Final = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
)
_PIP_NAMES: Final = {"sklearn": "scikit-learn", "skimage": "scikit-image"}

# Width, height and weight: the commonest sizes of ImageNet's training images, and some that stand for the others.
_SIZES: Final = (
    (500, 375, 45),
    (375, 500, 13),
    (500, 333, 14),
    (333, 500, 6),
    (500, 500, 4),
    (500, 400, 3),
    (400, 300, 4),
    (320, 240, 3),
    (250, 188, 2),
    (640, 480, 3),
    (800, 600, 1),
    (1024, 768, 1),
    (1600, 1200, 1),
)
_QUALITIES: Final = range(92, 98)

# High bits of the coordinates of domain SYNTHETIC; `synthetic` uses those below 2^42. Then image << 24 | block.
_TRAIN: Final = 1 << 60
_VAL: Final = 2 << 60
_CLASSES: Final = 3 << 60


def write_synthetic_imagenet(
    folder: Path,
    *,
    num_images: int = 2_000,
    num_classes: int = 20,
    num_val: int | None = None,
    seed: int = 0,
    progress: Progress = lambda images: None,
) -> None:
    """Write train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; the folder appears when it is whole.

    Args:
        folder: Must not exist, or be empty.
        num_images: Training images, at least one a class.
        num_classes: K, 1 to 10,000.
        num_val: Validation images; by default a tenth of `num_images`, but at least one a class.
        seed: 64 bits.
        progress: Called with the number of images written since the last call.

    Raises:
        UserError: If a number is out of range, the folder holds something, a package that ships photos is missing, or
            the disk refuses.
    """
    num_val = max(num_classes, num_images // 10) if num_val is None else num_val
    if not 1 <= num_classes <= 10_000:
        raise UserError(f"--classes {num_classes}: give 1 to 10,000")
    if min(num_images, num_val) < num_classes:
        raise UserError(
            f"--images {num_images:,} ({num_val:,} for validation) with --classes {num_classes:,}: "
            "every class needs at least one of each"
        )
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed {seed}: give a whole number in [0, 2^64)")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; remove it, or give another --out")
    photos = _read_photos()
    patterns = class_patterns(seed, num_classes)
    part = folder.absolute().with_name(f".{folder.name}.synthetic-imagenet.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        for split in ("train", "val"):
            for label in range(num_classes):
                (part / split / wnid_of(label)).mkdir(parents=True)

        def write(split: str, kind: int, index: int) -> None:
            label = index % num_classes
            data = _jpeg(seed, kind, index, patterns[label], photos)
            name = f"{wnid_of(label)}_{index}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
            (part / split / wnid_of(label) / f"{name}.JPEG").write_bytes(data)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and NumPy let go of the interpreter's lock
            for split, kind, count in (("train", _TRAIN, num_images), ("val", _VAL, num_val)):
                for _ in pool.map(partial(write, split, kind), range(count)):
                    progress(1)
        part.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; make room, or give another --out"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def wnid_of(label: int) -> str:
    """Return the WordNet id that stands for a class."""
    return f"n{FIRST_WNID + label:08d}"


def class_patterns(seed: int, num_classes: int) -> UInt8[Array, "k h w 3"]:
    """Draw the pattern of every class: 4 × 4 colours, tiled 3 × 3 times."""
    first = np.uint64(_CLASSES) + (np.arange(num_classes, dtype=np.uint64) << np.uint64(24))
    cells = [_bytes(seed, int(at), CELLS * CELLS * 3).reshape(CELLS, CELLS, 3) for at in first]
    return np.tile(np.stack(cells), (1, TILES, TILES, 1))


def _jpeg(seed: int, kind: int, index: int, pattern: UInt8[Array, "h w 3"], photos: list[Image.Image]) -> bytes:
    """Make one image.

    Args:
        seed: 64 bits.
        kind: Coordinates of its split.
        index: Its number in the split.
        pattern: Of its class.
        photos: What it is made of.
    """
    first = kind + (index << 24)
    choice = iter(_bytes(seed, first, 64).view("<u4").tolist())
    weights = np.array([weight for _, _, weight in _SIZES])
    row = int(np.searchsorted(np.cumsum(weights), next(choice) % weights.sum(), side="right"))
    width, height, _ = _SIZES[row]

    def crop() -> Image.Image:
        photo = photos[next(choice) % len(photos)]
        # As large as fits at the image's aspect, times 0.5 to 1.
        scale = min(photo.width / width, photo.height / height) * (0.5 + next(choice) * 2.0**-33)
        left, top = (
            (side - scale * wanted) * next(choice) * 2.0**-32
            for side, wanted in ((photo.width, width), (photo.height, height))
        )
        box = (left, top, left + scale * width, top + scale * height)
        resized: Image.Image = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if next(choice) % 2 else resized

    scene = Image.blend(crop(), crop(), 0.25 + next(choice) * 2.0**-33)
    signal = Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC)
    grain = _bytes(seed, first + (1 << 20), width * height).reshape(height, width, 1)
    strength = 14 + next(choice) % 25  # of 256: grain of up to ±7 to ±19
    pixels = np.asarray(scene, dtype=np.int32) * 3 + np.asarray(signal)
    pixels = (pixels * 64 + (grain.astype(np.int32) - 128) * strength + 128) >> 8
    out = BytesIO()
    quality = _QUALITIES[next(choice) % len(_QUALITIES)]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _bytes(seed: int, first: int, count: int) -> UInt8[Array, " n"]:
    """Draw bytes from the blocks first, first + 1, ...; sixteen a block."""
    at = np.uint64(first) + np.arange(-(-count // 16), dtype=np.uint64)
    return philox.blocks(seed, philox.SYNTHETIC, at).astype("<u4", copy=False).view(np.uint8).reshape(-1)[:count]


def _read_photos() -> list[Image.Image]:
    """Read the packages' photos without importing the packages."""
    photos = []
    for package, name in _PHOTOS:
        spec = importlib.util.find_spec(package)
        file = Path((spec.submodule_search_locations or ["."])[0] if spec else ".") / name
        try:
            with Image.open(file) as photo:
                photos.append(photo.convert("RGB"))
        except OSError as error:
            raise UserError(
                f"synthetic-imagenet is made from photos of {_PIP_NAMES[package]}, and {name} cannot be read "
                f"({type(error).__name__}): run `pip install --force-reinstall {_PIP_NAMES[package]}`"
            ) from None
    return photos
