"""Matrices and labels that a user keeps in files; none of them can run code."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray as Array

from kernels.labels import MAX_CLASSES
from pipeline.atomic import write_file
from pipeline.errors import UserError

_CLEAN: Final = "clean_label"  # CIFAR-N's name for the source labels


class LabelFile(NamedTuple):
    """What a file of labels holds.

    Args:
        labels: One per training image, by source index.
        clean: The author's copy of the source labels; None if the file has none.
    """

    labels: Int64[Array, " n"]
    clean: Int64[Array, " n"] | None


def read_matrix(path: Path) -> Float64[Array, "k k"]:
    """Read a matrix from a .npy or .csv file (commas, one row a line, no header).

    Raises:
        UserError: If the file is missing, of another type, or holds something else than numbers.
    """
    check_matrix_path(path)
    if path.suffix == ".npy":
        array = _read_npy(path)
        if array.dtype.kind not in "fiu":
            raise UserError(f"{path} holds {array.dtype} values; give numbers")
        return array.astype(np.float64)
    rows = [(line, [_number(path, line, cell, float) for cell in cells]) for line, cells in _read_csv(path)]
    for line, row in rows:
        if len(row) != len(rows[0][1]):
            raise UserError(f"{path}, line {line}: {len(row)} numbers; line {rows[0][0]} has {len(rows[0][1])}")
    return np.array([row for _, row in rows])


def write_matrix(path: Path, matrix: Int64[Array, "k k"]) -> None:
    """Write a matrix of counts so that `read_matrix` reads it; a file that holds another one is left alone.

    Raises:
        UserError: If the file holds something else already, is of another type, or cannot be written.
    """
    check_matrix_path(path)
    stream = BytesIO()
    if path.suffix == ".npy":
        np.save(stream, matrix)
    else:
        np.savetxt(stream, matrix, fmt="%d", delimiter=",")
    try:
        if path.exists() and path.read_bytes() != stream.getvalue():
            raise UserError(f"{path} holds something else; give the name of a file that does not exist")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, stream.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); give another file") from None


def check_matrix_path(path: Path) -> None:
    """Refuse a file that is of no type that holds a matrix.

    Raises:
        UserError: If it is not .npy or .csv.
    """
    if path.suffix not in (".npy", ".csv"):
        raise UserError(f"{path} is no .npy or .csv file; give the matrix as one of these")


def read_labels(text: str) -> LabelFile:
    """Read labels from a file, matched by source index (the order of the data set's own files).

    - .npy: whole numbers [n].
    - .csv: one label a line; or `id,label` with every source index once, in any order. A header line is skipped.
    - .pt: CIFAR-N's dictionary of arrays, or one array or tensor.

    Args:
        text: The path; for a dictionary with the key behind a colon, ``CIFAR-10_human.pt:worse_label``.

    Raises:
        UserError: If the file is missing, of another type, or holds something else than labels.
    """
    path, key = Path(text), None
    if not path.exists() and ":" in text:
        path, key = Path(text.rpartition(":")[0]), text.rpartition(":")[2]
    if key is not None and path.suffix != ".pt":
        raise UserError(f"--labels {text}: only a .pt file has keys; give {path}")
    clean = None
    if path.suffix == ".npy":
        labels = _read_npy(path)
    elif path.suffix == ".csv":
        labels = _labels_of_csv(path)
    elif path.suffix == ".pt":
        labels, clean = _labels_of_pt(path, key)
    else:
        raise UserError(f"{path} is no .npy, .csv or .pt file; give the labels as one of these")
    found = LabelFile(_checked(path, labels), None if clean is None else _checked(path, clean))
    if found.clean is not None and len(found.clean) != len(found.labels):
        raise UserError(f"{path} has {len(found.labels)} labels and {len(found.clean)} of {_CLEAN}; give a whole file")
    return found


def _checked(path: Path, labels: Array) -> Int64[Array, " n"]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(f"{path} holds {labels.dtype} values of shape {labels.shape}; give a list of whole numbers")
    outside = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if len(outside):
        raise UserError(f"{path}: label {labels[outside[0]]} of training image {outside[0]} is no class number")
    return labels.astype(np.int64)


def _read_npy(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file that does") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a readable file") from None
    except Exception:  # NumPy raises ValueError, EOFError, MemoryError, TokenError … on a bad header
        raise UserError(
            f"{path} cannot be read as .npy: it is damaged, or holds no array of numbers; write it with numpy.save, "
            "or give a .csv file"
        ) from None
    if not isinstance(array, Array):
        raise UserError(f"{path} holds several arrays; give a .npy file with one")
    return array


def _read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty, each with its number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file that does") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    lines = [(number, cells) for number, cells in enumerate(csv.reader(text.splitlines()), 1) if cells]
    if not lines:
        raise UserError(f"{path} is empty")
    return lines


def _number(path: Path, line: int, cell: str, kind: type[Any]) -> Any:
    try:
        return kind(cell)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise UserError(f"{path}, line {line}: '{cell.strip()}' is no {what}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _labels_of_csv(path: Path) -> Int64[Array, " n"]:
    lines = _read_csv(path)
    if not any(map(_is_number, lines[0][1])):
        lines = lines[1:]  # a header
    columns = {len(cells) for _, cells in lines}
    if columns not in ({1}, {2}):
        raise UserError(f"{path} has lines of {sorted(columns)} columns; give one label a line, or id,label")
    table = np.array([[_number(path, line, cell, int) for cell in cells] for line, cells in lines], dtype=object)
    if columns == {1}:
        return _whole(path, table[:, 0])
    ids, labels = _whole(path, table[:, 0]), _whole(path, table[:, 1])
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise UserError(f"{path}: its ids are not 0 to {len(ids) - 1}, each once; give every training image one label")
    by_id = np.empty_like(labels)
    by_id[ids] = labels
    return by_id


def _whole(path: Path, column: Array) -> Int64[Array, " n"]:
    try:
        return column.astype(np.int64)
    except OverflowError:
        raise UserError(f"{path}: a number is larger than any label or id") from None


def _labels_of_pt(path: Path, key: str | None) -> tuple[Array, Array | None]:
    """Read a file that torch wrote; only numbers are let in, as CIFAR-N's are: NumPy arrays in a dictionary."""
    import torch  # takes seconds to import, and few need it
    from torch.serialization import safe_globals

    rebuild: Any = np.array(0).__reduce__()[0]  # lives in numpy.core for files written with NumPy 1
    allowed = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with safe_globals([*allowed, Array, np.dtype, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"]}]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file that does") from None
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError … on a bad file
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(f"{path} holds more than arrays of whole numbers, or is damaged: {reason}") from None
    if not isinstance(content, dict):
        if key is not None:
            raise UserError(f"{path} holds one array and no key '{key}'; give --labels {path}")
        return np.asarray(content), None
    noisy = [name for name in content if name != _CLEAN]
    if key is None and len(noisy) == 1:
        key = noisy[0]
    if key not in content:
        asked = f"no '{key}'" if key is not None else "several labels"
        raise UserError(f"{path} has {asked}; give --labels {path}:KEY with one of {', '.join(map(str, noisy))}")
    clean = content.get(_CLEAN)
    return np.asarray(content[key]), None if clean is None else np.asarray(clean)
