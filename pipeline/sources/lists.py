"""Splits that text files list: one image a line, with its class or without; opening one reads no image.

An image's index in a split is its place in the list, so that labels of one's own can follow the list's lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.sources.files import FileSplit, first_no_text

_LABELLED: Final = re.compile(r"(.*\S)\s+(-?[0-9]+)")


class ListedSplit(FileSplit):
    """A split whose images are files, in the order of a list.

    Args:
        root: The source's folder.
        folder: What the list's paths start from, below `root`; "" is `root` itself.
        label_of: The class of each path, all below 65,536.
    """

    def __init__(self, root: Path, folder: str, label_of: Mapping[str, int]) -> None:
        super().__init__(root, (folder,), (list(label_of),))
        self.labels: UInt16[Array, " n"] = np.fromiter(label_of.values(), dtype=np.uint16, count=len(label_of))

    def name_of(self, index: int) -> str:
        """Return the file's path below the source's folder."""
        return os.path.join(self.folders[0], self._names[index])


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list, decoded as file names are; line 1 comes first, empty ones at the end are left out.

    Raises:
        UserError: If it is missing, cannot be read, or has no line or an empty one.
    """
    try:
        text = os.fsdecode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the data set's original file there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give a readable file") from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise UserError(f"{path}: line {lines.index('') + 1} is empty; get the original file")
    return lines


def read_keys(path: Path) -> list[str]:
    """Read a list of image paths.

    Raises:
        UserError: If it cannot be read, or names a path twice or one outside of the data set.
    """
    return list(_checked(read_lines(path), path))


def read_labels(path: Path, num_classes: int) -> dict[str, int]:
    """Read a list of image paths and their classes, such as `images/0/1234.jpg 5`.

    Args:
        path: The list.
        num_classes: K.

    Returns:
        The class of each path, in the order of the lines.

    Raises:
        UserError: If it cannot be read, names a path twice or one outside of the data set, or a class outside [0, K).
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        found = _LABELLED.fullmatch(line)
        if not found:
            raise UserError(f"{path}: line {number} is {line!r}, not an image and its class; get the original file")
        if not 0 <= int(found[2]) < num_classes:
            raise UserError(
                f"{path}: line {number} gives {found[1]} the class {found[2]}; allowed are 0 to {num_classes - 1}: "
                "get the original file"
            )
        rows.append((found[1], int(found[2])))
    return dict(zip(_checked((key for key, _ in rows), path), (label for _, label in rows), strict=True))


def open_list(
    root: Path, folder: str, path: Path, label_of: Mapping[str, int], *, num_classes: int, archive: str
) -> ListedSplit:
    """Open the split of a list, once all of its images are there.

    Args:
        root: The source's folder.
        folder: What the list's paths start from, below `root`.
        path: The list.
        label_of: The class of each of its lines, in their order.
        num_classes: Images of this class and later ones are left out.
        archive: What the images come in, for messages.

    Raises:
        UserError: If an image is missing, a folder cannot be read, or no image is left.
    """
    there: dict[str, frozenset[str]] = {}  # one call a folder, where one a file would take minutes on a network
    taken: dict[str, int] = {}
    for number, (key, label) in enumerate(label_of.items(), 1):
        if label >= num_classes:
            continue
        inner, name = os.path.split(key)
        if inner not in there:
            there[inner] = _names_in(root / folder / inner)
        if name not in there[inner]:
            raise UserError(
                f"{path}: line {number} names {key}, and {root / folder / key} is missing; "
                f"unpack all of {archive} there"
            )
        taken[key] = label
    if not taken:
        raise UserError(f"{path} lists no image of the classes 0 to {num_classes - 1}; get the original file")
    return ListedSplit(root, folder, taken)


def class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the lines of a file of class names, or the numbers of the classes where there is none.

    Raises:
        UserError: If it has another number of lines, one that is no UTF-8 text, or cannot be read.
    """
    if not path.exists():
        return tuple(map(str, range(num_classes)))
    names = read_lines(path)
    if (number := first_no_text(names)) is not None:
        raise UserError(
            f"{path}: line {number + 1} is {names[number]!r}, no UTF-8 text; give the original file, convert it, "
            "or leave it out"
        )
    if len(names) != num_classes:
        raise UserError(
            f"{path}: {len(names):,} names for {num_classes:,} classes; give the original file, or leave it out"
        )
    return tuple(names)


def _checked(keys: Iterable[str], path: Path) -> dict[str, int]:
    """Return the line of each path, in their order."""
    line_of: dict[str, int] = {}
    for number, key in enumerate(keys, 1):
        if key in line_of:
            raise UserError(f"{path}: line {number} names {key}, as line {line_of[key]} does; get the original file")
        if os.path.isabs(key) or ".." in key.split("/"):
            raise UserError(
                f"{path}: line {number} names {key!r}, an absolute path or one with '..'; get the original file"
            )
        line_of[key] = number
    return line_of


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}; give a readable folder") from None
