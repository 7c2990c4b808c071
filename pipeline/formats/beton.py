"""FFCV's `.beton` files, version 2: a header, one row of metadata an example, pages of bytes, a table of allocations.

Images pass through as they are stored: JPEG bytes untouched, raw pixels as pixels. FFCV finds the bytes of a row by
its pointer alone, so any number of rows may show one image. FFCV itself is not needed here.

    header          HEADER_DTYPE
    descriptors     DESCRIPTOR_DTYPE, one a field
    rows            row_dtype(...), one an image or one an example
    zeros           up to the next multiple of the page size
    pages           an image and, right after it, its noisy labels; an image with its labels never straddles two pages
    allocations     ALLOCATION_DTYPE, one for each row and each thing in the pages that it shows; the rest of the file

Source: ffcv 1.0.2: types.py, writer.py, memory_allocator.py, fields/.
Deviates: the last page ends with its last byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, Literal

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from pipeline.atomic import replacing
from pipeline.errors import UserError
from pipeline.manifest import ENCODINGS, File
from pipeline.stream import copies_in_pass

Rows = Literal["images", "examples"]
Labels = Callable[[Int64[Array, " b"]], UInt16[Array, "b copies"]]
Stored = Callable[[range], Iterable[bytes]]

PAGE_BYTES: Final = 8 << 20  # FFCV's default
VERSION: Final = 2
JPG: Final = 0  # what `mode` says of an image's bytes: a JPEG file
RAW: Final = 1  # uint8 pixels [h, w, 3]
HEADER_DTYPE: Final = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
DESCRIPTOR_DTYPE: Final = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", 1024)])
ALLOCATION_DTYPE: Final = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
INT: Final = 1  # type ids of fields
IMAGE: Final = 2
ARRAY: Final = 4
ROW_DTYPES: Final = {  # what a field holds of each row
    INT: np.dtype("<i8"),
    IMAGE: np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]),
    ARRAY: np.dtype("<u8"),  # its pointer
}
_ARRAY_TYPE: Final = json.dumps([["", "<u2"]]).encode()  # NumPy's description of uint16, as FFCV writes it

_BLOCK_ROWS: Final = 1 << 16
_BLOCK_LABELS: Final = 1 << 20  # computed at once
_HELD_LABELS: Final = 1 << 22  # kept at once, 8 MiB


def write_beton(
    path: Path, index: Array, stored: Stored, labels: Labels, *, num_copies: int, rows: Rows
) -> tuple[File, Array]:
    """Write a beton in one sequential pass; it appears under its name only when it is whole and on disk.

    Fields are `image`, `label` and, where a row is an image and there are noisy labels, `labels`: those of copies 1..α.
    Where a row is an example, row t·n + i shows image i with the copy of pass t (`copies_in_pass`).

    Args:
        path: The beton.
        index: INDEX_DTYPE [n], by image id, without offsets.
        stored: Yields the stored bytes of some images; called for one page after the other, from another thread.
        labels: Computes the labels of copies 0..α of some images.
        num_copies: 1 + α.
        rows: What a row of metadata is.

    Returns:
        The file, and the index with offsets into it.

    Raises:
        UserError: If an image is none that FFCV can show, or has another size than the index says.
        OSError: If the disk refuses; nothing is published then.
    """
    _check(index)
    alpha = array_labels(num_copies, rows)
    descriptors = field_descriptors(alpha)
    num_rows = len(index) * (num_copies if rows == "examples" else 1)
    sizes = index["size"].astype(np.int64) + 2 * alpha
    page_bytes = page_size(index, alpha)
    firsts = _first_images(sizes, page_bytes)
    rows_end = HEADER_DTYPE.itemsize + descriptors.nbytes + num_rows * row_dtype(alpha).itemsize
    rows_padding = -rows_end % page_bytes
    index = index.copy()
    starts = np.cumsum(sizes) - sizes
    page_starts = rows_end + rows_padding + page_bytes * np.arange(len(firsts) - 1)
    index["offset"] = starts + np.repeat(page_starts - starts[firsts[:-1]], np.diff(firsts))
    table = int(index["offset"][-1]) + int(sizes[-1])
    header = np.array([(VERSION, len(descriptors), page_bytes, num_rows, table)], HEADER_DTYPE)
    with (
        replacing(path) as file,
        ThreadPoolExecutor(max_workers=1) as hasher,
        ThreadPoolExecutor(max_workers=1) as reader,
    ):
        out = _HashedFile(file, hasher)
        out.write(header.tobytes() + descriptors.tobytes())
        for here, _, shown in shown_labels(labels, len(index), num_copies, rows):
            out.write(_rows_of(index[here], shown, alpha))
        out.write(bytes(rows_padding))
        for data in _pages(_Page(index, stored, labels, alpha), firsts, page_bytes, reader):
            out.write(data)
        for first_row in range(0, num_rows, len(index)):
            for here in _slices(len(index), _BLOCK_ROWS):
                out.write(_allocations_of(index[here], first_row + here.start, alpha))
        return out.finish(path.name), index


def array_labels(num_copies: int, rows: Rows) -> int:
    """Return the number of labels in the array of an image; 0 if there is no such field."""
    return num_copies - 1 if rows == "images" else 0


def page_size(index: Array, alpha: int) -> int:
    """Return the bytes of a page: FFCV's default, or the next power of two that holds the largest image."""
    return max(PAGE_BYTES, 1 << (int(index["size"].max()) + 2 * alpha - 1).bit_length())


def row_dtype(alpha: int) -> np.dtype[np.void]:
    """Return what a row of metadata holds; `alpha` labels are in the array of an image."""
    fields = [("image", ROW_DTYPES[IMAGE]), ("label", ROW_DTYPES[INT])]
    return np.dtype([*fields, ("labels", ROW_DTYPES[ARRAY])] if alpha else fields, align=True)


def field_descriptors(alpha: int) -> Array:
    """Describe the fields; `alpha` labels are in the array of an image."""
    fields = [(IMAGE, b"image"), (INT, b"label"), (ARRAY, b"labels")][: 3 if alpha else 2]
    descriptors = np.zeros(len(fields), DESCRIPTOR_DTYPE)
    descriptors["type_id"], descriptors["name"] = zip(*fields, strict=True)
    if alpha:
        shape = np.zeros(33, "<u8")  # up to 32 dimensions, then the length of the type's description
        shape[0], shape[32] = alpha, len(_ARRAY_TYPE)
        arguments = shape.tobytes() + _ARRAY_TYPE
        descriptors[2]["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
    return descriptors


def shown_labels(
    labels: Labels, num_images: int, num_copies: int, rows: Rows
) -> Iterator[tuple[slice, int, UInt16[Array, " b"]]]:
    """Yield the labels that the rows show, block by block in the order of the rows.

    Passes come one after the other, but `labels` computes all copies of an image at once, so the labels of several
    passes are kept; how many follows from a limit, and so memory does not grow with α.

    Yields:
        The images of a block, its pass, and its labels.
    """
    passes = range(num_copies if rows == "examples" else 1)
    at_once = max(1, _HELD_LABELS // num_images)
    for first in passes[::at_once]:
        numbers = passes[first : first + at_once]
        held = np.empty((len(numbers), num_images), np.uint16)
        for image_ids, block in label_blocks(labels, num_images, num_copies):
            for row, number in enumerate(numbers):
                copies = np.zeros_like(image_ids)
                if rows == "examples":
                    copies = copies_in_pass(number, image_ids, num_copies=num_copies)
                held[row, image_ids] = block[np.arange(len(block)), copies]
        for row, number in enumerate(numbers):
            for here in _slices(num_images, _BLOCK_ROWS):
                yield here, number, held[row, here]


def label_blocks(
    labels: Labels, num_images: int, num_copies: int
) -> Iterator[tuple[Int64[Array, " b"], UInt16[Array, "b copies"]]]:
    """Yield image ids and all labels of theirs; a block holds as many labels whatever α is."""
    for here in _slices(num_images, max(1, _BLOCK_LABELS // num_copies)):
        image_ids = np.arange(here.start, here.stop)
        yield image_ids, labels(image_ids)


def _slices(stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(0, stop, step))


def _check(index: Array) -> None:
    """Refuse what FFCV would show wrongly, before anything is written.

    Raises:
        UserError: With the first image that does not fit.
    """
    height, width, size = (index[name].astype(np.int64) for name in ("height", "width", "size"))
    jpg = (index["encoding"] == ENCODINGS.index("jpg")) & np.isin(index["channels"], (1, 3)) & (size > 0)
    raw = (index["encoding"] == ENCODINGS.index("raw")) & (index["channels"] == 3) & (size == height * width * 3)
    if len(refused := np.flatnonzero(~((jpg | raw) & (height > 0) & (width > 0)))):
        image = index[refused[0]]
        raise UserError(
            f"image {refused[0]} is {ENCODINGS[image['encoding']]}, {image['height']} × {image['width']} × "
            f"{image['channels']}, {image['size']:,} bytes; a beton holds JPEG files of 1 or 3 channels and raw RGB "
            "pixels, of known height and width: encode it anew"
        )


def _first_images(sizes: Int64[Array, " n"], page_bytes: int) -> Int64[Array, " pages_and_end"]:
    """Fill pages in the order of the images; return the first image of each, and n."""
    ends = np.cumsum(sizes)
    firsts = [0]
    while firsts[-1] < len(sizes):
        start = ends[firsts[-1]] - sizes[firsts[-1]]
        firsts.append(int(np.searchsorted(ends, start + page_bytes, side="right")))
    return np.array(firsts)


def _rows_of(index: Array, labels: UInt16[Array, " b"], alpha: int) -> bytes:
    rows = np.zeros(len(index), row_dtype(alpha))
    image = rows["image"]
    image["mode"] = np.where(index["encoding"] == ENCODINGS.index("jpg"), JPG, RAW)
    image["width"], image["height"], image["data_ptr"] = index["width"], index["height"], index["offset"]
    rows["label"] = labels
    if alpha:
        rows["labels"] = index["offset"] + index["size"]
    return rows.tobytes()


def _allocations_of(index: Array, first_row: int, alpha: int) -> bytes:
    """List what the rows of some images show, from `first_row` on.

    Every row has its own entry, although one an image would do for `Loader(os_cache=True)`: with os_cache=False FFCV
    loads only pages that it finds here for the rows of a batch, and shows another image, without a word, where a row
    has none (32 of 200 rows in a trial). The price: FFCV's Loader keeps some 430 bytes and takes 3.4 µs a row.
    """
    table = np.zeros((len(index), 2 if alpha else 1), ALLOCATION_DTYPE)
    table["sample_id"] = first_row + np.arange(len(index))[:, None]
    table["ptr"][:, 0], table["size"][:, 0] = index["offset"], index["size"]
    if alpha:
        table["ptr"][:, 1], table["size"][:, 1] = index["offset"] + index["size"], 2 * alpha
    return table.tobytes()


@dataclass(frozen=True)
class _Page:
    """Fills pages with images and their noisy labels."""

    index: Array
    stored: Stored
    labels: Labels
    alpha: int

    def fill(self, page: memoryview, images: range) -> memoryview:
        """Fill a page with `images`; return the part of it that they take, all of it but for the last page."""
        rows = self.index[images.start : images.stop]
        starts, sizes = (rows["offset"] - rows["offset"][0]).tolist(), rows["size"].tolist()
        noisy = [b""] * len(images)
        if self.alpha:
            labels = self.labels(np.arange(images.start, images.stop))[:, 1:].astype("<u2", copy=False)
            noisy = [row.tobytes() for row in labels]
        end = 0
        for image_id, start, size, data, array in zip(images, starts, sizes, self.stored(images), noisy, strict=True):
            if len(data) != size:
                raise UserError(f"image {image_id} has {len(data):,} bytes, the index says {size:,}")
            end = start + size + len(array)
            page[start : start + size] = data
            page[start + size : end] = array
        if images.stop == len(self.index):
            return page[:end]
        page[end:] = bytes(len(page) - end)
        return page


def _pages(
    filled: _Page, firsts: Int64[Array, " pages_and_end"], page_bytes: int, reader: ThreadPoolExecutor
) -> Iterator[memoryview]:
    """Yield page after page; each is overwritten when the one after the next is asked for.

    One is being filled in the reader's thread while another is written, and the one before it may still be hashed.
    """
    buffers = [memoryview(bytearray(page_bytes)) for _ in range(3)]
    images = [range(first, last) for first, last in pairwise(firsts.tolist())]
    following = reader.submit(filled.fill, buffers[0], images[0])
    for number in range(1, len(images)):
        page = following.result()
        following = reader.submit(filled.fill, buffers[number % 3], images[number])
        yield page
    yield following.result()


class _HashedFile:
    """A file that is hashed in a second thread while it is written: hashlib lets go of the interpreter.

    Args:
        file: Where the bytes go.
        hasher: The thread.
    """

    def __init__(self, file: BinaryIO, hasher: ThreadPoolExecutor) -> None:
        self._file = file
        self._hasher = hasher
        self._digest = hashlib.sha256()
        self._hashed: Future[None] = hasher.submit(lambda: None)
        self._num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write some bytes, which must stay as they are until the next call returns."""
        self._hashed.result()
        self._hashed = self._hasher.submit(self._digest.update, data)
        self._file.write(data)
        self._num_bytes += len(data)

    def finish(self, name: str) -> File:
        """Say what was written."""
        self._hashed.result()
        return File(name, self._num_bytes, self._digest.hexdigest())
