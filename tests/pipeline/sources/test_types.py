from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.sources import SOURCES, ArraySplit, Augmentation, open_source


def split_of(labels: list[int], *, num_images: int = 3, num_classes: int = 4) -> ArraySplit:
    images = np.arange(num_images * 2 * 3, dtype=np.uint8).reshape(num_images, 2, 3, 1)
    return ArraySplit(images, np.array(labels, dtype=np.int64), num_classes=num_classes, name="some-labels")


def test_an_item_holds_the_raw_pixels_of_its_image() -> None:
    split = split_of([0, 3, 1])
    item = split.item(1)
    assert (item.encoding, item.height, item.width, item.channels) == ("raw", 2, 3, 1)
    assert item.data == bytes(range(6, 12))
    assert split.name_of(1) == "some-labels image 1"
    assert len(split) == 3
    assert split.labels.dtype == np.uint16
    assert split.labels.tolist() == [0, 3, 1]


def fingerprint(images: Array) -> bytes:
    split = ArraySplit(images, np.zeros(len(images), dtype=np.int64), num_classes=1, name="some-labels")
    found: list[bytes] = []
    split.fingerprint(found.append)
    return b"".join(found)


def test_one_other_pixel_or_another_shape_makes_another_split() -> None:
    images = np.arange(18, dtype=np.uint8).reshape(3, 2, 3, 1)
    assert fingerprint(images) == fingerprint(images.copy())
    changed = images.copy()
    changed[2, 1, 2, 0] ^= 1
    others = [changed, images[::-1], images.reshape(3, 3, 2, 1), images.reshape(3, 2, 1, 3), images.reshape(1, 6, 3, 1)]
    assert len({fingerprint(images), *(fingerprint(np.ascontiguousarray(other)) for other in others)}) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split_of([0, 4, 5]), r"some-labels: label 4 of image 1 \(and 1 more\); allowed are 0 to 3"),
        (
            lambda: split_of([0, 1, -1]),
            r"some-labels: label -1 of image 2 \(and 0 more\); allowed are 0 to 3",
        ),
        (lambda: split_of([0, 1]), "some-labels: 2 labels for 3 images"),
        (lambda: split_of([], num_images=0), "some-labels: images of shape"),
    ],
)
def test_a_split_refuses_what_does_not_fit(make: Callable[[], ArraySplit], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_an_unknown_data_set_lists_the_menu() -> None:
    menu = (
        "mnist5k, mnist, fashion_mnist, cifar10, cifar100, imagenet, webvision, mini_webvision, clothing1m, folder, "
        "synthetic"
    )
    with pytest.raises(UserError, match=f"no data set 'minst': choose one of {menu}$"):
        open_source("minst")


@pytest.mark.parametrize("name", ["mnist5k", "synthetic"])
def test_a_set_that_needs_no_files_refuses_a_path(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is .* takes no --source \\(/somewhere given\\)"):
        open_source(name, Path("/somewhere"))


@pytest.mark.parametrize("name", ["mnist5k", "synthetic"])
def test_a_set_goes_by_its_name_on_the_menu(name: str) -> None:
    source = SOURCES[name](None)
    assert source.name == name
    assert len(source.classes) == 10
    assert len(source.train) > len(source.test) > 0


def test_digits_shift_by_two_without_a_flip_and_synthetic_images_by_four_with_one() -> None:
    assert open_source("mnist5k").augmentation == Augmentation("shift", shift_px=2, flip=False)
    assert open_source("synthetic").augmentation == Augmentation("shift", shift_px=4, flip=True)
