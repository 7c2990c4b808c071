"""CIFAR-10 and CIFAR-100 as their author publishes them: the python and the binary version, unpacked or not.

Images stand in the order of the files, classes are called as the meta file calls them (by number without one). Files
that are the official ones by name and size must have the official MD5; others are read as they are.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.fetch import fetched
from pipeline.sources.types import ArraySplit, Augmentation, Source

AUGMENTATION: Final = Augmentation("shift", shift_px=4, flip=True)
_PIXELS: Final = 3 * 32 * 32
_MAX_FILE_BYTES: Final = 1 << 30  # five times the largest of the official files


class Official(NamedTuple):
    """Size and MD5 of an official file."""

    num_bytes: int
    md5: str


@dataclass(frozen=True)
class Version:
    """The files of one version, python or binary.

    Args:
        folder: What its archive unpacks to.
        archive: Its archive.
        train: The training files, in order.
        test: The test file.
        meta: The file of the class names.
        label_bytes: Of a binary record; the last of them is the label. 0 for the python version.
        label_key: Where a pickled batch has its labels.
        names_key: Where the pickled meta file has the class names.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    label_bytes: int = 0
    label_key: str = ""
    names_key: str = ""


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Args:
        name: Its name in the menu.
        num_classes: K.
        versions: The python one first: where files of both lie together, it is read.
        official: Archives, and unpacked files where their MD5 is known.
    """

    name: str
    num_classes: int
    versions: tuple[Version, ...]
    official: dict[str, Official]


_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

_Files = dict[str, bytes]


def open_cifar(cifar: Cifar, path: Path | None) -> Source:
    """Open one of the two data sets.

    Args:
        cifar: Which.
        path: A .tar.gz, the folder that holds one, the folder that one unpacks to, or the folder above it; by default
            where `tools/fetch` puts it.

    Raises:
        UserError: If there is nothing to read, or a file is missing, damaged, or an official one with another MD5.
    """
    found = path or fetched(cifar.name)
    archives = " or ".join(version.archive for version in cifar.versions)
    if found is None:
        raise UserError(
            f"{cifar.name} needs its files: run `tools/fetch {cifar.name}`, or pass --source PATH: {archives}"
        )
    version, files, where = _read(cifar, found, archives)
    read_batch, read_names = (_read_binary, _text_names) if version.label_bytes else (_read_pickle, _pickled_names)
    splits = []
    for names in (version.train, (version.test,)):
        for name in names:
            if name not in files:
                raise UserError(f"{where} holds no {name}; give all files of {version.archive}")
        batches = [read_batch(files[name], f"{where}/{name}", version) for name in names]
        for name, (images, labels) in zip(names, batches, strict=True):
            if len(images) != len(labels):
                raise UserError(f"{where}/{name}: {len(labels):,} labels for {len(images):,} images; fetch it again")
        images = np.concatenate([batch[0] for batch in batches])
        labels = np.concatenate([batch[1] for batch in batches])
        planes = images.reshape(-1, 3, 32, 32)  # red, green, blue
        pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        split_name = f"{where}/{names[0]}" if len(names) == 1 else where
        splits.append(ArraySplit(pixels, labels, num_classes=cifar.num_classes, name=split_name))
    classes = tuple(str(label) for label in range(cifar.num_classes))
    if version.meta in files:
        classes = read_names(files[version.meta], f"{where}/{version.meta}", version)
    if len(classes) != cifar.num_classes:
        raise UserError(
            f"{where}/{version.meta}: {len(classes)} class names where {cifar.name} has {cifar.num_classes}; "
            "give the original file, or leave it out"
        )
    return Source(cifar.name, classes, splits[0], splits[1], AUGMENTATION)


def _read(cifar: Cifar, path: Path, archives: str) -> tuple[Version, _Files, str]:
    """Read the files of the first version that lies at a path."""
    if path.is_file():
        files = _read_archive(path, cifar)
        for version in cifar.versions:
            if version.train[0] in files:
                return version, files, str(path)
        raise UserError(f"{path} holds neither version of {cifar.name}; give {archives}")
    for version in cifar.versions:
        for folder in (path, path / version.folder):
            if (folder / version.train[0]).is_file():
                names = [name for name in (*version.train, version.test, version.meta) if (folder / name).is_file()]
                return version, {name: _read_file(folder / name, cifar) for name in names}, str(folder)
    for version in cifar.versions:
        if (path / version.archive).is_file():
            return version, _read_archive(path / version.archive, cifar), str(path / version.archive)
    folders = " or ".join(version.folder for version in cifar.versions)
    raise UserError(f"{cifar.name}: no {archives} and no {folders} at {path}; --source names one of them")


def _read_file(path: Path, cifar: Cifar) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give a readable file") from None
    official = cifar.official.get(path.name)
    if official is not None and len(data) == official.num_bytes:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != official.md5:
            raise UserError(
                f"{path} is as long as the official file, but its MD5 is {md5}, not {official.md5}: "
                f"it is damaged; run `tools/fetch {cifar.name}` or fetch it again"
            )
    return data


def _read_archive(path: Path, cifar: Cifar) -> _Files:
    """Read the wanted files of an archive into memory; nothing is unpacked to disk."""
    wanted = {name for version in cifar.versions for name in (*version.train, version.test, version.meta)}
    files: _Files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_read_file(path, cifar))) as tar:
            for member in tar:
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise UserError(
                        f"{path}: member {member.name!r} has an absolute path or one with '..'; get the original file"
                    )
                name = os.path.basename(member.name)
                if name in wanted and member.isreg():
                    if member.size > _MAX_FILE_BYTES:
                        raise UserError(
                            f"{path}: member {member.name!r} of {member.size:,} bytes; get the original file"
                        )
                    files[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: no intact .tar.gz ({error}); fetch it again") from None
    return files


def _read_binary(data: bytes, where: str, version: Version) -> tuple[UInt8[Array, "n p"], UInt8[Array, " m"]]:
    """Read records of label bytes and 3,072 pixels."""
    record = version.label_bytes + _PIXELS
    if not data or len(data) % record:
        raise UserError(f"{where}: {len(data):,} bytes, not a multiple of {record:,} (truncated?); fetch it again")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return rows[:, version.label_bytes :], rows[:, version.label_bytes - 1]


def _text_names(data: bytes, where: str, version: Version) -> tuple[str, ...]:
    return tuple(line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip())


def _read_pickle(data: bytes, where: str, version: Version) -> tuple[UInt8[Array, "n p"], Integer[Array, " m"]]:
    """Read a pickled dictionary with `data` and labels."""
    batch = _unpickle(data, where)
    array, labels = batch.get("data"), batch.get(version.label_key)
    images = array.pixels() if isinstance(array, _Array) else None
    if images is None:
        raise UserError(f"{where}: 'data' must be a uint8 array of n × {_PIXELS:,}; give the original file")
    if not isinstance(labels, list) or not all(isinstance(x, int) and 0 <= x < 1 << 16 for x in labels):
        raise UserError(f"{where}: {version.label_key!r} must be a list of class ids; give the original file")
    return images, np.array(labels, dtype=np.int64)


def _pickled_names(data: bytes, where: str, version: Version) -> tuple[str, ...]:
    names = _unpickle(data, where).get(version.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: {version.names_key!r} must be a list of names; give the original file")
    return tuple(names)


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    """Read a pickle that holds arrays, lists and strings, and nothing that could run code."""
    try:
        _check_memo(data)
        value = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()  # the official files are Python 2's
    except UserError as error:
        raise UserError(f"{where}: {error}; nothing was run: give the original file") from None
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise UserError(f"{where}: no intact pickle ({type(error).__name__}); fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds a {type(value).__name__}, not a dictionary; give the original file")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): held for key, held in value.items()}


def _check_memo(data: bytes) -> None:
    """Look at lengths and places before they are believed: the unpickler makes a table as long as the largest place.

    Raises:
        ValueError: If one of them cannot be.
    """
    for count, (opcode, place, _) in enumerate(pickletools.genops(data), 1):
        if opcode.name in _PUTS and isinstance(place, int) and place > count:
            raise ValueError(f"place {place} in a table of at most {count}")


class _Dtype:
    """What a pickle says of an array's type."""

    code: Any = None  # a pickle need not call __init__

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Pass over byte order and the like: one type is accepted, of one byte."""


class _Array:
    """What a pickle says of an array; it becomes one when all of it has been looked at.

    NumPy's own way back from a pickle trusts what it reads: a damaged file can end the process.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Keep version, shape, type, order and bytes."""
        self.state = state

    def pixels(self) -> UInt8[Array, "n p"] | None:
        """Return the array, or None if it is not one of images."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, by_columns, data = self.state
        if isinstance(data, str):  # bytes of Python 2
            data = data.encode("latin1")
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", "|u1", "uint8"):
            return None
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != _PIXELS or not isinstance(shape[0], int):
            return None
        if not isinstance(data, bytes | bytearray) or len(data) != shape[0] * _PIXELS:
            return None
        return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows the parts of a NumPy array, of whatever version and protocol, and nothing else."""

    _KNOWN: Final[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # Python 3's bytes in protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the known parts, under NumPy 1's names or NumPy 2's."""
        try:
            return self._KNOWN[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise UserError(f"asks for {module}.{name}, which a file of arrays does not need") from None
