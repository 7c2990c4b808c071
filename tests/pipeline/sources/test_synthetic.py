import hashlib

import numpy as np
import pytest
from numpy import ndarray as Array

from pipeline.sources import open_source
from pipeline.sources.synthetic import synthetic
from pipeline.sources.types import ArraySplit, Split


def images_of(split: Split) -> Array:
    assert isinstance(split, ArraySplit)
    return split.images


def test_the_default_set_never_changes() -> None:
    source = open_source("synthetic")
    assert [hashlib.sha256(images_of(split).tobytes()).hexdigest() for split in (source.train, source.test)] == [
        "f437113273496e8b542e6a9a656793ab9374e26014c22ebab2b283ad2b5834fa",
        "34d4632fc3032d5d23300d75ca6a1d3b555fad9efe289b7c3caa4e3c79eb74dd",
    ]
    assert images_of(source.train).shape == (10_000, 32, 32, 3)
    assert np.bincount(source.train.labels).tolist() == [1_000] * 10
    assert np.bincount(source.test.labels).tolist() == [100] * 10


def test_an_image_does_not_depend_on_how_many_there_are() -> None:
    few, many = synthetic(num_train=5, num_test=3), synthetic(num_train=1_500, num_test=1_200)
    assert np.array_equal(images_of(few.train), images_of(many.train)[:5])
    assert np.array_equal(images_of(few.test), images_of(many.test)[:3])


@pytest.mark.parametrize(("height", "width", "channels", "num_classes"), [(28, 28, 1, 10), (5, 9, 3, 3), (1, 1, 1, 1)])
def test_sets_of_any_size_can_be_made(height: int, width: int, channels: int, num_classes: int) -> None:
    source = synthetic(num_train=7, num_test=4, height=height, width=width, channels=channels, num_classes=num_classes)
    assert images_of(source.train).shape == (7, height, width, channels)
    assert len(source.test) == 4
    assert len(source.classes) == num_classes


def test_no_two_images_and_no_two_seeds_are_alike() -> None:
    source, other = synthetic(num_train=300, num_test=300), synthetic(num_train=300, num_test=300, seed=1)
    images = [images_of(split) for split in (source.train, source.test, other.train, other.test)]
    assert len(np.unique(np.concatenate(images).reshape(1_200, -1), axis=0)) == 1_200


def test_the_noise_depends_on_the_seed() -> None:
    # Two images of one class: their difference is free of the pattern, up to rounding by 1 each.
    one, other = (
        np.subtract(*images_of(synthetic(num_train=2, num_test=1, num_classes=1, seed=seed).train), dtype=np.int16)
        for seed in (0, 1)
    )
    assert np.mean(np.abs(one - other) > 2) > 0.9


def test_the_pattern_depends_on_the_seed() -> None:
    one, other = (
        images_of(synthetic(num_train=400, num_test=1, num_classes=1, seed=seed).train).mean(axis=0) for seed in (0, 1)
    )
    # The noise of a mean of 400 has a standard deviation of 0.75 * 74 / 20 = 2.8; patterns span 0 to 63.
    assert np.abs(one - other).mean() > 10


def test_the_classes_can_be_learnt_from_one_pass_of_means() -> None:
    source = synthetic(num_train=1_000, num_test=500)
    train, test = (images_of(split).reshape(len(split), -1).astype(np.float64) for split in (source.train, source.test))
    means = np.stack([train[source.train.labels == label].mean(axis=0) for label in range(10)])
    distance = ((test[:, None] - means) ** 2).sum(axis=-1)
    # Seeded, so there is no false alarm; class means are the ideal classifier of template plus noise.
    assert (distance.argmin(axis=1) == source.test.labels).mean() > 0.99
