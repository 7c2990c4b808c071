from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.laws import Formula, Given, StoredArray

NOISY = np.array([4, 0, 1, 1, 2, 3], dtype=np.uint16)  # by source index
IDS = np.array([5, 0, 3, 1, 4, 2])
TRUE = np.array([0, 4, 3, 1, 2, 2], dtype=np.uint16)  # by image id: 2 of 6 labels are right


def images(ids: Any = IDS, true: Any = TRUE) -> Any:
    return SimpleNamespace(source_ids=ids, source_labels=true)


def given(labels: Any = NOISY, clean: Any = None) -> Given:
    return Given(StoredArray(np.asarray(labels, dtype=np.uint16)), clean)


def test_labels_are_matched_by_source_index() -> None:
    formula = Formula(6, 5, 0, given()).bind(images())
    ids = np.arange(6)
    np.testing.assert_array_equal(formula.all_labels(ids, TRUE)[:, 0], [3, 4, 1, 0, 2, 1])
    np.testing.assert_array_equal(formula.labels(ids[::-1], ids * 0, TRUE[::-1]), [1, 2, 0, 1, 4, 3])
    assert formula.right_share(TRUE) == pytest.approx(2 / 6)


def test_a_law_that_knows_no_images_gives_no_labels() -> None:
    with pytest.raises(ValueError, match="bind the law"):
        Formula(6, 5, 0, given()).all_labels(np.arange(6), TRUE)


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(UserError, match="given label 4 of training image 0 is none of the 4 classes 0 to 3"):
        Formula(6, 4, 0, given())


@pytest.mark.parametrize("num_labels", [0, 1, 5, 7])
def test_a_wrong_number_of_labels_is_refused(num_labels: int) -> None:
    with pytest.raises(UserError, match=r"labels are given for 6 training images|one class number per training image"):
        given(np.resize(NOISY, num_labels)).bind(images())


def test_a_part_of_the_images_may_be_there_but_no_label_may_be_missing() -> None:
    part = images(IDS[:2], TRUE[:2])
    np.testing.assert_array_equal(Formula(2, 5, 0, given()).bind(part).all_labels(np.arange(2), TRUE[:2])[:, 0], [3, 4])
    with pytest.raises(UserError, match="5 labels are given for at least 6"):
        given(NOISY[:5]).bind(part)


def test_the_source_labels_themselves_are_refused() -> None:
    same = np.empty_like(TRUE)
    same[IDS] = TRUE
    with pytest.raises(UserError, match="no label would change"):
        given(same).bind(images())


def test_labels_for_another_order_of_the_images_are_refused() -> None:
    clean = np.empty_like(TRUE)
    clean[IDS] = TRUE
    given(clean=clean).bind(images())
    with pytest.raises(UserError, match=r"training image [05] for class .* another order"):
        given(clean=clean[::-1]).bind(images())


def test_nobody_knows_the_matrix_of_given_labels() -> None:
    with pytest.raises(UserError, match=r"counts.npz"):
        given().matrix(0, 5)


@pytest.mark.parametrize("array", [NOISY[None], NOISY.astype(np.int64)])
def test_what_is_no_list_of_labels_is_refused(array: Any) -> None:
    with pytest.raises(UserError, match="one class number per training image"):
        Given(StoredArray(array))
