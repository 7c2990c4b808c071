import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.sources import Augmentation, fashion_mnist, open_source
from pipeline.sources.idx import read_idx
from pipeline.sources.types import ArraySplit

SPELLINGS = ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte", "{}.idx{}-ubyte.gz"]


def encode(array: Array, name: str = "") -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    return gzip.compress(data, mtime=0) if name.endswith(".gz") else data


def write_set(
    folder: Path, spelling: str = SPELLINGS[0], *, num_train: int = 20, test_px: int = 6
) -> tuple[Array, Array]:
    """Write a small data set and return its training images and labels."""
    generator = np.random.default_rng(0)
    written = []
    for prefix, count, px in (("train", num_train, 6), ("t10k", 10, test_px)):
        images = generator.integers(0, 256, (count, px, 5), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for stem, array in ((f"{prefix}-images", images), (f"{prefix}-labels", labels)):
            name = spelling.format(stem, array.ndim)
            (folder / name).write_bytes(encode(array, name))
        written.append((images, labels))
    return written[0]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_set_reads_back_as_written(name: str, spelling: str, tmp_path: Path) -> None:
    images, labels = write_set(tmp_path, spelling)
    source = open_source(name, tmp_path)
    assert isinstance(source.train, ArraySplit)
    assert source.name == name
    assert np.array_equal(source.train.images, images[..., None])
    assert source.train.images.flags.writeable
    assert np.array_equal(source.train.labels, labels)
    assert source.train.item(3).data == images[3].tobytes()
    assert len(source.test) == 10
    assert source.augmentation == Augmentation("shift", shift_px=2, flip=name == "fashion_mnist")


@settings(deadline=None)
@given(cut=st.integers(0, 8 + 30 - 1))
def test_every_truncation_is_refused_by_name(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("idx") / "labels"
    path.write_bytes(encode(np.arange(30))[:cut])
    with pytest.raises(UserError, match=str(path)):
        read_idx(path, 1)


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_gzip_file_is_refused_or_reads_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.arange(300).reshape(3, 10, 10).astype(np.uint8)
    whole = bytearray(encode(array, ".gz"))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("idx") / "images.gz"
    path.write_bytes(whole)
    try:
        read = read_idx(path, 3)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017 - a flip in gzip's time stamp is harmless and raises nothing
    else:
        assert at < 10
        assert np.array_equal(read, array)


@settings(deadline=None)
@given(cut=st.integers(0, 40))
def test_every_truncated_gzip_file_is_refused(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("idx") / "labels.gz"
    path.write_bytes(encode(np.arange(30), ".gz")[:cut])
    with pytest.raises(UserError, match=str(path)):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(np.arange(30)) + b"xy", "trailing bytes: 40 bytes where its header 30 asks for 38"),
        (encode(np.arange(30))[:-1], "truncated: 37 bytes where its header 30 asks for 38"),
        (encode(np.arange(30))[:6], "6 bytes, expected at least 8 of header"),
        (encode(np.arange(30).reshape(5, 3, 2)), "magic number 00000803 where 00000801 .* is expected; give"),
        (encode(np.arange(30), ".gz"), "magic number 1f8b.* it is a gzip file: name it .gz"),
        (b"", "magic number .* where 00000801"),
    ],
)
def test_a_wrong_file_says_what_was_found_and_expected(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(UserError, match=f"{tmp_path}/labels: {message}"):
        read_idx(tmp_path / "labels", 1)


def test_a_plain_file_named_gz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.gz").write_bytes(encode(np.arange(30)))
    with pytest.raises(UserError, match=r"labels\.gz: not an intact gzip file, as its name says"):
        read_idx(tmp_path / "labels.gz", 1)


def test_a_path_that_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read: "):
            read_idx(path, 1)


def test_a_missing_file_is_named_in_all_spellings(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        UserError, match=r"holds none of t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte\.gz, t10k-labels\.i"
    ):
        open_source("mnist", tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder {tmp_path}/absent; --source names the folder"):
        open_source("mnist", tmp_path / "absent")


def test_labels_of_another_split_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encode(np.zeros(7)))
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: 7 labels for 20 images"):
        open_source("mnist", tmp_path)


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encode(np.array([0] * 9 + [10])))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte: label 10 of image 9 .*allowed are 0 to 9"):
        open_source("mnist", tmp_path)


def test_splits_of_different_size_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, test_px=7)
    with pytest.raises(UserError, match=r"train images of \(6, 5, 1\), test images of \(7, 5, 1\)"):
        open_source("mnist", tmp_path)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, num_train=0)
    with pytest.raises(UserError, match="at least one image"):
        open_source("mnist", tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DILUTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_mnist_without_a_path_says_what_to_pass(cache: Path) -> None:
    with pytest.raises(UserError, match=r"mnist needs --source DIR, .* or `tools/fetch mnist`"):
        open_source("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_without_a_path_what_was_fetched_is_read(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", cache / "absent")
    (cache / name).mkdir(parents=True)
    write_set(cache / name, SPELLINGS[1])
    assert len(open_source(name).train) == 20


def test_fashion_mnist_without_its_package_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", cache / "absent")
    with pytest.raises(UserError, match=r"apt-get install dataset-fashion-mnist.*tools/fetch fashion_mnist.*--source"):
        open_source("fashion_mnist")


def test_fashion_mnist_opens_from_the_folder_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    write_set(tmp_path, SPELLINGS[1])
    assert len(open_source("fashion_mnist").train) == 20


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_package_holds_all_of_fashion_mnist() -> None:
    source = open_source("fashion_mnist")
    assert isinstance(source.train, ArraySplit)
    assert source.train.images.shape == (60_000, 28, 28, 1)
    assert np.bincount(source.train.labels).tolist() == [6_000] * 10
    assert np.bincount(source.test.labels).tolist() == [1_000] * 10
    assert source.classes[source.train.labels[0]] == "Ankle boot"
