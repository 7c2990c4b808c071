import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pipeline.dataset import decode
from pipeline.formats.png import encode_png
from pipeline.sources.types import Item

SIDES = st.integers(1, 80)


def decoded(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        image.verify()  # checks the checksum of every chunk
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@given(SIDES, SIDES, st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
@example(1, 1, 1, 0)
@example(1, 65_534, 1, 0)  # with its filter byte exactly one DEFLATE block
@example(1, 65_535, 1, 0)  # one byte more than a block
@example(2, 65_534, 1, 0)  # exactly two blocks
@example(300, 301, 3, 0)  # five blocks
def test_pillow_decodes_what_was_encoded(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    data = encode_png(pixels)
    found = decoded(data)
    assert found.shape == ((height, width) if channels == 1 else (height, width, 3))
    assert np.array_equal(found.reshape(pixels.shape), pixels)
    assert np.array_equal(decode(Item(data, "png")), pixels)
    # Pillow reads a stream whose last block does not say that it is the last; zlib refuses it.
    assert zlib.decompress(data[41:-16]) == b"".join(b"\0" + row.tobytes() for row in pixels)


def test_the_memory_layout_of_the_pixels_does_not_matter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 5), dtype=np.uint8).transpose(2, 1, 0)
    assert not pixels.flags.c_contiguous
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


def test_the_bytes_never_change() -> None:
    data = encode_png(np.arange(4, dtype=np.uint8).reshape(2, 2, 1))
    assert data.hex() == (
        "89504e470d0a1a0a"
        "0000000d" "49484452" "00000002" "00000002" "0800000000" "57dd52f8"
        "00000011" "49444154" "7801" "01" "0600" "f9ff" "000001" "000203" "00110007" "9a1c9e7f"
        "00000000" "49454e44" "ae426082"
    )  # fmt: skip


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels given.* 1 .*3"):
        encode_png(np.zeros((2, 2, channels), dtype=np.uint8))
