"""What is stored of an image: its own bytes wherever a format takes them, else pixels, or a smaller JPEG when asked."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np
import PIL
from PIL import Image, features

from pipeline.dataset import decode
from pipeline.formats.headers import jpeg_components, read_shape
from pipeline.formats.png import encode_png
from pipeline.sources.types import Item

DEFAULT_QUALITY: Final = 90


def for_webdataset(item: Item) -> Item:
    """Return a file as it is, and raw pixels as a PNG."""
    if item.encoding != "raw":
        return item
    return Item(encode_png(decode(item)), "png", item.height, item.width, item.channels)


def for_ffcv(item: Item) -> Item:
    """Return what FFCV's decoders take: a JPEG as it is, unless it is CMYK; all else as raw RGB pixels.

    Raises:
        DamagedImageError: If it is damaged.
    """
    if item.encoding == "jpg":
        if not item.height:  # not checked: FFCV's rows need the shape all the same
            item = Item(item.data, "jpg", *read_shape(item.data, "jpg"))
        if jpeg_components(item.data) < 4:
            return item
    pixels = decode(item)
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return Item(rgb.tobytes(), "raw", *rgb.shape)


def shrink(item: Item, max_side: int, quality: int = DEFAULT_QUALITY) -> Item:
    """Make an image whose longer side is over `max_side` px a JPEG of just that; return all others as they are.

    The filter is Pillow's antialiased bicubic one; grey stays grey; metadata go.

    Raises:
        DamagedImageError: If it is damaged.
    """
    if item.height and max(item.height, item.width) <= max_side:
        return item
    pixels = decode(item)
    height, width, channels = pixels.shape
    if max(height, width) <= max_side:
        return item
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels if channels > 1 else pixels[:, :, 0]).resize(size, Image.Resampling.BICUBIC)
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Item(stream.getvalue(), "jpg", size[1], size[0], channels)


def encoder_version() -> str:
    """Name the library that `shrink` encodes with: its bytes may be others in another version."""
    return f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
