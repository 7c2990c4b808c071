"""What the first bytes of a JPEG, PNG or WebP file say: its encoding and the shape that it decodes to.

Nothing is decoded. EXIF orientation is not looked at: the field's loaders ignore it too, so an image has the shape in
which its pixels are stored.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from pipeline.errors import DamagedImageError

FileEncoding = Literal["jpg", "png", "webp"]

MAX_PIXELS: Final = 89_478_485  # Pillow's limit: a quarter of a GiB of RGB; ImageNet's largest image has 61 million
MAX_SIDE: Final = 65_535  # what two bytes hold, in a JPEG as in our index

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"IEND\xaeB`\x82"
_JPEG_END: Final = b"\xff\xd9"
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_BARE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length
_JPEG_CHANNELS: Final = {1: 1, 3: 3, 4: 3}  # four are CMYK or YCCK, which decode to RGB


class Shape(NamedTuple):
    """Height, width and channels of an image once it is decoded."""

    height: int
    width: int
    channels: int


def encoding_of(data: bytes) -> FileEncoding:
    """Tell what an image file is from its own bytes, whatever it is called.

    Raises:
        DamagedImageError: If it is none of the three.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == _PNG_MAGIC:
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if not data:
        raise DamagedImageError("zero bytes")
    raise DamagedImageError(f"not a JPEG, PNG or WebP file: it begins with {data[:8].hex(' ')}")


def read_shape(data: bytes, encoding: FileEncoding) -> Shape:
    """Read an image's shape from its header, and look whether the file has its end.

    A JPEG without an end-of-image marker, a PNG without its IEND chunk and a WebP shorter than it says are cut short.
    Bytes after the end are allowed. Damage in between is for a decoder to find.

    Args:
        data: The whole file.
        encoding: What `encoding_of` says.

    Raises:
        DamagedImageError: If the header is damaged, the file is cut short, it has 0 or more than `MAX_PIXELS` pixels,
            or its pixels cannot be had in 8 bits.
    """
    try:
        shape = _READERS[encoding](data)
    except (IndexError, struct.error):
        raise DamagedImageError("truncated: it ends within its header") from None
    if max(shape.height, shape.width) > MAX_SIDE:
        raise DamagedImageError(f"{shape.width:,} × {shape.height:,} pixels; a side has at most {MAX_SIDE:,}")
    if not 0 < shape.height * shape.width <= MAX_PIXELS:
        raise DamagedImageError(
            f"{shape.width:,} × {shape.height:,} pixels; allowed are 1 to {MAX_PIXELS:,} (a decompression bomb?)"
        )
    return shape


def jpeg_components(data: bytes) -> int:
    """Return the number of colour components of a JPEG that `read_shape` has accepted: four are CMYK or YCCK."""
    return data[_jpeg_frame(data) + 8]


def _jpeg_shape(data: bytes) -> Shape:
    at = _jpeg_frame(data)
    bits, height, width, components = struct.unpack_from(">BHHB", data, at + 3)
    if bits != 8:
        raise DamagedImageError(f"a JPEG of {bits} bits a channel; only 8 are read: convert it")
    if components not in _JPEG_CHANNELS:
        raise DamagedImageError(f"a JPEG of {components} components; allowed are 1 (grey), 3 and 4 (CMYK)")
    if data.rfind(_JPEG_END) < at:
        raise DamagedImageError("truncated: a JPEG without its end-of-image marker")
    return Shape(height, width, _JPEG_CHANNELS[components])


def _jpeg_frame(data: bytes) -> int:
    """Find the frame header: where its marker's second byte stands."""
    at = 2
    while True:
        at = data.find(b"\xff", at)  # Pillow and libjpeg pass over what may lie before it
        if at < 0:
            raise IndexError
        while data[at] == 0xFF:  # any number of them may stand before a marker
            at += 1
        marker = data[at]
        if marker in _JPEG_FRAMES:
            return at
        if marker in (0xD9, 0xDA):
            raise DamagedImageError("damaged: no frame header before its image data")
        at += 1 if marker in _JPEG_BARE else 1 + struct.unpack_from(">H", data, at + 1)[0]


def _png_shape(data: bytes) -> Shape:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != b"\0\0\0\rIHDR" or struct.unpack_from(">I", data, 29)[0] != zlib.crc32(data[12:29]):
        raise DamagedImageError("damaged: a PNG whose header does not match its own checksum")
    if colour == 0 and bits == 16:
        raise DamagedImageError("a grey PNG of 16 bits, which decoders clip to 8: convert it")
    if data.rfind(_PNG_END) < 0:
        raise DamagedImageError("truncated: a PNG without its IEND chunk")
    return Shape(height, width, 1 if colour == 0 and bits > 1 else 3)  # of one bit, Pillow makes RGB


def _webp_shape(data: bytes) -> Shape:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise DamagedImageError("truncated: a WebP shorter than its header says")
    kind = data[12:16]
    if kind == b"VP8X":
        low, high, low_y, high_y = struct.unpack_from("<HBHB", data, 24)
        return Shape((low_y | high_y << 16) + 1, (low | high << 16) + 1, 3)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Shape((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 3)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Shape(height & 0x3FFF, width & 0x3FFF, 3)
    raise DamagedImageError("damaged: a WebP without image data")


_READERS: Final[dict[str, Callable[[bytes], Shape]]] = {"jpg": _jpeg_shape, "png": _png_shape, "webp": _webp_shape}
