from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.law_flags import FLAGS, foreign_from_flags, law_from_flags
from pipeline.laws import (
    LAWS,
    Foreign,
    Given,
    Law,
    Map,
    Matrix,
    Pair,
    Structured,
    Symmetric,
    SymmetricInclusive,
    Uniform,
    White,
)
from pipeline.sources.synthetic import synthetic

SMALL = synthetic(num_train=10, num_test=10)
CONFUSION = np.array([[0, 1, 2], [3, 0, 4], [6, 5, 0]])


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("confusion.npy", CONFUSION)
    np.save("t.npy", np.full((3, 3), 1 / 3))
    np.save("labels.npy", np.arange(3))


def test_every_law_of_the_menu_has_its_flags() -> None:
    assert list(FLAGS) == list(LAWS)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("symmetric", Symmetric(0.4)),
        ("symmetric-inclusive", SymmetricInclusive(0.4)),
        ("pair", Pair(0.4)),
        ("map", Map(0.4)),
    ],
)
def test_a_flip_comes_from_its_rate(name: str, law: Law) -> None:
    assert law_from_flags(name, rate=0.4) == law


def test_laws_come_from_their_files() -> None:
    matrix = law_from_flags("matrix", matrix=Path("t.npy"))
    assert isinstance(matrix, Matrix)
    np.testing.assert_array_equal(matrix.matrix(0, 3), np.full((3, 3), 1 / 3))
    given = law_from_flags("given", labels="labels.npy")
    assert isinstance(given, Given)
    assert given.labels.array.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("order", "first"), [(None, [2, 2, 0]), ("confusing", [2, 2, 0]), ("reverse", [1, 0, 1])])
def test_structured_takes_its_order_from_a_confusion_matrix(order: str | None, first: list[int]) -> None:
    law = law_from_flags("structured", delta=0.5, order_of_classes=order, matrix=Path("confusion.npy"), order_seed=4)
    assert isinstance(law, Structured)
    assert law.false_classes(3)[:, 0].tolist() == first
    assert law.order_seed == 0  # what draws nothing tells no two data sets apart


def test_structured_in_random_order_takes_the_seed() -> None:
    found = law_from_flags("structured", delta=0.5, order_of_classes="random", order_seed=4)
    assert found == Structured(0.5, "random", order_seed=4)


def test_foreign_takes_name_and_size_from_its_set() -> None:
    foreign = foreign_from_flags("synthetic", None)
    assert law_from_flags("foreign", foreign=foreign) == Foreign("synthetic", 10_000)
    assert law_from_flags("white") == White()
    assert foreign_from_flags(None, None) is None


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        (None, Path("files"), "--foreign-source files holds the files of which data set"),
        ("cifar", None, "no data set 'cifar': choose one of mnist5k"),
        ("folder", None, "folder needs --foreign-source DIR"),
    ],
)
def test_a_foreign_set_that_cannot_be_opened_says_what_to_do(name: str | None, path: Path | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign_from_flags(name, path)


def test_no_flag_asks_for_no_law() -> None:
    assert law_from_flags(None) is None
    assert law_from_flags("uniform") == Uniform()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("unifrom", {}, "unknown law 'unifrom'; the laws are: uniform, structured"),
        (None, {"rate": 0.1}, "--rate belongs to a law: give --law symmetric or symmetric-inclusive or pair or map"),
        ("uniform", {"rate": 0.0}, "--law uniform takes no flag of its own, not --rate"),
        ("pair", {}, "--law pair needs --rate"),
        ("pair", {"rate": 0.1, "delta": 0.1}, "--law pair takes --rate, not --delta; leave it out"),
        ("pair", {"rate": 1.0}, "rate is 1.0"),
        ("structured", {}, "--law structured needs --delta"),
        ("structured", {"delta": 0.1}, "--order-of-classes confusing needs a confusion matrix: give --matrix FILE"),
        ("structured", {"delta": 0.1, "order_of_classes": "reverse"}, "reverse needs a confusion matrix"),
        ("structured", {"delta": 0.1, "order_of_classes": "best"}, "unknown order of classes 'best'"),
        (
            "structured",
            {"delta": 0.1, "order_of_classes": "random", "matrix": Path("confusion.npy")},
            "'random' takes no confusion matrix",
        ),
        ("structured", {"delta": 2.0, "order_of_classes": "random"}, "delta is 2.0"),
        ("matrix", {}, "--law matrix needs --matrix"),
        ("matrix", {"matrix": Path("confusion.npy")}, "row 0 of the transition matrix sums to 3"),
        ("matrix", {"matrix": Path("nowhere.npy")}, "nowhere.npy does not exist"),
        ("given", {}, "--law given needs --labels"),
        ("foreign", {}, "--law foreign needs --foreign"),
        (None, {"foreign": SMALL}, "--foreign belongs to a law: give --law foreign as well"),
        ("white", {"foreign": SMALL}, "--law white takes no flag of its own, not --foreign"),
        ("given", {"labels": "confusion.npy"}, r"shape \(3, 3\); give a list"),
    ],
)
def test_flags_that_make_no_law_say_what_to_do(name: str | None, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        law_from_flags(name, **flags)
