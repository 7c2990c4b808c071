"""Splits of encoded image files, in a tree of folders or inside tar archives; opening one reads no image.

The order is torchvision's: class by class, and in a class by name (by code point; folders in a class after each
other). All lists are compact, a file name costs its bytes and eight more, so that splits of millions of files go to
worker processes quickly.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt16
from numpy import ndarray as Array

from pipeline.errors import DamagedImageError, UserError
from pipeline.formats.headers import encoding_of
from pipeline.formats.tar_members import Member
from pipeline.sources.types import Item

MAX_CLASSES: Final = 65_536
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
# What torchvision lists too: left out silently, they would be lost and every later image would have another index.
_UNREADABLE: Final = frozenset({".ppm", ".bmp", ".pgm", ".tif", ".tiff"})


class Names:
    """A list of file names as one block of bytes."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._ends = array("q", [0])

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._block += os.fsencode(name)
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(bytes(self._block[self._ends[index] : self._ends[index + 1]]))

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Hash all names."""
        update(bytes(self._block))
        update(_little(self._ends))


class FileSplit:
    """A split whose images are files.

    Args:
        root: The source's folder.
        folders: One a class, below `root`; "" and "." stand for `root` itself.
        names: The files of each class, below its folder; listed as they are taken.
    """

    def __init__(self, root: Path, folders: Sequence[str], names: Iterable[Sequence[str]]) -> None:
        self.root = str(root)
        self.folders = tuple(folders)
        self._names = Names()
        counts = []
        for of_class in names:
            counts.append(len(of_class))
            for name in of_class:
                self._names.append(name)
        self.labels: UInt16[Array, " n"] = _labels(counts)

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """Return the file's path below the source's folder."""
        return os.path.join(self.folders[self.labels[index]], self._names[index])

    def item(self, index: int) -> Item:
        """Return the file's bytes; its encoding is that of its bytes, not of its name.

        Raises:
            DamagedImageError: If it cannot be read, is empty, or is no JPEG, PNG or WebP file.
        """
        try:
            data = _read(os.path.join(self.root, self.name_of(index)))
        except OSError as error:
            raise DamagedImageError(f"cannot be read: {error.strerror}") from error
        return Item(data, encoding_of(data))

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Hash names and sizes; contents are too many bytes to read twice.

        Raises:
            UserError: If a file is gone.
        """
        update("\0".join(self.folders).encode(errors="surrogateescape"))
        self._names.fingerprint(update)
        try:
            sizes = (os.stat(os.path.join(self.root, self.name_of(index))).st_size for index in range(len(self)))
            update(_little(array("q", sizes)))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}; put it back, or build anew") from None


class TarSplit:
    """A split whose images are members of one tar archive, read where they lie.

    Args:
        path: The archive.
        folders: One a class: what stands before the names of its images in messages.
        places: The members of each class; listed as they are taken.
    """

    def __init__(self, path: Path, folders: Sequence[str], places: Iterable[Sequence[Member]]) -> None:
        self.path = path
        self.folders = tuple(folders)
        self._names, self._offsets, self._sizes = Names(), array("q"), array("q")
        self._file: int | None = None
        counts = []
        for of_class in places:
            counts.append(len(of_class))
            for name, offset, size in of_class:
                self._names.append(name)
                self._offsets.append(offset)
                self._sizes.append(size)
        self.labels: UInt16[Array, " n"] = _labels(counts)

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """Return the archive's name and the member's path in it."""
        return os.path.join(self.path.name, self.folders[self.labels[index]], self._names[index])

    def item(self, index: int) -> Item:
        """Return a member's bytes; its encoding is that of its bytes, not of its name.

        Raises:
            DamagedImageError: If it cannot be read, is empty, or is no JPEG, PNG or WebP file.
        """
        size = self._sizes[index]
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._file, size, self._offsets[index])
        except OSError as error:
            raise DamagedImageError(f"cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DamagedImageError(f"truncated: {self.path.name} was cut short after it was opened")
        return Item(data, encoding_of(data))

    def fingerprint(self, update: Callable[[bytes], object]) -> None:
        """Hash names and places in the archive; contents are too many bytes to read twice."""
        update("\0".join(self.folders).encode(errors="surrogateescape"))
        self._names.fingerprint(update)
        update(_little(self._offsets))
        update(_little(self._sizes))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]


def class_folders(folder: Path) -> tuple[str, ...]:
    """List the names of a folder's folders, sorted as torchvision sorts classes.

    Raises:
        UserError: If it cannot be read.
    """
    with _scan(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def image_names(folder: Path) -> list[str]:
    """List the image files below a folder in torchvision's order, relative to it.

    Raises:
        UserError: If a folder cannot be read, is a link to one above it, or holds an image file of a kind that is not
            read.
    """
    found: list[tuple[str, str]] = []
    _walk(folder, "", found, ())
    return [os.path.join(inner, name) for inner, name in sorted(found)]


def open_tree(root: Path, part: str, classes: Sequence[str]) -> FileSplit:
    """Open a split that lies as one folder a class.

    Args:
        root: The source's folder.
        part: The split's folder below it.
        classes: The names of the class folders of the training split.

    Raises:
        UserError: If a class folder is not in `classes` or has no image, or a folder cannot be read.
    """
    found = frozenset(class_folders(root / part))
    if unknown := sorted(found - set(classes)):
        raise UserError(
            f"{root / part}: class {unknown[0]!r} (and {len(unknown) - 1} more) is not in the training split; "
            "both must have the same classes: rename or remove it"
        )
    if not found:
        raise UserError(f"{root / part} holds no folder; it must hold one folder of images a class")
    names = (_names_of_class(root / part / name) if name in found else () for name in classes)
    return FileSplit(root, [os.path.join(part, name) for name in classes], names)


def check_classes(classes: Sequence[str], where: Path) -> None:
    """Refuse a number of classes that labels cannot count, and names that a manifest cannot hold.

    Raises:
        UserError: If there is none, there are more than 65,536, or a name is no UTF-8 text.
    """
    if not 0 < len(classes) <= MAX_CLASSES:
        raise UserError(f"{where}: {len(classes):,} class folders; allowed are 1 to {MAX_CLASSES:,}")
    if (number := first_no_text(classes)) is not None:
        raise UserError(f"{where}: the name of class folder {classes[number]!r} is no UTF-8 text; rename it")


def first_no_text(names: Sequence[str]) -> int | None:
    """Return the place of the first name, as `os.fsdecode` gives it, whose bytes are no UTF-8 text; None if all are."""
    return next((number for number, name in enumerate(names) if any("\ud800" <= c <= "\udfff" for c in name)), None)


def _names_of_class(folder: Path) -> list[str]:
    names = image_names(folder)
    if not names:
        raise UserError(
            f"{folder} holds no image; read are files that end in {', '.join(sorted(SUFFIXES))}: "
            "put images there, or remove it"
        )
    return names


def _walk(folder: Path, inner: str, found: list[tuple[str, str]], above: tuple[tuple[int, int], ...]) -> None:
    inside: list[str] = []
    with _scan(folder) as entries:
        for entry in entries:
            name = entry.name
            suffix = name[name.rfind(".") :].lower() if "." in name else ""
            if suffix in SUFFIXES and not entry.is_dir(follow_symlinks=False):  # asks the disk nothing more
                found.append((inner, name))
            elif entry.is_dir():
                inside.append(name)
            elif suffix in _UNREADABLE:
                raise UserError(
                    f"{folder / name}: an image of a kind that is not read; read are "
                    f"{', '.join(sorted(SUFFIXES))}: convert it, or remove it"
                )
    if not inside:
        return
    state = os.stat(folder)
    here = (state.st_dev, state.st_ino)
    if here in above:
        raise UserError(f"{folder} is a link to a folder above it; remove the link")
    for name in inside:
        _walk(folder / name, os.path.join(inner, name), found, (*above, here))


def _scan(folder: Path) -> Any:  # os.scandir's own type has no public name
    try:
        return os.scandir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}; give a readable folder") from None


def _read(path: str) -> bytes:
    """Read a file in one call: Python's file objects take four times as long for a photo."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces, left = [], os.fstat(file).st_size
        while left and (piece := os.read(file, left)):
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(file)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _little(numbers: array[int]) -> bytes:
    return np.asarray(numbers).astype("<i8").tobytes()


def _labels(counts: list[int]) -> UInt16[Array, " n"]:
    return np.repeat(np.arange(len(counts)), counts).astype(np.uint16)
