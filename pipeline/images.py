"""Is an image fit to be stored? What the builder asks of every one before it writes it.

An image that passes keeps its bytes untouched. Grey stays one channel. CMYK and YCCK JPEGs pass: decoders turn them
into RGB without a colour profile, and not all into exactly the same. Palettes and transparency decode to RGB. EXIF
orientation is ignored, as by torchvision, DALI and FFCV, so a photo taken upright may lie on its side. What is refused:
a file of zero bytes, one that is no JPEG, PNG or WebP, one cut short, one of more than `MAX_PIXELS` pixels (its header
is enough to say so), and one whose pixels do not fit into 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pipeline.dataset import decoded_shape
from pipeline.errors import DamagedImageError
from pipeline.formats.headers import read_shape
from pipeline.sources.types import Item


def check_item(item: Item, how: str) -> Item:
    """Return an image with its height, width and channels filled in, or say why it cannot be used.

    Args:
        item: As its source has it.
        how: "decode" decodes all of it, "header" looks at its first and last bytes, "none" at nothing.

    Raises:
        DamagedImageError: If it is refused; the message is the reason and does not name the image.
        ValueError: If there is no such check.
    """
    if how not in CHECKS:
        raise ValueError(f"no check {how!r}: choose one of {', '.join(CHECKS)}")
    return CHECKS[how](item)


def _none(item: Item) -> Item:
    return item


def _header(item: Item) -> Item:
    if item.encoding == "raw":
        expected = item.height * item.width * item.channels
        if len(item.data) != expected or not expected:
            raise DamagedImageError(f"{len(item.data):,} bytes of raw pixels where {expected:,} are expected")
        return item
    return replace(item, **read_shape(item.data, item.encoding)._asdict())


def _decode(item: Item) -> Item:
    checked = _header(item)  # first: a decompression bomb must not reach the decoder
    if item.encoding == "raw":
        return checked
    shape = decoded_shape(checked)
    if shape != (checked.height, checked.width, checked.channels):
        raise DamagedImageError(f"damaged: it decodes to {shape}, unlike its header")
    return checked


CHECKS: Final[dict[str, Callable[[Item], Item]]] = {"decode": _decode, "header": _header, "none": _none}
