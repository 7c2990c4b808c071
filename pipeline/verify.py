"""Check a folder of shards against its manifest: every hash, every count, and every label computed again.

Archives are read with Python's own tarfile, not with the code that wrote them.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from pipeline.counts import NO_COUNTS, Counts
from pipeline.dataset import DamagedImageError, decode
from pipeline.errors import UserError
from pipeline.manifest import INDEX_DTYPE, File, Manifest, Shard, SplitFiles, hash_file, read_manifest
from pipeline.sources.types import Item


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


def verify(folder: Path, *, progress: Callable[[int], None] = lambda images: None) -> list[Problem]:
    """Check everything that can be checked without the source.

    Args:
        folder: A finished data set.
        progress: Called with the number of images after each shard.

    Returns:
        All problems found; empty if the data set is what its manifest says.

    Raises:
        UserError: If there is no readable manifest.
    """
    manifest = read_manifest(folder)
    problems: list[Problem] = []
    for file in manifest.files():
        problems.extend(_check_file(folder, file))
    damaged = {problem.file for problem in problems}
    for files in (manifest.train, manifest.test):
        if files.index.name in damaged:
            continue  # without its index, nothing tells a split's right bytes from wrong ones
        counts = _check_split(manifest, folder, files, files is manifest.train, problems, progress)
        if files is manifest.train and "counts.npz" not in damaged:
            problems.extend(_check_counts(manifest, folder, counts))
    return problems


def _check_file(folder: Path, file: File) -> Iterator[Problem]:
    path = folder / file.name
    if not path.exists():
        yield Problem(file.name, None, "is missing")
    elif (size := path.stat().st_size) != file.num_bytes:
        yield Problem(file.name, None, f"has {size:,} bytes, not {file.num_bytes:,}")
    elif hash_file(path).sha256 != file.sha256:
        yield Problem(file.name, None, "its sha256 differs from the manifest's")


def _check_split(
    manifest: Manifest,
    folder: Path,
    files: SplitFiles,
    diluted: bool,
    problems: list[Problem],
    progress: Callable[[int], None],
) -> Counts:
    """Check the shards of a split record by record; return the realised counts."""
    counts = NO_COUNTS
    index = np.load(folder / files.index.name, mmap_mode="r")
    if index.dtype != INDEX_DTYPE or len(index) != files.num_images:
        problems.append(Problem(files.index.name, None, f"does not hold {files.num_images:,} records"))
        return counts
    outside = np.flatnonzero(index["label"] >= manifest.formula.num_classes)
    if len(outside):
        problems.append(Problem(files.index.name, int(outside[0]), "its label is none of the classes"))
        return counts
    formula = manifest.formula
    try:
        formula = formula.bind(_Indexed(index["source"], index["label"])) if diluted else formula
    except UserError as error:
        problems.append(Problem(files.index.name, None, str(error)))
        return counts
    covered = 0
    for shard, dali in zip(files.shards, files.extras, strict=True):
        if shard.first != covered:
            problems.append(Problem(shard.name, shard.first, f"images from {covered} on are in no shard"))
        covered = shard.first + shard.count
        rows = index[shard.first : covered]
        labels = rows["label"][:, None]
        if diluted:
            labels = formula.all_labels(np.arange(shard.first, covered), np.ascontiguousarray(rows["label"]))
        found = list(_check_shard(folder, shard, dali, manifest.encoding, rows, labels))
        problems.extend(found)
        counts = counts + Counts.of(np.ascontiguousarray(rows["label"]), labels)
        progress(shard.count)
    if covered != files.num_images:
        problems.append(Problem(files.index.name, covered, "this image and those after it are in no shard"))
    return counts


def _check_shard(
    folder: Path, shard: Shard, dali: File, encoding: str, index: Array, labels: Array
) -> Iterator[Problem]:
    """Compare the members of one archive with the index and the formula."""
    dali_rows = [f"v1.1 {shard.count}"]
    suffixes = [encoding, "cls", *(["labels.npy"] if labels.shape[1] > 1 else [])]
    try:
        with tarfile.open(folder / shard.name, "r:") as archive:
            members = iter(archive)
            for row, record in enumerate(index):
                image_id = shard.first + row
                columns = []
                for suffix in suffixes:
                    member = next(members, None)
                    if member is None or member.name != f"{image_id:09d}.{suffix}":
                        found = "the end" if member is None else f"'{member.name}'"
                        yield Problem(shard.name, image_id, f"{found} stands where its .{suffix} should")
                        return
                    file = archive.extractfile(member)
                    data = file.read() if file else b""
                    if reason := _check_member(suffix, data, member.offset_data, record, labels[row]):
                        yield Problem(shard.name, image_id, reason)
                    columns.append(f"{suffix} {member.offset_data} {member.size}")
                dali_rows.append(" ".join(columns))
            if (extra := next(members, None)) is not None:
                yield Problem(shard.name, None, f"holds '{extra.name}', which the manifest does not know")
    except FileNotFoundError:
        return  # the check of its hash has told
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Problem(shard.name, None, f"cannot be read as an archive: {error}")
        return
    try:
        text = (folder / dali.name).read_text(encoding="ascii")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield Problem(dali.name, None, f"cannot be read: {error}")
        return
    if text.splitlines() != dali_rows:
        yield Problem(dali.name, None, f"does not describe {shard.name}")


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
    if (offset, len(data), zlib.crc32(data)) != tuple(int(record[name]) for name in ("offset", "size", "crc32")):
        return "its place, size or crc32 differs from the index"
    try:
        decode(Item(data, suffix))  # type: ignore[arg-type]
    except DamagedImageError as error:
        return str(error)
    return ""


def _check_counts(manifest: Manifest, folder: Path, counts: Counts) -> Iterator[Problem]:
    if counts.num_right != manifest.num_right:
        yield Problem("dataset.json", None, f"says {manifest.num_right:,} right labels; there are {counts.num_right:,}")
    # Arrays, not bytes, are compared: how NumPy packs them is not ours to promise.
    expected = BytesIO(counts.to_bytes(manifest.formula.num_classes))
    with np.load(expected) as wanted, np.load(folder / "counts.npz") as found:
        if set(found) != set(wanted) or not all(np.array_equal(found[name], wanted[name]) for name in wanted):
            yield Problem("counts.npz", None, "differs from the counts of the labels")
