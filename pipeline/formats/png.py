"""PNG files without compression, the same bytes on every machine and for every version of zlib.

An encoder's bytes depend on its library's version; here pixels go into DEFLATE's stored blocks. Decoding them is a
copy. Images of MNIST's size lose one 512-byte tar block to it.

Source: RFC 1950, RFC 1951 section 3.2.4, PNG specification (third edition).
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

_COLOUR_TYPE: Final = {1: 0, 3: 2}
_BLOCK_BYTES: Final = 65_535


def encode_png(pixels: UInt8[Array, "h w c"]) -> bytes:
    """Write an image as a PNG file.

    Args:
        pixels: Grey (c = 1) or RGB (c = 3).

    Raises:
        ValueError: If there are other than 1 or 3 channels.
    """
    height, width, channels = pixels.shape
    if channels not in _COLOUR_TYPE:
        raise ValueError(f"{channels} channels given; an image here has 1 (grey) or 3 (RGB)")
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # filter type 0 before each row
    rows[:, 1:] = pixels.reshape(height, width * channels)
    raw = rows.tobytes()
    stream = [b"\x78\x01"]
    for start in range(0, len(raw), _BLOCK_BYTES):
        block = raw[start : start + _BLOCK_BYTES]
        last = start + _BLOCK_BYTES >= len(raw)
        stream += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    stream.append(struct.pack(">I", zlib.adler32(raw)))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(stream)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
