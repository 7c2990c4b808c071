"""What holds for every law: its draws follow its matrix, and its JSON brings it back."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from numpy import ndarray as Array
from scipy.stats import binom, chisquare

from pipeline.errors import UserError
from pipeline.laws import (
    LAWS,
    Foreign,
    Formula,
    Given,
    Law,
    Map,
    Matrix,
    Pair,
    StoredArray,
    Structured,
    Symmetric,
    SymmetricInclusive,
    Uniform,
    White,
    confusing_order,
    law_array,
    law_from_json,
    law_to_json,
)

FALSE_ALARM = 1e-6  # of each test here; seeds are fixed, so a test that passes goes on passing
ALPHA = 20


def ranking(num_classes: int) -> StoredArray:
    return StoredArray(confusing_order(np.random.default_rng(1).integers(0, 99, (num_classes, num_classes))))


def laws(num_classes: int) -> list[Law]:
    rows = np.random.default_rng(0).dirichlet(np.full(num_classes, 0.3), num_classes)
    found = [
        Uniform(),
        Structured(0.0, "random"),
        Structured(0.01, "confusing", ranking(num_classes)),  # a linear ramp at either K
        Structured(0.6, "reverse", ranking(num_classes)),
        Structured(1.0, "random", order_seed=3),
        Symmetric(0.5),
        SymmetricInclusive(0.5),
        Pair(0.45),
        Matrix(StoredArray(rows)),
    ]
    return [*found, Map(0.4)] if num_classes == 10 else found


CASES = [pytest.param(k, law, id=f"{k}-{law!r}"[:60]) for k in (10, 1000) for law in laws(k)]


def drawn_labels(law: Law, num_classes: int, true: Array) -> Array:
    """Return the labels that are drawn for images of some classes: all copies but a source label."""
    formula = Formula(len(true), num_classes, 0 if law.replaces else ALPHA, law, noise_seed=11)
    labels = formula.all_labels(np.arange(len(true)), true.astype(np.uint16))
    return labels if law.replaces else labels[:, 1:]


def expected_draws(law: Law, num_classes: int) -> Array:
    if law.replaces:
        return law.matrix(0, num_classes)
    return ((1 + ALPHA) * law.matrix(ALPHA, num_classes) - np.eye(num_classes)) / ALPHA


@pytest.mark.parametrize(("num_classes", "law"), CASES)
def test_the_draws_follow_the_matrix(num_classes: int, law: Law) -> None:
    num_images = 300_000 if law.replaces else 15_000
    probabilities = expected_draws(law, num_classes)
    for true in (0, 3, num_classes - 1):
        labels = drawn_labels(law, num_classes, np.full(num_images, true)).reshape(-1)
        found, expected = np.bincount(labels, minlength=num_classes), probabilities[true] * len(labels)
        assert not found[expected == 0].any()
        usual = expected >= 5  # the chi-square approximation wants five expected in a cell; the rest is one cell
        cells = [np.append(x[usual], x[~usual].sum()) for x in (found, expected)]
        cells = cells if cells[1][-1] >= 5 else [x[:-1] for x in cells]
        if len(cells[0]) > 1:
            assert chisquare(cells[0], cells[1] * cells[0].sum() / cells[1].sum()).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("num_classes", "law"), CASES)
def test_no_law_comes_out_as_no_noise(num_classes: int, law: Law) -> None:
    true = np.arange(20 * num_classes) % num_classes
    labels = drawn_labels(law, num_classes, true)
    expected = float(np.diagonal(expected_draws(law, num_classes)).mean())
    assert expected < 0.81  # the mildest is Map: five of ten classes keep their labels
    low, high = binom.interval(1 - FALSE_ALARM, labels.size, expected)  # of independent, unequal shares: narrower still
    assert low <= (labels == true[:, None]).sum() <= high


@pytest.mark.parametrize(("num_classes", "law"), CASES)
def test_a_matrix_is_one_of_transitions(num_classes: int, law: Law) -> None:
    for alpha in [0] if law.replaces else [1, ALPHA]:
        if isinstance(law, Structured) and law.delta == 1 and alpha == 1:
            continue  # does not fit, see test_structured
        matrix = law.matrix(alpha, num_classes)
        assert matrix.shape == (num_classes, num_classes)
        assert matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "law"), CASES)
def test_the_expected_right_share_is_the_mean_of_the_diagonal(num_classes: int, law: Law) -> None:
    true = (np.arange(3000) ** 2 % num_classes).astype(np.uint16)  # some classes have more images than others
    formula = Formula(len(true), num_classes, 0 if law.replaces else ALPHA, law)
    diagonal = np.diagonal(law.matrix(formula.alpha, num_classes))
    assert formula.right_share(true) == pytest.approx(diagonal[true].mean(), rel=1e-12)


ONE_OF_EACH = [*laws(10), Given(StoredArray(np.arange(5, dtype=np.uint16))), Foreign("cifar100", 50_000), White()]


def test_every_law_of_the_menu_is_tried_here() -> None:
    assert {type(law) for law in ONE_OF_EACH} == set(LAWS.values())
    assert all(law.name == name for name, law in LAWS.items())


@pytest.mark.parametrize("law", ONE_OF_EACH, ids=repr)
def test_a_law_survives_its_json(law: Law) -> None:
    fields = json.loads(json.dumps(law_to_json(law)))
    assert len(json.dumps(fields)) < 200  # arrays stand apart
    found = law_from_json(fields, law_array(law))
    assert found == law
    assert hash(found) == hash(law)
    assert pickle.loads(pickle.dumps(law)) == law


@pytest.mark.parametrize("law", [law for law in ONE_OF_EACH if law_array(law) is not None], ids=repr)
def test_another_array_than_the_laws_own_is_refused(law: Law) -> None:
    array = law_array(law)
    assert array is not None
    other = array.copy()
    other.flat[-1] += 1
    for wrong in (None, other, array.astype(np.float32), array[:-1]):
        with pytest.raises(UserError, match="missing, or not the one"):
            law_from_json(law_to_json(law), wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "unifrom"}, "unknown law 'unifrom'; the laws are: uniform, structured, foreign, white, symmetric"),
        ({}, "unknown law 'None'"),
        ({"name": "pair"}, "law pair needs rate"),
        ({"name": "given"}, "law given needs labels"),
        ({"name": "uniform", "rate": 0.1}, "law uniform takes no rate"),
        ({"name": "given", "labels": {}, "source_ids": [1]}, "is missing"),
    ],
)
def test_parameters_that_are_not_the_laws_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        law_from_json(fields)


@pytest.mark.parametrize("law", [law for law in laws(10) if not isinstance(law, Uniform)], ids=repr)
def test_a_number_of_classes_that_does_not_fit_is_refused(law: Law) -> None:
    alpha = 0 if law.replaces else ALPHA
    with pytest.raises(UserError, match="at least 2 classes"):
        Formula(10, 1, alpha, law)
    with pytest.raises(UserError, match="above 4,096 there is law uniform"):
        Formula(10, 4097, alpha, law)
    if law_array(law) is not None or isinstance(law, Map):
        with pytest.raises(UserError, match=r"10 classes.*the data set has 9"):
            Formula(10, 9, alpha, law)


def test_a_stored_array_cannot_be_changed_and_leaves_its_source_alone() -> None:
    array = np.arange(4, dtype=np.uint16)
    stored = StoredArray(array)
    with pytest.raises(ValueError, match="read-only"):
        stored.array[0] = 1
    array[0] = 0  # still ours
    assert stored == StoredArray(array.astype(">u2"))
    assert stored != StoredArray(array[::-1])
    assert stored != StoredArray(array.reshape(2, 2))
    assert stored != StoredArray(array.astype(np.uint32))
