"""Data sets of four IDX files, plain or .gz: images and labels of a training and a test split."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.sources.types import ArraySplit, Augmentation, Source

_UINT8: Final = 8  # IDX's type code of unsigned bytes
_GZIP_MAGIC: Final = b"\x1f\x8b"


def read_idx(path: Path, num_dims: int) -> UInt8[Array, "*dims"]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: The file; one whose name ends in .gz is decompressed.
        num_dims: 1 for labels, 3 for images.

    Raises:
        UserError: If the file is missing or unreadable, is no gzip though named so, has another magic number,
            or is shorter or longer than its header says.

    Source: yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    data = _read_bytes(path)
    magic = bytes((0, 0, _UINT8, num_dims))
    if data[:4] != magic:
        hint = "; it is a gzip file: name it .gz" if data[:2] == _GZIP_MAGIC else ""
        raise UserError(
            f"{path}: magic number {data[:4].hex()} where {magic.hex()} "
            f"(IDX, unsigned bytes, {num_dims} dimensions) is expected{hint or '; give the original file'}"
        )
    header_bytes = 4 + 4 * num_dims
    if len(data) < header_bytes:
        raise UserError(
            f"{path}: {len(data):,} bytes, expected at least {header_bytes} of header; fetch the file again"
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", num_dims, offset=4))
    expected = header_bytes + math.prod(shape)
    if len(data) != expected:
        what = "truncated" if len(data) < expected else "trailing bytes"
        raise UserError(
            f"{path}: {what}: {len(data):,} bytes where its header {' × '.join(map(str, shape))} "
            f"asks for {expected:,}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape).copy()  # writable, as torch wants it


def open_idx(name: str, folder: Path, *, classes: tuple[str, ...], augmentation: Augmentation) -> Source:
    """Open a data set of four IDX files under MNIST's names.

    Args:
        name: The data set's name in the menu.
        folder: Holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each with or without .gz, "-idx" also spelt ".idx".
        classes: The names of the classes.
        augmentation: How training augments.

    Raises:
        UserError: If a file is missing or wrong, files do not belong together, or a label is not below K.
    """
    if not folder.is_dir():
        raise UserError(
            f"{name}: no folder {folder}; "
            "--source names the folder that holds train-images-idx3-ubyte[.gz] and its three companions"
        )
    train = _open_split(folder, "train", len(classes))
    test = _open_split(folder, "t10k", len(classes))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{folder}: train images of {train.images.shape[1:]}, test images of {test.images.shape[1:]}; "
            "both must be alike: give files of one data set"
        )
    return Source(name, classes, train, test, augmentation)


def _open_split(folder: Path, prefix: str, num_classes: int) -> ArraySplit:
    images = read_idx(_find(folder, f"{prefix}-images", 3), 3)
    labels_path = _find(folder, f"{prefix}-labels", 1)
    labels = read_idx(labels_path, 1)
    return ArraySplit(images[..., None], labels, num_classes=num_classes, name=str(labels_path))


def _find(folder: Path, stem: str, num_dims: int) -> Path:
    names = [f"{stem}{dot}idx{num_dims}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds none of {', '.join(names)}; --source names the folder of the four IDX files")


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except EOFError:
        raise UserError(f"{path}: truncated: the gzip stream ends early; fetch the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not an intact gzip file, as its name says ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give a readable file") from None
