import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy import ndarray as Array
from PIL import Image
from torchvision.transforms.v2 import functional as F

from kernels.jit import num_threads
from kernels.resize import resize_window_plain, resize_windows, window_resizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # gives pixel values back


def random_windows(
    seed: int, *, batch: int, largest: int, whole: bool = False
) -> tuple[list[Array[Any, Any]], Array[Any, Any], Array[Any, Any]]:
    """Images of any size, and a window of each: (first row, end row, first column, end column)."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*rng.integers(1, largest + 1, 2), 3), dtype=np.uint8) for _ in range(batch)]
    bounds = np.empty((batch, 4), dtype=np.int32)
    for row, image in enumerate(images):
        for axis in (0, 1):
            side = image.shape[axis]
            ends = (0, side) if whole else sorted(rng.choice(side + 1, 2, replace=False).tolist())
            bounds[row, 2 * axis : 2 * axis + 2] = ends
    return images, bounds, rng.integers(0, 2, batch) == 1


def boxes_of(bounds: Array[Any, Any], size: int) -> Array[Any, Any]:
    top, bottom, left, right = bounds.T.astype(np.float64)
    return np.stack([top, left, (bottom - top) / size, (right - left) / size], axis=1)


@pytest.mark.parametrize("antialias", [True, False])
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 5),
    largest=st.sampled_from([1, 2, 9, 70]),
    size=st.integers(1, 24),
)
@example(0, 3, 200, 1)
def test_windows_are_those_of_the_plain_twin(antialias: bool, seed: int, batch: int, largest: int, size: int) -> None:
    images, bounds, flips = random_windows(seed, batch=batch, largest=largest)
    boxes = boxes_of(bounds, size)
    out = np.full((batch, size, size, 3), np.nan, dtype=np.float32)
    resize_windows(images, boxes, bounds, flips, **PIXELS, out=out, antialias=antialias)
    for row, image in enumerate(images):
        expected = resize_window_plain(image, boxes[row], bounds[row], bool(flips[row]), size=size, antialias=antialias)
        # Sums of up to 200 × 200 products in float32, of values up to 255: some 10 roundings of 255 × 2^-24 each.
        np.testing.assert_allclose(out[row], expected, rtol=0, atol=1e-3)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 16),
    scales=st.tuples(*[st.floats(0.05, 6)] * 2),
    starts=st.tuples(*[st.floats(-9, 60)] * 2),
)
def test_a_box_need_not_lie_where_the_pixels_are(
    seed: int, size: int, scales: tuple[float, float], starts: tuple[float, float]
) -> None:
    images, bounds, flips = random_windows(seed, batch=1, largest=50)
    boxes = np.array([[*starts, *scales]])
    out = np.full((1, size, size, 3), np.nan, dtype=np.float32)
    resize_windows(images, boxes, bounds, flips, **PIXELS, out=out)
    top, bottom, left, right = bounds[0]
    inside = np.full_like(images[0], 255)
    inside[top:bottom, left:right] = images[0][top:bottom, left:right]
    other = np.empty_like(out)
    resize_windows([inside], boxes, bounds, flips, **PIXELS, out=other)
    np.testing.assert_array_equal(out, other)  # pixels out of bounds are never looked at
    assert (out >= -0.001).all()
    assert (out <= 255.001).all()


@pytest.mark.parametrize("size", [7, 32, 100])
def test_a_window_that_has_the_size_of_the_output_is_copied(size: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 130, 3), dtype=np.uint8)
    bounds = np.array([[11, 11 + size, 5, 5 + size]], dtype=np.int32)
    for flip in (False, True):
        out = np.empty((1, size, size, 3), dtype=np.float32)
        resize_windows([image], boxes_of(bounds, size), bounds, np.array([flip]), **PIXELS, out=out)
        expected = image[11 : 11 + size, 5 : 5 + size]
        np.testing.assert_allclose(out[0], expected[:, ::-1] if flip else expected, atol=1e-4)


def smooth(seed: int, height: int, width: int) -> Array[Any, Any]:
    """A picture with edges and some noise, as photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse).astype(int) + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(375, 500, 224), (224, 224, 224), (97, 143, 224), (500, 20, 64), (300, 400, 32), (1, 1, 8)],
)
@pytest.mark.parametrize("antialias", [True, False])
def test_pixels_are_those_of_torchvision(height: int, width: int, size: int, antialias: bool) -> None:
    image = smooth(0, height + 20, width + 30)
    bounds = np.array([[7, 7 + height, 13, 13 + width]], dtype=np.int32)
    out = np.empty((1, size, size, 3), dtype=np.float32)
    resize_windows([image], boxes_of(bounds, size), bounds, np.array([False]), **PIXELS, out=out, antialias=antialias)
    crop = torch.from_numpy(image[7 : 7 + height, 13 : 13 + width].copy()).permute(2, 0, 1)
    exact = F.resize(crop.float(), [size, size], antialias=antialias).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(out[0], exact, rtol=0, atol=0.02)  # float32, in another order
    rounded = F.resize(crop, [size, size], antialias=antialias).permute(1, 2, 0).numpy().astype(np.float32)
    gap = abs(out[0] - rounded)  # torchvision rounds to 8 bits between its two passes and after them
    assert gap.mean() <= 1
    assert np.quantile(gap, 0.99) <= 4


def test_mean_and_std_are_applied_to_each_channel() -> None:
    images, bounds, flips = random_windows(1, batch=4, largest=40)
    raw, out = (np.empty((4, 9, 9, 3), dtype=np.float32) for _ in range(2))
    resize_windows(images, boxes_of(bounds, 9), bounds, flips, **PIXELS, out=raw)
    resize_windows(images, boxes_of(bounds, 9), bounds, flips, MEAN, STD, out)
    np.testing.assert_allclose(out, (raw / 255 - np.array(MEAN)) / np.array(STD), rtol=0, atol=1e-5)


def test_the_number_of_threads_and_the_rest_of_the_batch_change_nothing() -> None:
    images, bounds, flips = random_windows(2, batch=23, largest=90)
    boxes = boxes_of(bounds, 16)
    results = []
    for threads in (1, 2):
        out = np.empty((23, 16, 16, 3), dtype=np.float32)
        with num_threads(threads):
            resize_windows(images, boxes, bounds, flips, MEAN, STD, out)
        results.append(out)
    alone = np.empty_like(results[0])
    for row in range(23):
        at = slice(row, row + 1)
        resize_windows(images[at], boxes[at], bounds[at], flips[at], MEAN, STD, alone[at])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], alone)


def test_kernels_run_as_plain_python() -> None:
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import numpy as np\n"
        "from kernels.resize import resize_window_plain, resize_windows, window_resizer\n"
        "image = np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)\n"
        "box, bound = np.array([[1.0, 2.0, 2.0, 1.5]]), np.array([[1, 9, 2, 8]], dtype=np.int32)\n"
        "out = np.empty((1, 4, 4, 3), dtype=np.float32)\n"
        "resize_windows([image], box, bound, np.array([True]), (0.0,) * 3, (1 / 255,) * 3, out)\n"
        "assert abs(out[0] - resize_window_plain(image, box[0], bound[0], True, size=4)).max() < 1e-3\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"NUMBA_DISABLE_JIT": "1"}, timeout=60)


GOOD: dict[str, Any] = {
    "images": [np.zeros((9, 8, 3), dtype=np.uint8)] * 2,
    "boxes": np.ones((2, 4)),
    "bounds": np.array([[0, 9, 0, 8]] * 2, dtype=np.int32),
    "flips": np.zeros(2, dtype=np.bool_),
    "out": np.empty((2, 5, 5, 3), dtype=np.float32),
}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("images", GOOD["images"][:1]),
        ("images", [GOOD["images"][0], np.zeros((9, 8, 1), dtype=np.uint8)]),
        ("images", [GOOD["images"][0], np.zeros((9, 8, 3), dtype=np.float32)]),
        ("images", [GOOD["images"][0], np.zeros((9, 16, 3), dtype=np.uint8)[:, ::2]]),
        ("images", [GOOD["images"][0], np.zeros((8, 8, 3), dtype=np.uint8)]),
        ("bounds", np.array([[0, 9, 0, 8], [0, 10, 0, 8]], dtype=np.int32)),
        ("bounds", np.array([[0, 9, 0, 8], [0, 9, -1, 8]], dtype=np.int32)),
        ("bounds", np.array([[0, 9, 0, 8], [4, 4, 0, 8]], dtype=np.int32)),
        ("bounds", GOOD["bounds"][:1]),
        ("boxes", np.ones((1, 4))),
        ("boxes", np.zeros((2, 4))),
        ("boxes", np.full((2, 4), np.nan)),
        ("flips", np.zeros(3, dtype=np.bool_)),
        ("out", np.empty((3, 5, 5, 3), dtype=np.float32)),
        ("out", np.empty((2, 5, 4, 3), dtype=np.float32)),
        ("out", np.empty((2, 5, 5, 3))),
    ],
)
def test_what_does_not_fit_is_refused(name: str, wrong: Any) -> None:
    resize_windows(**GOOD, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"fit|contiguous|outside|output|scale|images for"):
        resize_windows(**GOOD | {name: wrong}, mean=MEAN, std=STD)


@pytest.mark.parametrize("antialias", [True, False])
def test_one_row_at_a_time_gives_the_bits_of_all_at_once(antialias: bool) -> None:
    images, bounds, flips = random_windows(5, batch=9, largest=60)
    boxes = boxes_of(bounds, 16)
    together, single = (np.full((9, 16, 16, 3), np.nan, dtype=np.float32) for _ in range(2))
    resize_windows(images, boxes, bounds, flips, MEAN, STD, together, antialias=antialias)
    resize = window_resizer(boxes, bounds, flips, MEAN, STD, single, antialias=antialias)
    for row in reversed(range(9)):
        resize(row, images[row])
    assert np.array_equal(together, single)
    with pytest.raises(ValueError, match="outside of an image"):
        resize(0, images[0][: bounds[0][1] - 1].copy())
