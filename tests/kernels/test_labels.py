import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array
from scipy.stats import chisquare

from kernels.jit import num_threads
from kernels.labels import (
    MAX_CLASSES,
    MAX_TABLE_CLASSES,
    alias_at,
    alias_plain,
    alias_rows,
    alias_table,
    uniform_at,
    uniform_plain,
    uniform_rows,
)

SEEDS = st.integers(0, 2**64 - 1)
IMAGE_IDS = st.integers(0, 2**62)
FALSE_ALARM = 1e-6  # of each chi-square test here; seeds are fixed, so a test that passes goes on passing


def random_matrix(num_classes: int) -> Array:
    return np.random.default_rng(0).dirichlet(np.full(num_classes, 0.3), num_classes)


# K near 2^16 rejects up to half of all half-words, so the redraws are compared too.
@given(SEEDS, IMAGE_IDS, st.integers(1, 10_000_000), st.sampled_from([1, 2, 3, 10, 1000, 32_769, 40_000, MAX_CLASSES]))
def test_one_uniform_label_equals_its_twin(seed: int, image_id: int, copy: int, num_classes: int) -> None:
    found = uniform_at(seed, np.array([image_id]), np.array([copy]), num_classes=num_classes)
    assert found[0] == uniform_plain(seed, image_id, copy, num_classes)


@pytest.mark.parametrize("threads", [1, 2])
@given(SEEDS, st.integers(0, 2**40), st.integers(1, 600), st.integers(0, 19), st.sampled_from([1, 7, 10, 1000, 40_000]))
def test_rows_of_uniform_labels_are_the_labels_one_by_one(
    threads: int, seed: int, first: int, num_images: int, alpha: int, num_classes: int
) -> None:
    ids = np.arange(first, first + num_images)
    with num_threads(threads):
        rows = uniform_rows(seed, ids, num_classes=num_classes, alpha=alpha)
        copies = np.tile(np.arange(1, alpha + 1), num_images)
        one_by_one = uniform_at(seed, np.repeat(ids, alpha), copies, num_classes=num_classes)
    np.testing.assert_array_equal(rows.reshape(-1), one_by_one)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000, 40_000])
def test_uniform_labels_are_uniform(num_classes: int) -> None:
    labels = uniform_rows(1, np.arange(200_000), num_classes=num_classes, alpha=10)
    assert chisquare(np.bincount(labels.reshape(-1), minlength=num_classes)).pvalue > FALSE_ALARM


def test_uniform_labels_have_no_bias_where_a_plain_product_would() -> None:
    # With K = 40,000, a product without rejection gives 25,536 of the classes twice the weight of the others.
    labels = uniform_rows(2, np.arange(100_000), num_classes=40_000, alpha=16).reshape(-1)
    halves = np.bincount(labels % 2)
    assert chisquare(halves).pvalue > FALSE_ALARM
    counts = np.bincount(labels, minlength=40_000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.05)  # Poisson: 1 ± 0.007


def test_labels_of_different_copies_images_and_seeds_are_independent() -> None:
    base = uniform_rows(3, np.arange(100_000), num_classes=10, alpha=9).astype(np.int64)
    other_seed = uniform_rows(4, np.arange(100_000), num_classes=10, alpha=9).astype(np.int64)
    pairs = [(base[:, i], base[:, j]) for i in range(9) for j in range(i)]
    pairs += [(base[1:, 0], base[:-1, 0]), (base[:, 0], other_seed[:, 0])]
    assert min(chisquare(np.bincount(a * 10 + b, minlength=100)).pvalue for a, b in pairs) > FALSE_ALARM


def test_a_smaller_alpha_is_a_prefix_of_a_larger_one() -> None:
    ids = np.arange(1000)
    small = uniform_rows(5, ids, num_classes=10, alpha=10)
    np.testing.assert_array_equal(small, uniform_rows(5, ids, num_classes=10, alpha=20)[:, :10])


@given(SEEDS, IMAGE_IDS, st.integers(0, 10_000_000), st.sampled_from([1, 2, 3, 10, 33]), st.data())
def test_one_alias_label_equals_its_twin(
    seed: int, image_id: int, copy: int, num_classes: int, data: st.DataObject
) -> None:
    table = alias_table(random_matrix(num_classes))
    true = data.draw(st.integers(0, num_classes - 1))
    found = alias_at(seed, np.array([image_id]), np.array([copy]), np.array([true], dtype=np.uint16), table=table)
    assert found[0] == alias_plain(seed, image_id, copy, [int(entry) for entry in table[true]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alpha", [0, 1, 2, 5, 20])
def test_rows_of_alias_labels_are_the_labels_one_by_one(threads: int, alpha: int) -> None:
    table, ids = alias_table(random_matrix(10)), np.arange(2**33, 2**33 + 333)
    classes = (ids % 10).astype(np.uint16)
    with num_threads(threads):
        rows = alias_rows(6, ids, classes, table=table, alpha=alpha)
        copies = np.tile(np.arange(1, alpha + 1), len(ids))
        one_by_one = alias_at(6, np.repeat(ids, alpha), copies, np.repeat(classes, alpha), table=table)
    np.testing.assert_array_equal(rows.reshape(-1), one_by_one)


@given(st.integers(1, 40).flatmap(lambda k: st.lists(st.integers(0, 1000), min_size=k, max_size=k).filter(any)))
def test_a_table_holds_its_probabilities_to_2_to_the_minus_32(weights: list[int]) -> None:
    row = np.array(weights) / sum(weights)
    table = alias_table(row[None])[0]
    columns = len(table)
    mass = np.zeros(columns)
    for column, entry in enumerate(table.tolist()):
        threshold, other = entry >> 16, entry & 0xFFFF
        mass[column] += threshold
        mass[other] += 2**32 - threshold
    assert (mass[len(row) :] == 0).all()
    assert (mass[: len(row)][row == 0] == 0).all()
    assert mass.sum() == columns * 2**32
    # A class is off by its own rounding; the most likely one takes that of the K others too.
    np.testing.assert_allclose(mass[: len(row)] / (columns * 2**32), row, atol=len(row) / columns * 2.0**-32)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_alias_labels_follow_their_matrix(num_classes: int) -> None:
    matrix = random_matrix(num_classes)
    ids = np.arange(2_000)
    for true in (0, num_classes - 1):
        classes = np.full(len(ids), true, dtype=np.uint16)
        labels = alias_rows(7, ids, classes, table=alias_table(matrix), alpha=200).reshape(-1)
        expected = matrix[true] * len(labels)
        usual = expected >= 5  # the chi-square approximation wants five expected in a cell; the rest is one cell
        found = np.bincount(labels, minlength=num_classes)
        cells = [np.append(x[usual], x[~usual].sum()) for x in (found, expected)]
        rest = 1 if cells[1][-1] >= 5 else 0
        kept = [x if rest else x[:-1] for x in cells]
        scaled = kept[1] * kept[0].sum() / kept[1].sum()
        assert chisquare(kept[0], scaled).pvalue > FALSE_ALARM


def test_copy_0_is_drawn_apart_from_the_noisy_copies() -> None:
    table, ids = alias_table(np.full((10, 10), 0.1)), np.arange(100_000)
    classes = np.zeros(len(ids), dtype=np.uint16)
    zero, one = (alias_at(8, ids, np.full(len(ids), copy), classes, table=table).astype(np.int64) for copy in (0, 1))
    assert chisquare(np.bincount(zero * 10 + one, minlength=100)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("row", [[0.5, 0.6], [1.5, -0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_a_row_that_is_no_distribution_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="row 1 of the matrix"):
        alias_table(np.array([[0.5, 0.5], row]))


def test_more_classes_than_a_table_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="4097 classes"):
        alias_table(np.zeros((1, MAX_TABLE_CLASSES + 1)))


def test_a_table_of_the_largest_size_can_be_drawn_from() -> None:
    row = np.zeros((1, MAX_TABLE_CLASSES))
    row[0, -1] = 1
    labels = alias_rows(9, np.arange(100), np.zeros(100, dtype=np.uint16), table=alias_table(row), alpha=3)
    assert (labels == MAX_TABLE_CLASSES - 1).all()
