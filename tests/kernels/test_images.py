from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array
from torchvision.transforms.v2 import functional as F

from kernels.images import gather_shift, gather_shift_plain, normalised_values
from kernels.jit import num_threads

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def random_batch(
    seed: int, *, batch: int, height: int, width: int, channels: int, shift_px: int
) -> tuple[Array[Any, Any], Array[Any, Any], Array[Any, Any], Array[Any, Any]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    shifts = rng.integers(-shift_px, shift_px + 1, (batch, 2)).astype(np.int8)
    return images, rng.integers(0, 5, batch), shifts, rng.integers(0, 2, batch) == 1


@pytest.mark.parametrize("threads", [1, 2])
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    shift_px=st.integers(0, 12),
)
def test_gather_shift_is_its_plain_twin_on_any_number_of_threads(
    threads: int, seed: int, batch: int, height: int, width: int, channels: int, shift_px: int
) -> None:
    images, image_ids, shifts, flips = random_batch(
        seed, batch=batch, height=height, width=width, channels=channels, shift_px=shift_px
    )
    fast = np.full((batch, channels, height, width), np.nan, dtype=np.float32)
    slow = np.full_like(fast, -7)
    with num_threads(threads):
        gather_shift(images, image_ids, shifts, flips, MEAN[:channels], STD[:channels], fast)
    gather_shift_plain(images, image_ids, shifts, flips, MEAN[:channels], STD[:channels], slow)
    np.testing.assert_array_equal(fast, slow)


def torchvision_pixels(
    images: Array[Any, Any], image_ids: Array[Any, Any], shifts: Array[Any, Any], flips: Array[Any, Any], pad: int
) -> torch.Tensor:
    """Pad by `pad`, crop at (pad + dy, pad + dx), flip: what RandomCrop(padding) and RandomHorizontalFlip do."""
    rows = []
    for image_id, (dy, dx), flip in zip(image_ids, shifts.astype(int), flips, strict=True):
        image = torch.from_numpy(images[image_id]).permute(2, 0, 1)
        padded = F.pad(image, [pad])
        crop = F.crop(padded, int(pad + dy), int(pad + dx), image.shape[1], image.shape[2])
        rows.append(F.horizontal_flip(crop) if flip else crop)
    return torch.stack(rows)


@pytest.mark.parametrize(("side", "channels", "shift_px"), [(28, 1, 2), (32, 3, 4), (9, 2, 9)])
def test_pixels_are_those_of_torchvision(side: int, channels: int, shift_px: int) -> None:
    images, image_ids, shifts, flips = random_batch(
        0, batch=64, height=side, width=side, channels=channels, shift_px=shift_px
    )
    expected = torchvision_pixels(images, image_ids, shifts, flips, shift_px)
    out = np.empty(expected.shape, dtype=np.float32)
    gather_shift(images, image_ids, shifts, flips, (0.0,) * channels, (1 / 255,) * channels, out)
    np.testing.assert_array_equal(out, expected.numpy())  # a std of 1/255 gives the raw pixels back

    mean, std = MEAN[:channels], STD[:channels]
    gather_shift(images, image_ids, shifts, flips, mean, std, out)
    normalised = F.normalize(F.to_dtype(expected, torch.float32, scale=True), list(mean), list(std))
    # torchvision rounds four times to float32 on values up to 2.5; the table rounds once.
    np.testing.assert_allclose(out, normalised.numpy(), rtol=0, atol=1e-6)


def test_normalised_values_are_rounded_once() -> None:
    table = normalised_values(MEAN, STD)
    assert table.dtype == np.float32
    for channel in range(3):
        for x in range(256):
            assert table[channel, x] == np.float32((x / 255 - MEAN[channel]) / STD[channel])


@pytest.mark.parametrize("image_id", [-1, 5, 2**40])
def test_an_image_id_outside_the_set_is_refused(image_id: int) -> None:
    images, image_ids, shifts, flips = random_batch(0, batch=3, height=4, width=4, channels=1, shift_px=1)
    image_ids[1] = image_id
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        gather_shift(images, image_ids, shifts, flips, (0.0,), (1.0,), np.empty((3, 1, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("shape", "channels", "flips"),
    [((2, 1, 4, 4), 1, 3), ((3, 4, 4, 1), 1, 3), ((3, 1, 4, 4), 3, 3), ((3, 1, 4, 4), 1, 2)],
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...], channels: int, flips: int) -> None:
    images, image_ids, shifts, all_flips = random_batch(0, batch=3, height=4, width=4, channels=1, shift_px=1)
    out = np.empty(shape, np.float32)
    with pytest.raises(ValueError, match=r"do not fit|for 1 channels"):
        gather_shift(images, image_ids, shifts, all_flips[:flips], (0.0,) * channels, (1.0,) * channels, out)
