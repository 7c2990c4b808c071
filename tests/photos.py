"""Small image files of the kinds that real data sets hold, and trees of them as source `folder` reads them."""

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encode(
    number: int = 0, kind: str = "JPEG", mode: str = "RGB", *, width: int = 24, height: int = 17, **options: Any
) -> bytes:
    """Encode a picture that differs from that of any other number."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).convert(mode)
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def on_its_side() -> Image.Exif:
    """EXIF that asks for a rotation by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def bomb() -> bytes:
    """A PNG of a few bytes whose header says 50,000 × 50,000."""
    data = bytearray(encode(kind="PNG"))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


# What is odd and good: its bytes, and what they are.
ODD = {
    "png.JPEG": (encode(1, "PNG"), "png", 3),
    "grey.JPEG": (encode(2, mode="L"), "jpg", 1),
    "cmyk.JPEG": (encode(3, mode="CMYK"), "jpg", 3),
    "exif.JPEG": (encode(4, exif=on_its_side()), "jpg", 3),
    "palette.png": (encode(5, "PNG", "P"), "png", 3),
    "webp.jpg": (encode(6, "WEBP", lossless=True), "webp", 3),
}

# What is bad: its bytes, the weakest check that finds it, and what it is called then.
BAD = {
    "empty.jpg": (b"", "none", "zero bytes"),
    "text.jpg": (b"<html>not found</html>", "none", "not a JPEG, PNG or WebP"),
    "truncated.jpg": (encode(7)[:-40], "header", "truncated"),
    "bomb.png": (bomb(), "header", "50,000 × 50,000 pixels"),
    "damaged.png": (flipped(encode(8, "PNG"), -40), "decode", "does not decode"),
}


def write_tree(
    root: Path, *, num_train: int = 10, num_test: int = 4, more: Mapping[str, bytes] | None = None, **options: Any
) -> Path:
    """Write a tree of two classes.

    Args:
        root: Where.
        num_train: JPEGs for training, besides `more`.
        num_test: JPEGs for the test, besides `more`.
        more: Other files, by their path below `root`.
        options: For `encode`.
    """
    files = dict(more or {})
    for split, count in (("train", num_train), ("test", num_test)):
        for number in range(count):
            shape = {"width": 20 + number, **options}
            files[f"{split}/{'ab'[number % 2]}/{number:03d}.jpg"] = encode(100 * len(split) + number, **shape)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
