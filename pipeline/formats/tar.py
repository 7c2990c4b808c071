"""Shards as USTAR archives that stock WebDataset and DALI readers see as (image, label of copy 0, noisy labels).

Layout `shared`, per image: ``000000123.jpg`` (or png, webp; the source's bytes), ``000000123.cls`` (ASCII label of
copy 0) and ``000000123.labels.npy`` (uint16 [α], the labels of copies 1..α; left out at α = 0). Layout `expanded`, per
example: the image and ``.cls`` under the example's id. Times and owners are fixed: the same data give the same bytes.

Beside a shard lies DALI's index ``NAME.idx``, one row an image. For `--index examples` there is ``NAME.diluted.idx`` as
well, one row an example: several rows point at one image, and their labels are those of a dictionary at the head of the
shard, ``__labels__/0007.lbl`` (int32), one per class; WebDataset passes over names of that form.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray as Array

from pipeline.formats.hashed import hashed_file
from pipeline.formats.types import Record, Written, index_of, index_row
from pipeline.manifest import File, Shard
from pipeline.storage import Folder
from pipeline.stream import copies_in_pass

BLOCK_BYTES: Final = 512


def _header(name: bytes, size: int) -> bytes:
    """Write a USTAR header: regular file, mode 644, owner 0, time 0."""
    length = b"%011o" % size
    checksum = _HEADER_SUM + sum(name) + sum(length)
    return b"".join(
        (name, bytes(100 - len(name)), _MODE_OWNER, length, b"\0", _TIME, b"%06o\0 " % checksum, _HEADER_END)
    )


_MODE_OWNER: Final = b"0000644\0" + b"0000000\0" * 2
_TIME: Final = b"0" * 11 + b"\0"
_HEADER_END: Final = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
_HEADER_SUM: Final = sum(_MODE_OWNER) + sum(_TIME) + sum(_HEADER_END) + 8 * ord(" ")


def npy_header(alpha: int) -> bytes:
    """Return the header of a .npy file of uint16 [alpha]."""
    stream = io.BytesIO()
    fields: dict[str, Any] = {"descr": "<u2", "fortran_order": False, "shape": (alpha,)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def write_shard(
    folder: Folder,
    stem: str,
    records: Iterable[Record],
    labels: UInt16[Array, "n copies"],
    *,
    first: int,
    dictionary: int = 0,
) -> Written:
    """Write one shard and its DALI index; each appears under its name only when it is whole and in storage.

    Args:
        folder: Where.
        stem: The shard is ``STEM.tar``, the index ``STEM.idx``.
        records: Its n images.
        labels: Of all copies that a record holds, one column a copy; column 0 is what ``.cls`` says.
        first: Row of the first record in the split's index.
        dictionary: K, to write a dictionary of labels and the rows of all examples; records are then images `first`
            and following.

    Raises:
        OSError: If the disk refuses; nothing is published then.
        UserError: If other storage refuses.
    """
    labels_header = npy_header(labels.shape[1] - 1)
    noisy = labels[:, 1:].astype("<u2", copy=False)
    rows: list[tuple[int, ...]] = []
    dali_rows: list[str] = []
    with hashed_file(folder, f"{stem}.tar") as out:
        offset = 0
        for label in range(dictionary):
            data = label.to_bytes(4, "little")
            out.write((_header(b"__labels__/%04d.lbl" % label, 4), data, bytes(BLOCK_BYTES - 4)))
            offset += 2 * BLOCK_BYTES
        for record, label, more in zip(records, labels[:, 0].tolist(), noisy, strict=True):
            item = record.item
            members = [(item.encoding, item.data), ("cls", b"%d" % label)]
            if len(more):
                members.append(("labels.npy", labels_header + more.tobytes()))
            rows.append(index_row(record, offset + BLOCK_BYTES, zlib.crc32(item.data)))
            columns = []
            for extension, data in members:
                padding = -len(data) % BLOCK_BYTES
                out.write((_header(f"{record.key}.{extension}".encode(), len(data)), data, bytes(padding)))
                columns.append(f"{extension} {offset + BLOCK_BYTES} {len(data)}")
                offset += BLOCK_BYTES + len(data) + padding
            dali_rows.append(" ".join(columns))
        out.write((bytes(2 * BLOCK_BYTES),))
        file = out.finish()
    extras = [_write_dali_index(folder, f"{stem}.idx", len(rows), iter(dali_rows))]
    if dictionary:
        images = [row.split(" cls ")[0] for row in dali_rows]
        examples = _diluted_rows(images, np.arange(first, first + len(rows)), labels)
        extras.append(_write_dali_index(folder, f"{stem}.diluted.idx", labels.size, examples))
    return Written(Shard(file.name, file.num_bytes, file.sha256, first, len(rows)), tuple(extras), index_of(rows))


def _diluted_rows(images: list[str], image_ids: Int64[Array, " n"], labels: UInt16[Array, "n copies"]) -> Iterator[str]:
    """Give every example of a shard a row, in passes over its images: no image twice in a pass."""
    num_copies = labels.shape[1]
    for number in range(num_copies):
        copies = copies_in_pass(number, image_ids, num_copies=num_copies)
        shown = labels[np.arange(len(labels)), copies].tolist()
        for image, label in zip(images, shown, strict=True):
            yield f"{image} lbl {2 * BLOCK_BYTES * label + BLOCK_BYTES} 4"


def _write_dali_index(folder: Folder, name: str, num_rows: int, rows: Iterator[str]) -> File:
    with hashed_file(folder, name) as out:
        out.write((b"v1.1 %d\n" % num_rows,))
        for row in rows:
            out.write((row.encode(), b"\n"))
        return out.finish()
