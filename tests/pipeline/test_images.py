"""What is stored and what is refused, for every odd file that real data sets hold."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.dataset import decode
from pipeline.errors import DamagedImageError
from pipeline.formats.headers import MAX_PIXELS, encoding_of, read_shape
from pipeline.images import CHECKS, check_item
from pipeline.sources.types import Item


def picture(mode: str = "RGB", *, width: int = 37, height: int = 21) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rotated_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to look at it
    return exif.tobytes()


def thumbnail_exif() -> bytes:
    """EXIF that holds a whole small JPEG, end marker and all."""
    thumbnail = encode(picture(width=8, height=8), "JPEG")
    return b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\0\0" + b"\0\0\0\0" + thumbnail


GOOD = {
    "jpeg": (encode(picture(), "JPEG"), "jpg", 3),
    "progressive jpeg": (encode(picture(), "JPEG", progressive=True), "jpg", 3),
    "grey jpeg": (encode(picture("L"), "JPEG"), "jpg", 1),
    "cmyk jpeg": (encode(picture("CMYK"), "JPEG"), "jpg", 3),
    "jpeg with exif rotation": (encode(picture(), "JPEG", exif=rotated_exif()), "jpg", 3),
    "jpeg with bytes after its end": (encode(picture(), "JPEG") + b"trailing", "jpg", 3),
    "jpeg with fill bytes": (encode(picture(), "JPEG").replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1), "jpg", 3),
    "jpeg with restart markers": (encode(picture(), "JPEG", restart_marker_blocks=2), "jpg", 3),
    "jpeg with a comment": (encode(picture(), "JPEG", comment=b"\xff\xc0 no frame"), "jpg", 3),
    "png": (encode(picture(), "PNG"), "png", 3),
    "grey png": (encode(picture("L"), "PNG"), "png", 1),
    "png of one bit": (encode(picture("1"), "PNG"), "png", 3),
    "grey png of two bits": (encode(picture("P", width=5), "PNG", bits=2), "png", 3),
    "palette png": (encode(picture("P"), "PNG"), "png", 3),
    "png with transparency": (encode(picture("RGBA"), "PNG"), "png", 3),
    "grey png with transparency": (encode(picture("LA"), "PNG"), "png", 3),
    "lossy webp": (encode(picture(), "WEBP", quality=80), "webp", 3),
    "lossless webp": (encode(picture(), "WEBP", lossless=True), "webp", 3),
    "webp with transparency": (encode(picture("RGBA"), "WEBP"), "webp", 3),
    "webp with exif": (encode(picture(), "WEBP", exif=rotated_exif()), "webp", 3),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("how", ["decode", "header"])
def test_a_header_says_what_the_decoder_finds(name: str, how: str) -> None:
    data, encoding, channels = GOOD[name]
    assert encoding_of(data) == encoding
    checked = check_item(Item(data, encoding), how)  # type: ignore[arg-type]
    assert checked.data is data
    assert (checked.height, checked.width, checked.channels) == decode(checked).shape
    assert checked.channels == channels
    assert checked.width == (5 if "two bits" in name else 37)


@given(width=st.integers(1, 300), height=st.integers(1, 300), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_any_size_is_read_from_the_header(width: int, height: int, kind: str) -> None:
    data = encode(Image.new("RGB", (width, height)), kind)
    assert read_shape(data, encoding_of(data)) == (height, width, 3)


@pytest.mark.parametrize("name", GOOD)
def test_every_truncation_is_refused_without_decoding(name: str) -> None:
    data = GOOD[name][0]
    end = len(data) - (len(b"trailing") if "after its end" in name else 0)
    for cut in range(end):
        with pytest.raises(DamagedImageError):
            read_shape(data[:cut], encoding_of(data[:cut]))


@given(data=st.binary(max_size=200), magic=st.sampled_from([b"", *(good[:30] for good, _, _ in GOOD.values())]))
def test_rubbish_is_refused_and_never_raises_anything_else(data: bytes, magic: bytes) -> None:
    try:
        read_shape(magic + data, encoding_of(magic + data))
    except DamagedImageError as error:
        assert str(error)  # noqa: PT017 - some rubbish is a valid header


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image() -> None:
    data = encode(picture(), "JPEG", exif=thumbnail_exif())
    assert data.count(b"\xff\xd9") == 2
    check_item(Item(data, "jpg"), "header")
    with pytest.raises(DamagedImageError, match="truncated"):
        check_item(Item(data[:-10], "jpg"), "header")


def test_exif_rotation_is_ignored() -> None:
    checked = check_item(Item(GOOD["jpeg with exif rotation"][0], "jpg"), "decode")
    assert (checked.width, checked.height) == (37, 21)


def bomb_png(width: int = 50_000, height: int = 50_000) -> bytes:
    data = bytearray(GOOD["png"][0])
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def bomb_jpeg() -> bytes:
    data = bytearray(GOOD["jpeg"][0])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
    return bytes(data)


def deep_jpeg(*, bits: int = 8, components: int = 3, height: int = 21) -> bytes:
    data = bytearray(GOOD["jpeg"][0])
    at = data.index(b"\xff\xc0") + 4
    data[at] = bits
    data[at + 1 : at + 3] = struct.pack(">H", height)
    data[at + 5] = components
    return bytes(data)


def grey_of_16_bits() -> bytes:
    return encode(Image.fromarray(np.full((5, 7), 40_000, dtype=np.uint16)), "PNG")


BAD = [
    (bomb_png(), "png", "50,000 × 50,000 pixels; allowed are 1 to 89,478,485"),
    (bomb_jpeg(), "jpg", "50,000 × 50,000 pixels; allowed are 1 to 89,478,485"),
    (bomb_png(0, 5), "png", "0 × 5 pixels"),
    (bomb_png(65_536, 1), "png", "65,536 × 1 pixels; a side has at most 65,535"),
    (bomb_png(1, 65_536), "png", "1 × 65,536 pixels; a side has at most 65,535"),
    (deep_jpeg(height=0), "jpg", "37 × 0 pixels"),
    (deep_jpeg(bits=12), "jpg", "12 bits a channel; only 8"),
    (deep_jpeg(components=2), "jpg", "2 components; allowed are 1"),
    (grey_of_16_bits(), "png", "16 bits"),
    (GOOD["png"][0].replace(b"IHDR", b"IHDr"), "png", "damaged: a PNG whose header"),
    (GOOD["png"][0][:-5], "png", "truncated: a PNG without its IEND"),
    (GOOD["jpeg"][0][:-5], "jpg", "truncated: a JPEG without its end-of-image marker"),
    (GOOD["lossy webp"][0][:-5], "webp", "truncated: a WebP shorter than its header says"),
    (GOOD["lossy webp"][0].replace(b"VP8 ", b"VP9 "), "webp", "damaged: a WebP without image data"),
    (b"\xff\xd8\xff\xda\0\x02", "jpg", "damaged: no frame header"),
    (GOOD["jpeg"][0][:40], "jpg", "truncated: it ends within its header"),
]


@pytest.mark.parametrize(("data", "encoding", "reason"), BAD)
@pytest.mark.parametrize("how", ["decode", "header"])
def test_what_cannot_be_used_is_refused_with_the_reason(
    data: bytes, encoding: str, reason: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.images.decoded_shape", lambda item: pytest.fail("a refused header must not be decoded")
    )
    with pytest.raises(DamagedImageError, match=reason):
        check_item(Item(data, encoding), how)  # type: ignore[arg-type]


def test_the_limit_of_pixels_is_allowed_and_one_row_more_is_not() -> None:
    height = MAX_PIXELS // 9_973
    assert read_shape(bomb_png(9_973, height), "png") == (height, 9_973, 3)
    with pytest.raises(DamagedImageError):
        read_shape(bomb_png(9_973, height + 1), "png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"<html>not found</html>", "not a JPEG, PNG or WebP file: it begins with 3c 68 74 6d 6c 3e 6e 6f"),
        (b"GIF89a", "not a JPEG, PNG or WebP file"),
        (b"RIFF\0\0\0\0WAVE", "not a JPEG, PNG or WebP file"),
    ],
)
def test_what_is_no_image_has_no_encoding(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedImageError, match=reason):
        encoding_of(data)


def test_damage_in_the_middle_is_found_by_decoding_only() -> None:
    data = bytearray(encode(picture(width=200, height=200), "PNG"))
    data[len(data) // 2] ^= 0xFF
    item = Item(bytes(data), "png")
    check_item(item, "header")
    with pytest.raises(DamagedImageError, match="does not decode"):
        check_item(item, "decode")


def test_an_image_that_decodes_to_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.images.decoded_shape", lambda item: (21, 37, 1))
    with pytest.raises(DamagedImageError, match=r"it decodes to \(21, 37, 1\), unlike its header"):
        check_item(Item(GOOD["jpeg"][0], "jpg"), "decode")


@pytest.mark.parametrize("how", ["decode", "header"])
def test_raw_pixels_must_be_as_many_as_their_shape_says(how: str) -> None:
    item = Item(bytes(24), "raw", 2, 4, 3)
    assert check_item(item, how) == item
    for wrong in (Item(bytes(23), "raw", 2, 4, 3), Item(b"", "raw", 0, 4, 3)):
        with pytest.raises(DamagedImageError, match="bytes of raw pixels where"):
            check_item(wrong, how)


def test_no_check_looks_at_nothing() -> None:
    item = Item(b"", "jpg")
    assert check_item(item, "none") is item


def test_an_unknown_check_lists_the_menu() -> None:
    assert list(CHECKS) == ["decode", "header", "none"]
    with pytest.raises(ValueError, match="no check 'full': choose one of decode, header, none"):
        check_item(Item(b"", "jpg"), "full")
