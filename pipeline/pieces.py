"""What a beton is put together from: the source's files, and the bytes of images that are stored otherwise.

Where the first image of a beton lies follows from the sizes of all of them, so workers look at the images first. An
image that is stored as the source has it is read a second time when its page is written, which costs less than a copy
that is written and read; of the others (raw pixels, re-encoded JPEGs) a file a task keeps the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array

from pipeline.dataset import ImageSplit
from pipeline.direct import DirectFile
from pipeline.errors import DamagedImageError, UserError
from pipeline.formats.types import Record, index_of, index_row


def write_pieces(path: Path, records: Iterable[Record]) -> tuple[Array, Bool[Array, " n"]]:
    """Look at the images of a task and keep the bytes of those that are not stored as they are.

    Args:
        path: Where they are kept, one after the other.
        records: The images.

    Returns:
        INDEX_DTYPE [n], with offsets into `path` of those that are kept; and which are.
    """
    rows, kept, offset = [], [], 0
    with DirectFile(path) as file:
        for record in records:
            rows.append(index_row(record, offset, zlib.crc32(record.item.data)))
            kept.append(not record.as_it_was)
            if kept[-1]:
                offset += file.write(record.item.data)
    return index_of(rows), np.array(kept, dtype=np.bool_)


def pieces_are_intact(path: Path, index: Array, kept: Bool[Array, " n"]) -> bool:
    """Say whether the file of a task still holds what `write_pieces` put there."""
    of_file = index[kept]
    if not path.exists() or path.stat().st_size != int(of_file["size"].sum()):
        return False
    with path.open("rb") as file:
        sizes, sums = of_file["size"].tolist(), of_file["crc32"].tolist()
        return all(zlib.crc32(file.read(size)) == crc32 for size, crc32 in zip(sizes, sums, strict=True))


class StoredImages:
    """The stored bytes of a split's images, read in their order.

    Args:
        split: The source's images.
        paths: The file of each task.
        indices: What `write_pieces` said of it.
        kept: The same.
    """

    def __init__(
        self, split: ImageSplit, paths: Sequence[Path], indices: Sequence[Array], kept: Sequence[Bool[Array, " _"]]
    ) -> None:
        self._split = split
        self._paths = paths
        self._task = np.repeat(np.arange(len(paths)), [len(index) for index in indices])
        self._index = np.concatenate(indices)
        self._kept = np.concatenate(kept)

    def __call__(self, images: range) -> Iterator[bytes]:
        """Yield the bytes of some images.

        Raises:
            UserError: If they are not those that were looked at.
            OSError: If they can no longer be read.
        """
        for image_id in images:
            row = self._index[image_id]
            data = self._piece(image_id) if self._kept[image_id] else self._of_source(image_id)
            if data is None or len(data) != row["size"] or zlib.crc32(data) != row["crc32"]:
                raise UserError(
                    f"image {row['source']} of the source changed while the data set was built; "
                    "run the same command again"
                )
            yield data

    def _of_source(self, image_id: int) -> bytes | None:
        try:
            return self._split.item(image_id).data
        except DamagedImageError:
            return None

    def _piece(self, image_id: int) -> bytes:
        row = self._index[image_id]
        with self._paths[int(self._task[image_id])].open("rb") as file:
            file.seek(int(row["offset"]))
            return file.read(int(row["size"]))
