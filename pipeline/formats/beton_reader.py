"""Read FFCV's `.beton` files without FFCV, and check one against its index and the formula of its labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from pipeline.errors import UserError
from pipeline.formats.beton import (
    ALLOCATION_DTYPE,
    DESCRIPTOR_DTYPE,
    HEADER_DTYPE,
    JPG,
    RAW,
    ROW_DTYPES,
    VERSION,
    Labels,
    Rows,
    array_labels,
    field_descriptors,
    label_blocks,
    page_size,
    shown_labels,
)
from pipeline.manifest import ENCODINGS


class Beton(NamedTuple):
    """A beton, memory-mapped.

    Args:
        header: HEADER_DTYPE [1].
        descriptors: DESCRIPTOR_DTYPE, one a field.
        rows: Metadata, one row an example; its columns have the names of the fields.
        allocations: ALLOCATION_DTYPE.
        data: The whole file, uint8.
    """

    header: Array
    descriptors: Array
    rows: Array
    allocations: Array
    data: Array


def read_beton(path: Path) -> Beton:
    """Map a beton of images, integers and arrays.

    Raises:
        UserError: If it is none, or damaged.
        OSError: If it cannot be read.
    """
    if path.stat().st_size < HEADER_DTYPE.itemsize:
        raise UserError(f"{path} is no beton: it is shorter than a header; build the data set again")
    data = np.memmap(path, np.uint8, "r").view(Array)
    try:
        return _parse(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged, or no beton: {error}; build the data set again") from None


def _parse(data: Array) -> Beton:
    """Cut a file into its parts.

    Raises:
        ValueError: With what is wrong.
    """

    def cut(start: int, count: int, dtype: np.dtype[np.void], what: str) -> Array:
        if start + count * dtype.itemsize > len(data):
            raise ValueError(f"its {what} end at {start + count * dtype.itemsize:,}, the file at {len(data):,}")
        return data[start : start + count * dtype.itemsize].view(dtype)

    header = cut(0, 1, HEADER_DTYPE, "header")
    version, num_fields, page_bytes, num_rows, table = header[0].tolist()
    if version != VERSION:
        raise ValueError(f"its version is {version}, not {VERSION}")
    if page_bytes.bit_count() != 1:
        raise ValueError(f"its pages have {page_bytes:,} bytes, no power of two")
    if not num_fields:
        raise ValueError("it has no fields")
    descriptors = cut(HEADER_DTYPE.itemsize, num_fields, DESCRIPTOR_DTYPE, "field descriptors")
    if unknown := set(descriptors["type_id"].tolist()) - set(ROW_DTYPES):
        raise ValueError(f"it has fields of types {sorted(unknown)}; known are {sorted(ROW_DTYPES)}")
    names = [name.decode("ascii") for name in descriptors["name"]]
    types = [ROW_DTYPES[type_id] for type_id in descriptors["type_id"].tolist()]
    dtype = np.dtype(list(zip(names, types, strict=True)), align=True)
    rows_start = HEADER_DTYPE.itemsize + descriptors.nbytes
    rows = cut(rows_start, num_rows, dtype, "rows")
    if not rows_start + rows.nbytes <= table <= len(data) or (len(data) - table) % ALLOCATION_DTYPE.itemsize:
        raise ValueError(f"no table of allocations lies between {table:,} and the file's end, {len(data):,}")
    return Beton(header, descriptors, rows, data[table:].view(ALLOCATION_DTYPE), data)


def verify_beton(
    path: Path, index: Array, labels: Labels, *, num_copies: int, rows: Rows
) -> Iterator[tuple[int | None, str]]:
    """Find everything that is not as it should be, except in the images' bytes.

    Args:
        path: The beton.
        index: INDEX_DTYPE [n], by image id, with offsets.
        labels: Computes the labels of copies 0..α of some images.
        num_copies: 1 + α.
        rows: What a row of metadata is.

    Yields:
        The image, or None if it is about the whole file, and the reason.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        beton = read_beton(path)
    except UserError as error:
        yield None, str(error)
        return
    alpha = array_labels(num_copies, rows)
    passes = num_copies if rows == "examples" else 1
    wrong = list(_check_whole(beton, index, alpha, passes))
    yield from ((None, reason) for reason in wrong)
    if wrong:
        return
    yield from _check_rows(beton, index, labels, num_copies, rows)
    yield from _check_allocations(beton, index, alpha, passes)
    if alpha:
        yield from _check_arrays(beton, index, labels, num_copies)


def _check_whole(beton: Beton, index: Array, alpha: int, passes: int) -> Iterator[str]:
    """Compare what the file says of itself; what lies where is known once this agrees."""
    header = beton.header[0]
    end = int(index["offset"][-1]) + int(index["size"][-1]) + 2 * alpha
    for name, wanted in (
        ("page_size", page_size(index, alpha)),
        ("num_samples", len(index) * passes),
        ("alloc_table_ptr", end),
    ):
        if header[name] != wanted:
            yield f"its header's {name} is {header[name]:,}; the index says {wanted:,}"
    if beton.descriptors.tobytes() != field_descriptors(alpha).tobytes():
        yield f"its field descriptors are not those of {'image, label and labels' if alpha else 'image and label'}"
    if len(beton.allocations) != (wanted := len(index) * passes * (2 if alpha else 1)):
        yield f"its table of allocations has {len(beton.allocations):,} rows, not {wanted:,}"


def _check_rows(
    beton: Beton, index: Array, labels: Labels, num_copies: int, rows: Rows
) -> Iterator[tuple[int | None, str]]:
    """Compare the rows of metadata with the index and the formula."""
    unused = np.ones(beton.rows.dtype.itemsize, np.bool_)  # bytes that belong to no field
    for dtype, offset, *_ in beton.rows.dtype.fields.values():  # type: ignore[union-attr]
        unused[offset : offset + dtype.itemsize] = False
    zeros = np.zeros(len(index), np.uint8)
    for here, number, shown in shown_labels(labels, len(index), num_copies, rows):
        images = index[here]
        found = beton.rows[number * len(index) + here.start :][: len(images)]
        columns = [
            ("mode", found["image"]["mode"], np.where(images["encoding"] == ENCODINGS.index("raw"), RAW, JPG)),
            ("width", found["image"]["width"], images["width"]),
            ("height", found["image"]["height"], images["height"]),
            ("data_ptr", found["image"]["data_ptr"], images["offset"]),
            ("label", found["label"], shown),
            ("padding", found.view(np.uint8).reshape(len(found), -1)[:, unused].max(axis=1), zeros[: len(found)]),
        ]
        if array_labels(num_copies, rows):
            columns.append(("labels", found["labels"], images["offset"] + images["size"]))
        for name, there, wanted in columns:
            for image in np.flatnonzero(there != wanted):
                row = number * len(index) + here.start + image
                yield int(here.start + image), f"the {name} of row {row} is {there[image]}, not {wanted[image]}"


def _check_allocations(beton: Beton, index: Array, alpha: int, passes: int) -> Iterator[tuple[int | None, str]]:
    """Compare the table of allocations with the index."""
    table = beton.allocations.reshape(passes, len(index), -1)
    for number in range(passes):
        for column in range(table.shape[2]):
            found = table[number, :, column]
            wanted = np.empty(len(index), ALLOCATION_DTYPE)
            wanted["sample_id"] = number * len(index) + np.arange(len(index))
            wanted["ptr"] = index["offset"] + (index["size"] if column else 0)
            wanted["size"] = 2 * alpha if column else index["size"]
            for image in np.flatnonzero(found != wanted):
                yield int(image), f"its allocation is {found[image]}, not {wanted[image]}"


def _check_arrays(beton: Beton, index: Array, labels: Labels, num_copies: int) -> Iterator[tuple[int | None, str]]:
    """Compare the labels of copies 1..α, which lie behind each image, with the formula."""
    for image_ids, block in label_blocks(labels, len(index), num_copies):
        images = index[image_ids]
        starts = (images["offset"] + images["size"]).tolist()
        for image_id, start, wanted in zip(image_ids.tolist(), starts, block[:, 1:], strict=True):
            found = beton.data[start : start + 2 * len(wanted)].view("<u2")
            if not np.array_equal(found, wanted):
                copy = int(np.flatnonzero(found != wanted)[0])
                yield image_id, f"the label of copy {copy + 1} is {found[copy]}; the formula gives {wanted[copy]}"
