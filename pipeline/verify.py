"""Check a folder of shards against its manifest: every hash, every count, and every label computed again.

Archives are read with Python's own tarfile, not with the code that wrote them.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from pipeline.counts import NO_COUNTS, Counts
from pipeline.dataset import DamagedImageError, decode, read_index
from pipeline.errors import UserError
from pipeline.formats.beton_reader import verify_beton
from pipeline.laws import Formula
from pipeline.manifest import ENCODINGS, INDEX_DTYPE, File, Manifest, Shard, read_manifest
from pipeline.sources.types import Item
from pipeline.storage import Folder, open_folder
from pipeline.stream import copies_in_pass, expanded_rows
from pipeline.workers import Run, spread

_REST: Final = "; the rest of the shard was not checked"
_BETON_PART: Final = 2_048  # images that are checked together


class Problem(NamedTuple):
    """Something that is not as the manifest says.

    Args:
        file: Where.
        image_id: Which image; None if it is about the whole file.
        reason: What is wrong.
    """

    file: str
    image_id: int | None
    reason: str

    def __str__(self) -> str:
        where = self.file if self.image_id is None else f"{self.file}: image {self.image_id}"
        return f"{where}: {self.reason}"


class _Indexed(NamedTuple):
    """The images of an index, as a law sees them."""

    source_ids: Array
    source_labels: Array


@runtime_checkable
class Progress(Protocol):
    """Hears how a verification goes on."""

    def __call__(self, images: int, num_bytes: int) -> None:
        """After each shard: its images and their bytes."""


@dataclass(frozen=True)
class _Checked:
    """What all workers share: the manifest, where its files lie, and the formula for their images, or why not."""

    manifest: Manifest
    folder: Folder
    formula: Formula | None
    reason: str = ""


class _Part(NamedTuple):
    """Some rows of a split, and the files to look at with them."""

    split: str
    shard: Shard
    extras: tuple[File, ...]
    first: int
    records: Array


def verify(
    where: str | Path, *, workers: int = 1, progress: Progress = lambda images, num_bytes: None
) -> list[Problem]:
    """Check everything that can be checked without the source.

    Args:
        where: A finished data set: a folder, or an address of other storage.
        workers: Processes that check shards; 1 checks them in this one.
        progress: Called after each shard.

    Returns:
        All problems found; empty if the data set is what its manifest says.

    Raises:
        UserError: If there is no readable manifest, or the storage refuses.
    """
    folder = open_folder(where)
    manifest = read_manifest(folder)
    try:
        index = read_index(folder, manifest.train.index.name)[: manifest.train.num_images]
        checked = _Checked(manifest, folder, manifest.formula.bind(_Indexed(index["source"], index["label"])))
    except Exception as error:  # the index is missing or damaged, which is told below
        checked = _Checked(manifest, folder, None, str(error))
    problems: list[Problem] = []
    with spread(checked, workers) as run:
        for found in run(_check_file, manifest.files()):
            problems.extend(found)
        damaged = {problem.file for problem in problems}
        for split, files in manifest.splits.items():
            if files.index.name in damaged:
                continue  # without its index, nothing tells a split's right bytes from wrong ones
            counts = _check_split(run, checked, split, problems, progress)
            if split == "train" and manifest.counts.name not in damaged:
                problems.extend(_check_counts(checked, counts))
    return problems


def _check_file(checked: _Checked, file: File) -> list[Problem]:
    size = checked.folder.size(file.name)
    if size is None:
        return [Problem(file.name, None, "is missing")]
    if size != file.num_bytes:
        return [Problem(file.name, None, f"has {size:,} bytes, not {file.num_bytes:,}")]
    if checked.folder.digest(file.name)[1] != file.sha256:
        return [Problem(file.name, None, "its sha256 differs from the manifest's")]
    return []


def _check_split(
    run: Run[_Checked], checked: _Checked, split: str, problems: list[Problem], progress: Progress
) -> Counts:
    """Check the shards of a split record by record; return the realised counts."""
    manifest, files = checked.manifest, checked.manifest.splits[split]
    counts = NO_COUNTS
    index = read_index(checked.folder, files.index.name)
    num_rows = files.num_images * _passes(manifest, split)
    if index.dtype != INDEX_DTYPE or len(index) != num_rows:
        problems.append(Problem(files.index.name, None, f"does not hold {num_rows:,} records"))
        return counts
    outside = np.flatnonzero(index["label"] >= manifest.formula.num_classes)
    if len(outside) and split != "foreign":
        problems.append(Problem(files.index.name, int(outside[0]), "its label is none of the classes"))
        return counts
    if split == "train" and checked.formula is None:
        problems.append(Problem(files.index.name, None, checked.reason))
        return counts
    parts = []
    covered = 0
    for shard in files.shards:
        if shard.first != covered:
            problems.append(Problem(shard.name, shard.first, f"images from {covered} on are in no shard"))
        covered = shard.first + shard.count
        extras = tuple(extra for extra in files.extras if extra.name.startswith(shard.name.removesuffix("tar")))
        step = shard.count if manifest.format == "webdataset" else _BETON_PART
        for first in range(shard.first, covered, step):
            parts.append(_Part(split, shard, extras, first, index[first : min(first + step, covered)]))
    if covered != num_rows:
        problems.append(Problem(files.index.name, covered, "this image and those after it are in no shard"))
    check = _check_tar if manifest.format == "webdataset" else _check_beton
    for part, (found, cells) in zip(parts, run(check, parts), strict=True):
        problems.extend(found)
        counts = counts + cells
        progress(len(part.records), int(part.records["size"].sum()))
    return counts


def _passes(manifest: Manifest, split: str) -> int:
    """Say how often the images of a split are stored."""
    return 1 + manifest.formula.alpha if split == "train" and manifest.layout == "expanded" else 1


def _labels(checked: _Checked, part: _Part) -> tuple[list[str], UInt16[Array, "n copies"]]:
    """Compute the names of some records and their labels, one column a copy."""
    source_labels = np.ascontiguousarray(part.records["label"])
    image_ids = np.arange(part.first, part.first + len(part.records))
    formula = checked.formula if part.split == "train" else None
    if formula is None:
        return [f"{image_id:09d}" for image_id in image_ids], source_labels[:, None]
    if checked.manifest.layout == "shared":
        return [f"{image_id:09d}" for image_id in image_ids], formula.labels_of_images(image_ids, source_labels)
    num_images = formula.num_images
    image_ids, copies = expanded_rows(
        part.first, len(part.records), num_images=num_images, num_copies=1 + formula.alpha
    )
    labels = formula.labels(image_ids, copies, source_labels)
    return [f"{example_id:012d}" for example_id in copies * num_images + image_ids], labels[:, None]


def _check_tar(checked: _Checked, part: _Part) -> tuple[list[Problem], Counts]:
    keys, labels = _labels(checked, part)
    cells = Counts.of(np.ascontiguousarray(part.records["label"]), labels)
    return list(_check_records(checked, part, keys, labels)), cells


def _check_records(
    checked: _Checked, part: _Part, keys: list[str], labels: UInt16[Array, "n copies"]
) -> Iterator[Problem]:
    """Compare the members of one archive with the index and the formula."""
    name = part.shard.name
    dali_rows = [f"v1.1 {len(part.records)}"]
    places = []
    try:
        with checked.folder.open(name) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            members = iter(archive)
            dictionary, problem = _read_dictionary(checked.manifest, part, archive, members)
            if problem:
                yield problem
                return
            for row, record in enumerate(part.records):
                image_id = part.first + row
                encoding = ENCODINGS[record["encoding"]] if record["encoding"] < len(ENCODINGS) else "?"
                columns = []
                for suffix in [encoding, "cls", *(["labels.npy"] if labels.shape[1] > 1 else [])]:
                    member = next(members, None)
                    if member is None or member.name != f"{keys[row]}.{suffix}":
                        found = "the end" if member is None else f"'{member.name}'"
                        yield Problem(name, image_id, f"{found} stands where its .{suffix} should{_REST}")
                        return
                    file = archive.extractfile(member)
                    data = file.read() if file else b""
                    if reason := _check_member(suffix, data, member.offset_data, record, labels[row]):
                        yield Problem(name, image_id, reason)
                    columns.append(f"{suffix} {member.offset_data} {member.size}")
                dali_rows.append(" ".join(columns))
                places.append(columns[0])
            if (extra := next(members, None)) is not None:
                yield Problem(name, None, f"holds '{extra.name}', which the manifest does not know")
    except FileNotFoundError:
        return  # the check of its hash has told
    except UserError:
        raise  # the storage refuses: that says nothing of the shard
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Problem(name, None, f"cannot be read as an archive: {error}{_REST}")
        return
    stem = name.removesuffix(".tar")
    yield from _check_rows(checked.folder, part, f"{stem}.idx", dali_rows)
    if dictionary:
        examples = _diluted_rows(part, places, dictionary, labels)
        yield from _check_rows(checked.folder, part, f"{stem}.diluted.idx", chain([f"v1.1 {labels.size}"], examples))


def _read_dictionary(
    manifest: Manifest, part: _Part, archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo]
) -> tuple[list[int], Problem | None]:
    """Read where the dictionary of labels at a shard's head has each class; empty if the shard needs none."""
    offsets: list[int] = []
    if manifest.rows == "images" or part.split != "train":
        return offsets, None
    for label in range(manifest.formula.num_classes):
        member = next(members, None)
        file = archive.extractfile(member) if member else None
        if (
            not member
            or not file
            or member.name != f"__labels__/{label:04d}.lbl"
            or file.read() != struct.pack("<i", label)
        ):
            return offsets, Problem(part.shard.name, None, f"its dictionary of labels lacks class {label}{_REST}")
        offsets.append(member.offset_data)
    return offsets, None


def _diluted_rows(
    part: _Part, places: list[str], dictionary: list[int], labels: UInt16[Array, "n copies"]
) -> Iterator[str]:
    """List the rows of a shard's examples: pass after pass over its images."""
    image_ids = np.arange(part.first, part.first + len(part.records))
    for number in range(labels.shape[1]):
        copies = copies_in_pass(number, image_ids, num_copies=labels.shape[1])
        for row, copy in enumerate(copies):
            yield f"{places[row]} lbl {dictionary[labels[row, copy]]} 4"


def _check_rows(folder: Folder, part: _Part, name: str, rows: Iterable[str]) -> Iterator[Problem]:
    """Compare an index of a stock reader with the rows that it should have, line by line: it may be long."""
    try:
        with folder.open(name) as stream:
            if not all(line == f"{row}\n".encode() for line, row in zip_longest(stream, rows)):
                yield Problem(name, None, f"does not describe {part.shard.name}")
    except FileNotFoundError:
        return  # the check of its hash has told
    except OSError as error:
        yield Problem(name, None, f"cannot be read: {error}")


def _check_beton(checked: _Checked, part: _Part) -> tuple[list[Problem], Counts]:
    """Check some images of a beton, and with the first of them all that is no image."""
    _, labels = _labels(checked, part)
    cells = Counts.of(np.ascontiguousarray(part.records["label"]), labels)
    name, problems = part.shard.name, []
    folder = checked.folder
    if folder.size(name) is None or folder.local is None:
        return [], cells  # the check of its hash has told
    view = folder.view(name)
    for row, record in enumerate(part.records):
        offset = int(record["offset"])
        try:
            data = view[offset : offset + int(record["size"])]
        except DamagedImageError:
            last = part.first + len(part.records) - 1
            reason = f"it lies behind the end of the file; images from it to {last} were not checked"
            problems.append(Problem(name, part.first + row, reason))
            break
        if reason := _check_image(data, record):
            problems.append(Problem(name, part.first + row, reason))
    if part.first == 0:
        index = read_index(folder, checked.manifest.splits[part.split].index.name)
        formula = checked.formula if part.split == "train" else None

        def labels_of(image_ids: Int64[Array, " b"]) -> UInt16[Array, "b copies"]:
            source_labels = np.ascontiguousarray(index["label"][image_ids])
            return formula.labels_of_images(image_ids, source_labels) if formula else source_labels[:, None]

        num_copies = labels.shape[1]
        rows: Literal["images", "examples"] = (
            "examples" if checked.manifest.rows == "examples" and formula else "images"
        )
        found = verify_beton(folder.local / name, index, labels_of, num_copies=num_copies, rows=rows)
        problems.extend(Problem(name, image_id, reason) for image_id, reason in found)
    return problems, cells


def _check_member(suffix: str, data: bytes, offset: int, record: np.void, labels: Array) -> str:
    """Return what is wrong with one member of a record, or nothing."""
    if suffix == "cls":
        wanted, origin = b"%d" % labels[0], "the index says" if labels[0] == record["label"] else "the formula gives"
        return "" if data == wanted else f"its label is {data!r}; {origin} {wanted!r}"
    if suffix == "labels.npy":
        try:
            found = np.load(BytesIO(data), allow_pickle=False)
        except Exception as error:  # NumPy raises ValueError, EOFError, MemoryError, TokenError … on a bad header
            return f"its noisy labels cannot be read: {error}"
        if found.dtype == np.uint16 and np.array_equal(found, labels[1:]):
            return ""
        if found.shape != labels[1:].shape:
            return f"it has noisy labels of shape {found.shape}, not {labels[1:].shape}"
        copy = int(np.flatnonzero(found != labels[1:])[0]) + 1
        return f"the label of copy {copy} is {found[copy - 1]}; the formula gives {labels[copy]}"
    return "its place differs from the index" if offset != record["offset"] else _check_image(data, record)


def _check_image(data: bytes, record: np.void) -> str:
    """Return what is wrong with the bytes of an image, or nothing."""
    if (len(data), zlib.crc32(data)) != (record["size"], record["crc32"]):
        return "its size or crc32 differs from the index"
    shape = tuple(int(record[name]) for name in ("height", "width", "channels"))
    try:
        found = decode(Item(data, ENCODINGS[record["encoding"]], *shape)).shape
    except DamagedImageError as error:
        return str(error)
    return "" if found == shape or shape == (0, 0, 0) else f"it decodes to {found}; the index says {shape}"


def _check_counts(checked: _Checked, counts: Counts) -> Iterator[Problem]:
    manifest = checked.manifest
    if counts.num_right != manifest.num_right:
        yield Problem("dataset.json", None, f"says {manifest.num_right:,} right labels; there are {counts.num_right:,}")
    # Arrays, not bytes, are compared: how NumPy packs them is not ours to promise.
    expected = BytesIO(counts.to_bytes(manifest.formula.num_classes))
    with np.load(expected) as wanted, np.load(BytesIO(checked.folder.read(manifest.counts.name))) as found:
        if set(found) != set(wanted) or not all(np.array_equal(found[name], wanted[name]) for name in wanted):
            yield Problem("counts.npz", None, "differs from the counts of the labels")
