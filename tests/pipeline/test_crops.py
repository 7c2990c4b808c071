import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from kernels.crops import flips, windows
from kernels.resize import resize_window_plain, resize_windows
from pipeline.crops import centre_crops, random_crops

SIDES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=8)


@given(st.integers(0, 2**64 - 1), SIDES, st.integers(1, 300), st.booleans(), st.integers(0, 2**31))
def test_random_crops_are_the_windows_and_flips_of_the_kernels(
    seed: int, sides: list[tuple[int, int]], size: int, flip: bool, first: int
) -> None:
    shapes = np.array(sides, dtype=np.int64)
    epochs, ids = np.arange(len(sides)) % 3, np.arange(len(sides)) + first
    crops = random_crops(seed, epochs, ids, shapes, size=size, flip=flip)
    top, left, height, width = windows(seed, epochs, ids, shapes[:, 0], shapes[:, 1]).T
    np.testing.assert_array_equal(crops.bounds, np.stack([top, top + height, left, left + width], axis=1))
    np.testing.assert_array_equal(crops.boxes, np.stack([top, left, height / size, width / size], axis=1))
    np.testing.assert_array_equal(crops.flips, flips(seed, epochs, ids) if flip else np.zeros(len(ids), dtype=np.bool_))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_a_crop_within_a_part_of_an_image_shows_the_same_pixels(seed: int, height: int, width: int, size: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shapes, ids = np.array([[height, width]]), np.array([seed])
    crops = random_crops(seed, ids * 0, ids, shapes, size=size, flip=True)
    top, bottom, left, right = crops.bounds[0].tolist()
    part = crops.within(crops.bounds[:, [0, 2]])
    whole, cut = (np.empty((1, size, size, 3), dtype=np.float32) for _ in range(2))
    resize_windows([image], *crops, (0.0,) * 3, (1.0,) * 3, whole)
    resize_windows([image[top:bottom, left:right].copy()], *part, (0.0,) * 3, (1.0,) * 3, cut)
    # The centres differ in their last float64 bits, so that a weight may round to another float32.
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-6)
    assert crops.bounds[0].tolist() == [top, bottom, left, right]  # the original is what it was


def test_some_rows_of_crops_are_those_rows() -> None:
    ids = np.arange(5)
    crops = random_crops(0, ids, ids, np.full((5, 2), 90), size=8, flip=True)
    for found, every in zip(crops.at(np.array([3, 1])), crops, strict=True):
        np.testing.assert_array_equal(found, every[[3, 1]])


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([7, 32, 64, 224, 299]))
@example(375, 500, 224)
@example(500, 375, 224)
@example(1, 3000, 224)
def test_the_centre_is_that_of_torchvision(height: int, width: int, size: int) -> None:
    """Its Resize and CenterCrop, asked for where they put rows and columns instead of pixels."""
    shorter = round(size * 8 / 7)
    low, high = min(height, width), max(height, width)
    longer = int(shorter * high / low)  # torchvision's own arithmetic
    rows, columns = (shorter, longer) if height <= width else (longer, shorter)
    top, left = round((rows - size) / 2.0), round((columns - size) / 2.0)
    crops = centre_crops(np.array([[height, width]]), size=size)
    expected = [top * height / rows, left * width / columns, height / rows, width / columns]
    np.testing.assert_allclose(crops.boxes[0], expected, rtol=1e-12)
    assert crops.bounds.tolist() == [[0, height, 0, width]]
    assert not crops.flips.any()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (80, 61), (700, 301), (40, 900)])
def test_the_pixels_of_evaluation_are_those_of_torchvision(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.clip(np.asarray(image).astype(int) + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
    crops = centre_crops(np.array([[height, width]]), size=224)
    out = np.empty((1, 224, 224, 3), dtype=np.float32)
    resize_windows([pixels], *crops, (0.0,) * 3, (1 / 255,) * 3, out)
    both = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    expected = both(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(np.float32)
    gap = abs(out[0] - expected)  # torchvision rounds to 8 bits between its two passes and after them
    assert gap.mean() <= 1
    assert np.quantile(gap, 0.99) <= 4
    plain = resize_window_plain(pixels, crops.boxes[0], crops.bounds[0], False, size=224)
    np.testing.assert_allclose(out[0], plain, rtol=0, atol=1e-3)
