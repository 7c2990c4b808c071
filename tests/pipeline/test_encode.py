import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import BAD, ODD, encode

from pipeline.dataset import decode
from pipeline.encode import for_ffcv, for_webdataset, shrink
from pipeline.errors import DamagedImageError
from pipeline.images import check_item
from pipeline.sources.types import Item


def pixels_item(channels: int = 3, height: int = 17, width: int = 24) -> Item:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Item(pixels.tobytes(), "raw", height, width, channels)


def odd(name: str) -> Item:
    data, encoding, _ = ODD[name]
    return check_item(Item(data, encoding), "header")  # type: ignore[arg-type]


# ---- as it is ----


@pytest.mark.parametrize("name", ODD)
def test_webdataset_stores_every_file_as_it_is(name: str) -> None:
    item = odd(name)
    assert for_webdataset(item) is item


@pytest.mark.parametrize("channels", [1, 3])
def test_webdataset_stores_pixels_as_a_png_of_the_same_pixels(channels: int) -> None:
    item = pixels_item(channels)
    stored = for_webdataset(item)
    assert (stored.encoding, stored.height, stored.width, stored.channels) == ("png", 17, 24, channels)
    assert np.array_equal(decode(stored), decode(item))


@pytest.mark.parametrize("name", ODD)
def test_ffcv_stores_jpegs_as_they_are_and_all_else_as_rgb_pixels(name: str) -> None:
    item = odd(name)
    stored = for_ffcv(item)
    if name in ("grey.JPEG", "exif.JPEG"):
        assert stored is item
    else:
        assert (stored.encoding, stored.channels) == ("raw", 3)
        assert np.array_equal(decode(stored), decode(item))


def test_ffcv_stores_grey_pixels_as_rgb() -> None:
    item = pixels_item(1)
    stored = for_ffcv(item)
    assert decode(stored).shape == (17, 24, 3)
    assert (decode(stored) == decode(item)).all()


def test_the_shape_of_an_unchecked_jpeg_is_looked_up_for_ffcv() -> None:
    stored = for_ffcv(Item(encode(), "jpg"))
    assert (stored.height, stored.width, stored.channels) == (17, 24, 3)
    with pytest.raises(DamagedImageError, match="truncated"):
        for_ffcv(Item(BAD["truncated.jpg"][0], "jpg"))


# ---- smaller ----


@given(width=st.integers(1, 90), height=st.integers(1, 90), max_side=st.integers(1, 90), known=st.booleans())
def test_no_side_is_longer_than_asked_and_the_shape_of_the_image_stays(
    width: int, height: int, max_side: int, known: bool
) -> None:
    item = Item(encode(width=width, height=height), "jpg")
    stored = shrink(check_item(item, "header") if known else item, max_side)
    if max(width, height) <= max_side:
        assert stored.data is item.data
        return
    assert stored.encoding == "jpg"
    assert decode(stored).shape == (stored.height, stored.width, stored.channels) == (stored.height, stored.width, 3)
    assert max(stored.height, stored.width) == max_side
    scale = max_side / max(width, height)
    assert abs(stored.width - width * scale) <= 0.5 or stored.width == 1
    assert abs(stored.height - height * scale) <= 0.5 or stored.height == 1


@pytest.mark.parametrize("name", ODD)
def test_a_small_image_keeps_its_bytes_and_encoding(name: str) -> None:
    item = odd(name)
    assert shrink(item, 24) is item


@pytest.mark.parametrize("name", ODD)
def test_odd_files_become_small_jpegs_that_show_the_same(name: str) -> None:
    stored = shrink(odd(name), 12, quality=95)
    assert (stored.encoding, stored.width, stored.height, stored.channels) == ("jpg", 12, 8, ODD[name][2])
    means = [decode(item).mean(axis=(0, 1)) for item in (stored, odd(name))]
    assert np.abs(means[0] - means[1]).max() < 6  # of 255: the filter's border and JPEG's rounding


def test_a_lower_quality_takes_fewer_bytes_and_90_is_the_default() -> None:
    item = pixels_item(height=90, width=120)
    sizes = [len(shrink(item, 60, quality=quality).data) for quality in (20, 90, 100)]
    assert sizes == sorted(set(sizes))
    assert shrink(item, 60) == shrink(item, 60, 90)


@pytest.mark.parametrize("name", ["truncated.jpg", "bomb.png", "damaged.png"])
def test_what_does_not_decode_is_not_made_smaller(name: str) -> None:
    with pytest.raises(DamagedImageError):
        shrink(Item(BAD[name][0], "png" if name.endswith("png") else "jpg"), 12)
