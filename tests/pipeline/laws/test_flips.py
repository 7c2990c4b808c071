import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws import Formula, Law, Map, Matrix, Pair, StoredArray, Symmetric, SymmetricInclusive

ALL_WRONG = 1 - 2**-40  # the largest rate there is means that every label is drawn, to the 32 bits of a draw


def flipped(law: Law, num_classes: int, num_images: int = 50_000) -> tuple[Array, Array]:
    true = (np.arange(num_images) % num_classes).astype(np.uint16)
    return true, Formula(num_images, num_classes, 0, law).all_labels(np.arange(num_images), true)[:, 0]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_symmetric_excludes_the_true_class(num_classes: int) -> None:
    true, labels = flipped(Symmetric(ALL_WRONG), num_classes)
    assert (labels != true).all()


def test_symmetric_inclusive_draws_the_true_class_too() -> None:
    np.testing.assert_allclose(SymmetricInclusive(0.4).matrix(0, 10), 0.6 * np.eye(10) + 0.04, rtol=1e-15)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_pair_goes_to_the_next_class(num_classes: int) -> None:
    true, labels = flipped(Pair(ALL_WRONG), num_classes)
    np.testing.assert_array_equal(labels, (true + 1) % num_classes)


def test_map_goes_from_truck_bird_deer_cat_and_dog() -> None:
    true, labels = flipped(Map(ALL_WRONG), 10)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pairs = {(names[a], names[b]) for a, b in zip(true.tolist(), labels.tolist(), strict=True) if a != b}
    assert pairs == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("deer", "horse"),
        ("cat", "dog"),
        ("dog", "cat"),
    }
    assert set(true[labels == true].tolist()) == {0, 1, 6, 7, 8}


@pytest.mark.parametrize("law", [Symmetric(0.0), SymmetricInclusive(0.0), Pair(0.0), Map(0.0)], ids=repr)
def test_rate_0_is_no_noise_because_it_was_asked_for(law: Law) -> None:
    true, labels = flipped(law, 10, 1000)
    np.testing.assert_array_equal(labels, true)


@pytest.mark.parametrize("law", [Symmetric, SymmetricInclusive, Pair, Map])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(law: type[Pair], rate: float) -> None:
    with pytest.raises(UserError, match=r"rate is .*; give a number in \[0, 1\)"):
        law(rate)


def test_a_rate_too_small_to_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="rate is 1e-10; give 0, or at least 1e-06"):
        Pair(1e-10)


@given(st.integers(2, 8).flatmap(lambda k: st.lists(st.permutations(range(k)), min_size=1, max_size=4)))
def test_a_matrix_may_be_any_mixture_of_relabellings(permutations: list[list[int]]) -> None:
    num_classes = len(permutations[0])
    matrix = np.mean([np.eye(num_classes)[list(p)] for p in permutations], axis=0)
    if (np.diagonal(matrix) == 1).all():
        with pytest.raises(UserError, match="identity"):
            Matrix(StoredArray(matrix)).check(num_classes=num_classes, alpha=0)
        with pytest.raises(UserError, match=f"is of {num_classes} classes; the data set has {num_classes + 1}"):
            Matrix(StoredArray(matrix)).check(num_classes=num_classes + 1, alpha=0)
        return
    law = Matrix(StoredArray(matrix))
    np.testing.assert_array_equal(law.matrix(0, num_classes), matrix)
    true, labels = flipped(law, num_classes, 2000)
    found = set(zip(true.tolist(), labels.tolist(), strict=True))
    assert found == {(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True)}


def test_rows_of_a_matrix_that_sum_to_nearly_1_are_normalised() -> None:
    law = Matrix(StoredArray(np.full((3, 3), 0.3333333)))
    assert set(flipped(law, 3)[1].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], r"row 1 of the transition matrix sums to 0.9"),
        ([[1.2, -0.2], [0.5, 0.5]], r"row 0 .* sums to 1 \(smallest entry -0.2\)"),
        ([[np.nan, 1], [0.5, 0.5]], "row 0 of the transition matrix"),
        ([[np.inf, 0], [0.5, 0.5]], "row 0 of the transition matrix"),
        ([[0.9, 0.1]], r"shape \(1, 2\)"),
        ([[1.0, 0.0], [0.0, 1.0]], "no label would change"),
        ([[1.0, 0.0], [1e-9, 1 - 1e-9]], "no label would change"),
    ],
)
def test_what_is_no_transition_matrix_is_refused(matrix: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Matrix(StoredArray(np.array(matrix))).check(num_classes=2, alpha=0)


def test_flips_of_different_seeds_and_images_differ() -> None:
    ids, true = np.arange(1000), np.zeros(1000, dtype=np.uint16)
    one, two = (Formula(1000, 10, 0, Symmetric(0.5), seed).all_labels(ids, true) for seed in (1, 2))
    assert 300 < (one != two).sum() < 900  # expected: 722 of 1,000
