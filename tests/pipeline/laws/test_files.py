import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.laws.files import read_labels, read_matrix, write_matrix

LABELS = np.array([3, 0, 2, 2, 65_534])


def csv(folder: Path, text: str) -> Path:
    path = folder / "file.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, ">i4"])
def test_labels_come_from_npy_in_any_whole_type(tmp_path: Path, dtype: Any) -> None:
    labels = (LABELS % 200).astype(dtype)
    np.save(tmp_path / "labels.npy", labels)
    found = read_labels(str(tmp_path / "labels.npy"))
    np.testing.assert_array_equal(found.labels, LABELS % 200)
    assert found.clean is None


@pytest.mark.parametrize(
    "text",
    [
        "3\n0\n2\n2\n65534\n",
        "label\n3\n0\n2\n2\n65534",
        "\ufefflabel\r\n3\r\n0\r\n2\r\n2\r\n65534\r\n\r\n",
        "0,3\n1,0\n2,2\n3,2\n4,65534\n",
        "id,label\n4,65534\n3, 2\n1,0\n0,3\n2,2\n",
    ],
)
def test_labels_come_from_csv_by_line_or_by_id(tmp_path: Path, text: str) -> None:
    np.testing.assert_array_equal(read_labels(str(csv(tmp_path, text))).labels, LABELS)


CIFAR_N = {"clean_label": np.arange(5), "worse_label": LABELS, "random_label1": LABELS[::-1].copy()}


@pytest.mark.parametrize("zipped", [True, False])
def test_labels_come_from_a_file_like_cifar_ns(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save(CIFAR_N, path, _use_new_zipfile_serialization=zipped)
    found = read_labels(f"{path}:worse_label")
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.clean, np.arange(5))
    np.testing.assert_array_equal(read_labels(f"{path}:random_label1").labels, LABELS[::-1])


def test_labels_come_from_a_file_that_was_written_under_numpy_1(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(CIFAR_N, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"numpy._core.multiarray") == 1
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_labels(f"{path}:worse_label").labels, LABELS)


def test_labels_come_from_a_tensor_and_a_list(tmp_path: Path) -> None:
    for content in (torch.from_numpy(LABELS), LABELS.tolist(), LABELS):
        torch.save(content, tmp_path / "a.pt")
        np.testing.assert_array_equal(read_labels(str(tmp_path / "a.pt")).labels, LABELS)


def test_the_only_noisy_labels_of_a_dictionary_need_no_key(tmp_path: Path) -> None:
    torch.save({"clean_label": np.arange(5), "noisy_label": LABELS}, tmp_path / "CIFAR-100_human.pt")
    np.testing.assert_array_equal(read_labels(str(tmp_path / "CIFAR-100_human.pt")).labels, LABELS)


def test_several_labels_or_a_wrong_key_list_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(CIFAR_N, path)
    with pytest.raises(UserError, match=r"several labels; give --labels .*a.pt:KEY with one of worse_label, random_l"):
        read_labels(str(path))
    with pytest.raises(UserError, match=r"no 'worst_label'; give --labels .*a.pt:KEY with one of worse_label"):
        read_labels(f"{path}:worst_label")


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npy"
    np.save(path, LABELS)
    np.testing.assert_array_equal(read_labels(str(path)).labels, LABELS)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil.txt"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"worse_label": Evil()}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds more than arrays of whole numbers"):
        read_labels("a.pt:worse_label")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="holds more than arrays of whole numbers"):
        read_labels("b.pt")
    np.save(tmp_path / "c.npy", np.array([Evil()]), allow_pickle=True)
    with pytest.raises(UserError, match=r"c.npy cannot be read as .npy"):
        read_labels("c.npy")
    with pytest.raises(UserError, match=r"c.npy cannot be read as .npy: it is damaged, or holds no array of numbers; "):
        read_matrix(Path("c.npy"))
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("label\n", "one label a line"),
        ("1\n2.5\n", "line 2: '2.5' is no whole number"),
        ("1.0\n2.0\n", "line 1: '1.0' is no whole number"),
        ("1\n\ncat\n", "line 3: 'cat' is no whole number"),
        ("1\n-1\n", "label -1 of training image 1 is no class number"),
        ("1\n65535\n", "label 65535 of training image 1 is no class number"),
        ("1\n99999999999999999999\n", "larger than any label"),
        ("0,1\n0,2\n", "its ids are not 0 to 1, each once"),
        ("1,1\n2,2\n", "its ids are not 0 to 1, each once"),
        ("0,1\n2\n", "columns"),
        ("1,2,3\n", "columns"),
    ],
)
def test_a_csv_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_labels(str(csv(tmp_path, text)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0]), "float64"),
        (np.array([True]), "bool"),
        (np.array([[1]]), r"shape \(1, 1\)"),
        (np.array([], dtype=np.int64), r"shape \(0,\)"),
        (np.array([1, -2]), "label -2 of training image 1"),
        (np.array([2**63], dtype=np.uint64), "is no class number"),
    ],
)
def test_an_array_of_something_else_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        read_labels(str(tmp_path / "a.npy"))


def test_a_file_that_is_missing_broken_or_of_another_type_is_named(tmp_path: Path) -> None:
    for name in ("a.npy", "a.csv", "a.pt", "a.pt:key"):
        with pytest.raises(UserError, match="does not exist"):
            read_labels(str(tmp_path / name))
    for name in ("a.npy", "a.csv", "a.pt"):
        (tmp_path / name).write_bytes(b"\xff\x00broken")
        with pytest.raises(UserError, match=name):
            read_labels(str(tmp_path / name))
    with pytest.raises(UserError, match=r"no .npy, .csv or .pt file"):
        read_labels(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match=r"only a \.pt file has keys"):
        read_labels(str(tmp_path / "a.npy:key"))
    np.savez(tmp_path / "several", a=LABELS)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(UserError, match="several arrays"):
        read_labels(str(tmp_path / "several.npy"))
    torch.save({"clean_label": LABELS[:3], "worse_label": LABELS}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="5 labels and 3 of clean_label"):
        read_labels(str(tmp_path / "a.pt"))
    torch.save(LABELS, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds one array and no key 'worse_label'"):
        read_labels(f"{tmp_path / 'a.pt'}:worse_label")


def test_a_matrix_comes_from_npy_and_csv(tmp_path: Path) -> None:
    matrix = np.array([[0.25, 0.75], [1, 0]])
    np.save(tmp_path / "a.npy", matrix)
    np.testing.assert_array_equal(read_matrix(tmp_path / "a.npy"), matrix)
    np.testing.assert_array_equal(read_matrix(csv(tmp_path, "0.25, 0.75\n1,0\n")), matrix)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("1,0\n0\n", "line 2: 1 numbers; line 1 has 2"), ("1,x\n0,1\n", "line 1: 'x' is no number")],
)
def test_a_csv_that_is_no_matrix_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_matrix(csv(tmp_path, text))


def test_a_matrix_of_another_type_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([["a"]]))
    with pytest.raises(UserError, match="give numbers"):
        read_matrix(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"no .npy or .csv file"):
        read_matrix(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["m.csv", "m.npy"])
@settings(max_examples=10)  # two files each, on disk
@given(matrix=arrays(np.int64, st.integers(1, 5).map(lambda k: (k, k)), elements=st.integers(0, 2**40)))
def test_a_matrix_that_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, name: str, matrix: Array
) -> None:
    path = tmp_path_factory.mktemp("matrix") / name
    write_matrix(path, matrix)
    np.testing.assert_array_equal(read_matrix(path), matrix)
    write_matrix(path, matrix)  # again: it is there already
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds something else"):
        write_matrix(path, matrix + 1)
    assert path.read_bytes() == before


def test_a_matrix_goes_only_where_it_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.npy or \.csv"):
        write_matrix(tmp_path / "m.txt", np.eye(2, dtype=np.int64))
    with pytest.raises(UserError, match="cannot be written"):
        write_matrix(csv(tmp_path, "mine") / "m.csv", np.eye(2, dtype=np.int64))
    assert [path.name for path in tmp_path.iterdir()] == ["file.csv"]
