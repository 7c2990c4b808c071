from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array

from pipeline.counts import NO_COUNTS, Counts

SEEDS = st.integers(0, 2**32 - 1)
CLASSES = st.sampled_from([1, 2, 10, 100, 101, 65_535])


def random_labels(seed: int, num_images: int, alpha: int, num_classes: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, num_classes, num_images).astype(np.uint16)
    return true, generator.integers(0, num_classes, (num_images, 1 + alpha)).astype(np.uint16)


def as_dict(counts: Counts) -> dict[tuple[int, int], int]:
    cells = list(zip(counts.true.tolist(), counts.label.tolist(), strict=True))
    assert cells == sorted(set(cells))
    return dict(zip(cells, counts.num.tolist(), strict=True))


@given(SEEDS, st.integers(0, 40), st.integers(0, 5), CLASSES)
def test_every_label_is_counted_once(seed: int, num_images: int, alpha: int, num_classes: int) -> None:
    true, labels = random_labels(seed, num_images, alpha, num_classes)
    counts = Counts.of(true, labels)
    pairs = [(int(t), int(label)) for t, row in zip(true, labels, strict=True) for label in row]
    assert as_dict(counts) == Counter(pairs)
    assert counts.num_examples == len(pairs)
    assert counts.num_right == sum(t == label for t, label in pairs)


@given(SEEDS, st.integers(0, 40), st.integers(0, 40), CLASSES)
def test_counts_of_parts_add_up_to_those_of_the_whole(seed: int, cut: int, num_images: int, num_classes: int) -> None:
    true, labels = random_labels(seed, num_images, 3, num_classes)
    parts = Counts.of(true[:cut], labels[:cut]) + Counts.of(true[cut:], labels[cut:])
    assert as_dict(parts) == as_dict(Counts.of(true, labels)) == as_dict(NO_COUNTS + parts)


def test_the_dense_matrix_has_true_classes_as_rows() -> None:
    counts = Counts.of(np.array([0, 2], np.uint16), np.array([[0, 1], [1, 1]], np.uint16))
    assert counts.dense(3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("num_classes", [100, 101])
def test_the_file_holds_a_matrix_up_to_100_classes_and_cells_beyond(num_classes: int) -> None:
    counts = Counts.of(*random_labels(0, 50, 3, num_classes))
    data = counts.to_bytes(num_classes)
    assert data == counts.to_bytes(num_classes)
    with np.load(BytesIO(data), allow_pickle=False) as file:
        if num_classes == 100:
            assert list(file) == ["counts"]
            assert np.array_equal(file["counts"], counts.dense(100))
        else:
            assert sorted(file) == ["label", "num", "true"]
            assert as_dict(Counts(file["true"], file["label"], file["num"])) == as_dict(counts)
